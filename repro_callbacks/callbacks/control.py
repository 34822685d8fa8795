"""What ``repro-callbacks run`` and ``verify`` need of a Trainer: progress, result, and a kill at a chosen step."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any, Final

from repro_callbacks.callbacks.base import Callback
from repro_callbacks.callbacks.settings import PROGRESS, SEEN, STOPPED, Settings, write_atomically, write_json
from repro_callbacks.fingerprint.digest import digest_state

_PROGRESS_SECONDS: Final = 0.2


class Control(Callback):
    """Tells the process above how far a trainer is, what came out, and dies where it is told to.

    It draws nothing, changes nothing of the training and keeps no state in a checkpoint.

    Args:
        settings: What ``run`` asked for.

    Example:
        >>> Control(Settings(start_seed=0)).state_dict()
        {}
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.fit = 0  # which fit of the process this is, from 1; 0: not one that counts
        self.determinism: Any = None  # the one that was added to this trainer, the same in all that it runs
        self._told = 0.0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave a sign that a trainer ran under our control."""
        if self.settings.state is not None:
            (self.settings.state / SEEN).touch()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell the step, and stop if it is the one."""
        if self.fit == 0:
            return
        if trainer.is_global_zero and time.monotonic() - self._told > _PROGRESS_SECONDS:
            self._tell(trainer)
        stop = self.settings.stop
        if stop is not None and stop[0] == self.fit and trainer.global_step >= stop[1]:
            self._die(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell the last step, and that the fit came to its end."""
        if self.fit == 0 or self.settings.state is None or not trainer.is_global_zero:
            return
        self._tell(trainer)
        write_json(self.settings.state / f"fit-{self.fit}.json", {"fit": self.fit, "steps": trainer.global_step})

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Add to the result: the metrics of this stage over those of earlier ones, and the weights of the last fit."""
        path = self.settings.result
        if path is None or not trainer.is_global_zero or (stage == "fit" and self.fit == 0):
            return
        result = json.loads(path.read_text()) if path.exists() else {"metrics": {}, "weights": None}
        result["metrics"] |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        if stage == "fit":
            result["weights"] = digest_state(pl_module)
        write_json(path, result)

    def _tell(self, trainer: Any) -> None:
        self._told = time.monotonic()
        if self.settings.state is not None:
            write_atomically(self.settings.state / PROGRESS, f"{self.fit} {trainer.global_step}")

    def _die(self, trainer: Any) -> None:
        """Save a checkpoint as ``ModelCheckpoint(every_n_train_steps=...)`` does, and end as ``kill -9`` ends."""
        if self.settings.checkpoint is None or self.settings.state is None:
            raise ValueError("to stop at a step, Settings needs a checkpoint and a state folder")
        trainer.save_checkpoint(self.settings.checkpoint)
        trainer.strategy.checkpoint_io.teardown()  # a checkpoint that is written in the background is waited for
        if trainer.is_global_zero:
            write_json(self.settings.state / STOPPED, {"fit": self.fit, "step": trainer.global_step})
        trainer.strategy.barrier("repro_callbacks.stop")
        os.kill(os.getpid(), signal.SIGKILL)
