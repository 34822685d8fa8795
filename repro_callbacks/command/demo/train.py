"""One training of the demo: :func:`main`, or ``python -m repro_callbacks.command.demo.train '{"folder": ...}'``."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OURS, BARE = "Determinism", "seed_everything"
OUTPUT = "output.txt"
PRELOADED = (
    *(
        "repro_callbacks.command.demo.brain",
        "repro_callbacks.command.demo.around",
        "repro_callbacks.command.demo.picture",
    ),
    *(
        "repro_callbacks.callbacks.determinism",
        "lightning.pytorch.loggers",
        "torch.utils.tensorboard",
        "nilearn.datasets",
    ),
)
"""What a training imports; it takes longer than the training."""


@dataclass(frozen=True)
class Training:
    """What is trained and under which circumstances. The same seed, data and model every time.

    Args:
        folder: Where logs, checkpoints and the result go.
        treatment: :data:`OURS` or :data:`BARE`.
        seed: The seed.
        epochs: Number of epochs, an even one, as one circumstance validates every second.
        patches: Training patches in an epoch, two in a batch.
        accelerator: As Lightning names it.
        num_workers: Worker processes of the training loader.
        validate_every: Epochs between two validations.
        kill_at: The step after which the process kills itself with SIGKILL, as ``kill -9`` does.
        checkpoint: The checkpoint to resume from.
        shown: Whether to show a progress bar, and a picture at the end.
    """

    folder: str
    treatment: str = OURS
    seed: int = 3407
    epochs: int = 8
    patches: int = 64
    accelerator: str = "cpu"
    num_workers: int = 2
    validate_every: int = 1
    kill_at: int | None = None
    checkpoint: str | None = None
    shown: bool = False

    def command(self) -> list[str]:
        """Give the command that runs this training in a new interpreter, as the notebook does."""
        return [sys.executable, "-m", "repro_callbacks.command.demo.train", json.dumps(asdict(self))]

    @property
    def steps_in_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self.patches // 2


def fit(training: Training) -> dict[str, Any]:
    """Train, write ``result.json`` into the folder and return what is in it: digest of the weights, Dice, seconds."""
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger

    from repro_callbacks import Determinism, set_determinism
    from repro_callbacks.callbacks.base import NAMESPACES
    from repro_callbacks.command.demo.around import KillAt, ProgressBar, ProgressLines
    from repro_callbacks.command.demo.brain import BrainPatches, BrainSegmenter
    from repro_callbacks.command.demo.picture import draw_prediction
    from repro_callbacks.fingerprint.digest import digest_state

    for namespace in NAMESPACES:  # both log to the same place
        logging.getLogger(namespace).setLevel(logging.WARNING)  # no tips and no list of absent accelerators
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # it is resumed from
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # Lightning's, of torch
    folder = Path(training.folder)
    every = training.steps_in_epoch // 4 + 1  # so that the newest checkpoint lies in the middle of an epoch
    callbacks: list[L.Callback] = [
        ModelCheckpoint(folder / "checkpoints", every_n_train_steps=every, enable_version_counter=False),
        KillAt(training.kill_at),
    ]
    if training.shown:
        callbacks.append(ProgressBar(leave=True) if sys.stdout.isatty() else ProgressLines())

    if training.treatment == OURS:
        set_determinism(seed=training.seed)
        callbacks.append(Determinism(seed=training.seed))
    else:
        L.seed_everything(training.seed, workers=True, verbose=False)

    started = time.perf_counter()
    model = BrainSegmenter()
    data = BrainPatches(training.patches, num_workers=training.num_workers)
    logger = TensorBoardLogger(folder, name="", version="tensorboard")
    trainer = L.Trainer(
        accelerator=training.accelerator,
        devices=1,
        max_epochs=training.epochs,
        callbacks=callbacks,
        logger=logger,
        deterministic=None if training.treatment == OURS else True,
        check_val_every_n_epoch=training.validate_every,
        log_every_n_steps=8,
        enable_progress_bar=training.shown and sys.stdout.isatty(),
        enable_model_summary=False,
    )
    trainer.fit(model, data, ckpt_path=training.checkpoint)
    result = {
        "digest": digest_state(model),
        "steps": trainer.global_step,
        "seconds": round(time.perf_counter() - started, 1),
        **{name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "dice" in name},
    }
    if training.shown:
        figure = draw_prediction(model, data.back, data.front)
        figure.savefig(folder / "picture.png", dpi=110)
        logger.experiment.add_figure("front of the brain", figure, trainer.global_step)
        logger.experiment.flush()
    (folder / "result.json").write_text(json.dumps(result))
    return result


def main(training: Training) -> None:
    """Be the process of a training: on one thread, and silent unless it is shown."""
    import torch

    if not training.shown:
        with Path(training.folder, OUTPUT).open("ab") as output:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(output.fileno(), stream.fileno())
    torch.set_num_threads(1)
    # for the loader's workers; this process has inherited the method by which it was started itself
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    fit(training)


if __name__ == "__main__":
    fit(Training(**json.loads(sys.argv[1])))
