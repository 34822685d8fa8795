"""3D segmentation of brain tissue with Lightning and MONAI: the two lines, and a training that can be resumed.

The data, the random transforms and the model are in ``repro_callbacks/command/demo/brain.py``, which is written to be
read: one average brain that nilearn carries, the back to train on, the front to validate on, no download.

    python examples/brain_segmentation.py                          # some 15 s on two cores
    python examples/brain_segmentation.py --num-workers 0          # the same digest
    python examples/brain_segmentation.py --resume outputs/brain/checkpoints/epoch=3-step=100.ckpt    # and again
"""

import argparse
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from repro_callbacks import Determinism, set_determinism
from repro_callbacks.command.demo.brain import BrainPatches, BrainSegmenter
from repro_callbacks.command.demo.picture import draw_prediction
from repro_callbacks.fingerprint.digest import digest_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--patches", type=int, default=64, help="training patches in an epoch, two in a batch")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--resume", help="a checkpoint to go on from")
    parser.add_argument("--folder", type=Path, default=Path("outputs/brain"))
    arguments = parser.parse_args()

    set_determinism(seed=3407)  # before the model is built: its first weights are random too
    model = BrainSegmenter()
    data = BrainPatches(arguments.patches, num_workers=arguments.num_workers)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=arguments.epochs,
        callbacks=[
            Determinism(seed=3407),
            ModelCheckpoint(arguments.folder / "checkpoints", every_n_train_steps=25, save_top_k=-1),
        ],
        logger=TensorBoardLogger(arguments.folder, name="tensorboard"),
        log_every_n_steps=8,
        enable_model_summary=False,
    )
    trainer.fit(model, data, ckpt_path=arguments.resume)

    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(f"Dice on the front: grey matter {metrics['dice_grey']:.3f}, white matter {metrics['dice_white']:.3f}")
    picture = arguments.folder / "picture.png"
    draw_prediction(model, data.back, data.front).savefig(picture)
    print(f"picture: {picture}")
    print(f"digest of the final weights: {digest_state(model)}")


if __name__ == "__main__":
    main()
