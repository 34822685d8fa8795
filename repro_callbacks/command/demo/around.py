"""What the demo puts around a training: a progress bar, or a line an epoch without a terminal, and ``kill -9``."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from repro_callbacks.callbacks.base import Callback


class KillAt(Callback):
    """Kill this process as ``kill -9`` does, after a step: nothing is saved and nothing is closed.

    Args:
        step: The optimizer step, counted from 1; None for never.
    """

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Kill."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class ProgressBar(RichProgressBar):  # type: ignore[misc]
    """Lightning's bar without the version number of the logger."""

    def get_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """Give what stands beside the bar."""
        shown: dict[str, Any] = super().get_metrics(trainer, module)
        shown.pop("v_num", None)
        return shown


class ProgressLines(Callback):
    """A line an epoch, for output that is not a terminal."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Print epoch, loss and Dice."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in sorted(metrics, reverse=True))
        print(f"  epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {shown}", flush=True)
