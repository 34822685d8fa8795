"""Faults of Lightning's resume that have nothing to do with randomness, repaired."""

from __future__ import annotations

from typing import Any

from repro_callbacks.callbacks import trainer as trainers


class Repairs:
    """What a resumed run would lose, and gets back.

    - ``ReduceLROnPlateau``, stepped per epoch: Lightning skips its update at the end of the epoch in which a run is
      resumed, and at the end of one that was saved before the update. So the monitored value is kept with the
      checkpoint, and the update is made when the next epoch begins, if nobody has made it by then.
    - A run that was saved at the last batch of an epoch skips that epoch's validation, the hooks of its end, and those
      of the next one's start. All are made up for. (Metrics that the epoch has gathered are gone.)
    - With ``max_steps``, a run that is resumed from the end of an epoch trains one batch more and ends the epoch twice.
    - With ``reload_dataloaders_every_n_epochs``, a resumed run counts the epochs to the next reload anew.
    """

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] = []
        self._loaders_made: int | None = None

    def state_dict(self, trainer: Any) -> dict[str, Any]:
        """Return what the plateau schedulers monitor, as plain values."""
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

    def note_loaders(self, trainer: Any) -> None:
        """Note for which epoch the train loaders are made."""
        self._loaders_made = trainers.loader_epoch(trainer)

    def on_train_start(self, trainer: Any) -> None:
        """Make up for a lost validation, and set the counters right."""
        trainers.leave_finished_epoch(trainer)
        if trainers.saved_at_last_batch(trainer):
            trainers.end_saved_epoch(trainer)
            trainers.begin_next_epoch(trainer)
        if trainer.reload_dataloaders_every_n_epochs:
            right = self._loaders_made in (None, trainers.loader_epoch(trainer))
            # An optimizer that asks for the number of steps has the loaders made before the epoch is known.
            trainers.set_reload_epoch(trainer, trainers.loader_epoch(trainer) if right else float("-inf"))

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Make the update of a plateau scheduler that the resume has skipped."""
        self.make_up_for_plateaus(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Count the epochs to the next reload as a run that never stopped does."""
        if trainer.reload_dataloaders_every_n_epochs:
            trainers.set_reload_epoch(trainer, trainers.loader_epoch(trainer))

    def make_up_for_plateaus(self, trainer: Any, epoch: int) -> None:
        """Make the updates due before ``epoch`` that nobody has made."""
        due = [saved for saved in self._pending if saved["epoch"] + 1 == epoch]
        self._pending = [saved for saved in self._pending if saved["epoch"] + 1 > epoch]
        for saved in due:
            config = trainer.lr_scheduler_configs[saved["scheduler"]]
            monitored = trainer.callback_metrics.get(config.monitor)  # of the rest of the epoch, if it was trained here
            value = saved["value"] if monitored is None else float(monitored)
            if epoch % config.frequency == 0 and value is not None and config.scheduler.last_epoch == saved["steps"]:
                config.scheduler.step(value)
