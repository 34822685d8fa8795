"""Faults of Lightning's resume that have nothing to do with randomness, repaired."""

from __future__ import annotations

from typing import Any


class Repairs:
    """What a resumed run would lose.

    ``ReduceLROnPlateau``, stepped per epoch: a checkpoint at the end of an epoch or of its validation is written before
    the update, and Lightning skips the update when it resumes. So the monitored value is kept with the checkpoint,
    and the update is made up for at the start of the next epoch, if nobody has made it by then.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] = []

    def state_dict(self, trainer: Any) -> dict[str, Any]:
        """Return the plateau schedulers' monitored values, as plain values."""
        plateaus = []
        for number, config in enumerate(trainer.lr_scheduler_configs):
            if config.reduce_on_plateau and config.interval == "epoch":
                value = trainer.callback_metrics.get(config.monitor)
                plateaus.append(
                    {
                        "scheduler": number,
                        "epoch": trainer.current_epoch,
                        "steps": config.scheduler.last_epoch,
                        "value": None if value is None else float(value),
                    }
                )
        return {"plateaus": plateaus}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._pending = list(state.get("plateaus", []))

    def on_train_start(self, trainer: Any) -> None:
        """Nothing yet."""

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Make the update that the resume has skipped."""
        pending, self._pending = self._pending, []
        for saved in pending:
            config = trainer.lr_scheduler_configs[saved["scheduler"]]
            due = (saved["epoch"] + 1) % config.frequency == 0 and trainer.current_epoch == saved["epoch"] + 1
            if due and saved["value"] is not None and config.scheduler.last_epoch == saved["steps"]:
                config.scheduler.step(saved["value"])
