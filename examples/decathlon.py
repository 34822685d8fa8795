"""The same training on a task of the Medical Segmentation Decathlon, downloaded by MONAI: for those who are online.

    python examples/decathlon.py --download                        # Task04_Hippocampus, 27 MB, into outputs/decathlon
    python examples/decathlon.py --num-workers 0                   # the same digest

The hippocampus in T1-weighted MRI, its anterior and posterior part as labels: 260 volumes of some 35x50x35 voxels of
1 mm, small enough for a CPU. The data is under CC-BY-SA 4.0 (Antonelli et al., Nature Communications 2022).
"""

import argparse
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from monai.apps import DecathlonDataset
from monai.data import DataLoader
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    ResizeWithPadOrCropd,
)

from repro_callbacks import Determinism, set_determinism
from repro_callbacks.command.demo.brain import BrainSegmenter
from repro_callbacks.fingerprint.digest import digest_state

BOTH = ["image", "label"]


def fixed() -> list:
    """What is the same for every sample; DecathlonDataset runs it once and keeps the result in memory."""
    return [
        LoadImaged(BOTH),
        EnsureChannelFirstd(BOTH),
        NormalizeIntensityd("image", nonzero=True),
        ResizeWithPadOrCropd(BOTH, (48, 64, 48)),
    ]


def random() -> list:
    return [
        RandFlipd(BOTH, prob=0.5, spatial_axis=0),
        RandAffined(BOTH, prob=0.5, rotate_range=(0.2,) * 3, scale_range=(0.1,) * 3, mode=("bilinear", "nearest")),
        RandGaussianNoised("image", prob=0.5, std=0.1),
        RandScaleIntensityd("image", factors=0.2, prob=0.5),
    ]


class Decathlon(L.LightningDataModule):
    def __init__(self, root: Path, task: str, download: bool, num_workers: int, cache_rate: float = 1.0) -> None:
        super().__init__()
        self.options = {"root_dir": root, "task": task, "cache_rate": cache_rate, "num_workers": 0, "progress": False}
        self.download = download
        self.num_workers = num_workers

    def prepare_data(self) -> None:
        if self.download:
            DecathlonDataset(**{**self.options, "cache_rate": 0.0}, section="training", download=True)

    def setup(self, stage: str) -> None:
        one_hot = AsDiscreted("label", to_onehot=3)
        self.train = DecathlonDataset(
            **self.options, section="training", transform=Compose([*fixed(), *random(), one_hot])
        )
        self.val = DecathlonDataset(**self.options, section="validation", transform=Compose([*fixed(), one_hot]))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.num_workers, batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="Task04_Hippocampus")
    parser.add_argument("--root", type=Path, default=Path("outputs/decathlon"), help="the folder that holds the task's")
    parser.add_argument("--download", action="store_true", help="let MONAI download the task if it is not there")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--resume", help="a checkpoint to go on from")
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)

    set_determinism(seed=3407)
    model = BrainSegmenter()  # three labels, as for the brain: background and two parts, named after brain tissue
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        callbacks=[Determinism(seed=3407), ModelCheckpoint(every_n_train_steps=25)],
        default_root_dir=arguments.root,
        enable_model_summary=False,
        log_every_n_steps=8,
    )
    data = Decathlon(arguments.root, arguments.task, arguments.download, arguments.num_workers)
    trainer.fit(model, data, ckpt_path=arguments.resume)
    dice = [float(trainer.callback_metrics[name]) for name in ("dice_grey", "dice_white")]
    print(f"Dice of the anterior and of the posterior part: {dice[0]:.3f}, {dice[1]:.3f}")
    print(f"digest of the final weights: {digest_state(model)}")


if __name__ == "__main__":
    main()
