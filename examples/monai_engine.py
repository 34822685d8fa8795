"""MONAI's SupervisedTrainer with ``DeterminismHandler``: any number of workers, and exact resume.

The handler is attached as MONAI's own handlers are. It keys the loader and every step by their position.

    python examples/monai_engine.py                                # some 15 s on two cores
    python examples/monai_engine.py --num-workers 0                # the same digest
    python examples/monai_engine.py --stop-after 110               # as if it had been killed
    python examples/monai_engine.py --resume                       # goes on at step 100; the same digest
"""

import argparse
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver, LrScheduleHandler, MeanDice, ValidationHandler
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted

from repro_callbacks import DeterminismHandler, set_determinism
from repro_callbacks.command.demo.brain import build_network, load_brain, train_transforms
from repro_callbacks.fingerprint.digest import digest_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--patches", type=int, default=64, help="training patches in an epoch, two in a batch")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--stop-after", type=int, help="stop after this step, without another word")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--folder", type=Path, default=Path("outputs/monai_engine"))
    arguments = parser.parse_args()

    set_determinism(seed=3407, use_deterministic_algorithms=True)
    device = torch.device("cpu")
    back, front = load_brain()
    train_loader = DataLoader(
        Dataset([back] * arguments.patches, train_transforms()), arguments.num_workers, batch_size=2, shuffle=True
    )
    val_loader = DataLoader(Dataset([front], AsDiscreted("label", to_onehot=3)), batch_size=1)

    network = build_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    total = arguments.epochs * len(train_loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=total)

    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=val_loader,
        network=network,
        postprocessing=AsDiscreted("pred", argmax=True, to_onehot=3),
        key_val_metric={"dice": MeanDice(include_background=False, output_transform=pairs)},
    )
    evaluator.add_event_handler(Events.COMPLETED, lambda engine: print(f"Dice {engine.state.metrics['dice']:.3f}"))

    determinism = DeterminismHandler(seed=3407)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=arguments.epochs,
        train_data_loader=train_loader,
        network=network,
        optimizer=optimizer,
        loss_function=DiceCELoss(softmax=True),
        train_handlers=[
            determinism,
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ValidationHandler(interval=1, validator=evaluator),
        ],
    )
    saved = {
        "network": network,
        "optimizer": optimizer,
        "schedule": schedule,
        "trainer": trainer,
        "determinism": determinism,
    }
    CheckpointSaver(
        str(arguments.folder), saved, save_interval=arguments.save_every, epoch_level=False, n_saved=1
    ).attach(trainer)
    if arguments.resume:
        newest = max(arguments.folder.glob("*.pt"), key=lambda path: path.stat().st_mtime)
        CheckpointLoader(str(newest), saved, map_location="cpu").attach(trainer)
        print(f"resume from {newest.name}")
    if arguments.stop_after is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=arguments.stop_after), stop)
    trainer.run()
    print(f"digest of the final weights: {digest_state(network)}")


def pairs(output: list[dict[str, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Give MONAI's metric what it compares."""
    return [sample["pred"] for sample in output], [sample["label"] for sample in output]


def stop(engine: Engine) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
