"""What we read of a Trainer that Lightning does not document, in one place.

Each has a test in ``tests/callbacks/test_trainer.py`` that says which name a new version of Lightning has moved.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from repro_callbacks.callbacks.base import namespace_of

_STAGES = {"train": "train", "sanity_check": "validate", "validate": "validate", "test": "test", "predict": "predict"}


class Step(NamedTuple):
    """Where a trainer is."""

    stage: str
    epoch: int
    batch: int


def stage_of(trainer: Any) -> str:
    """Return ``"train"``, ``"validate"`` (sanity check too), ``"test"``, ``"predict"``, or ``"setup"`` before any."""
    stage = trainer.state.stage
    return "setup" if stage is None else _STAGES[stage.value]


def step_of(trainer: Any) -> Step:
    """Return the stage, the epoch (0 outside of training) and how many batches of it have been handed out."""
    stage = stage_of(trainer)
    if stage == "train":
        return Step(stage, trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready)
    if stage == "setup":
        return Step(stage, 0, 0)
    return Step(stage, 0, eval_loop(trainer, stage).batch_progress.current.ready)


def eval_loop(trainer: Any, stage: str) -> Any:
    """Return the loop that runs a stage other than training."""
    if stage == "validate":
        fitting = trainer.state.fn is not None and trainer.state.fn.value == "fit"
        return trainer.fit_loop.epoch_loop.val_loop if fitting else trainer.validate_loop
    return trainer.test_loop if stage == "test" else trainer.predict_loop


def train_position(trainer: Any) -> tuple[int, int]:
    """Return the epoch, and how many of its batches are done, as the counters of a trainer will be once it trains.

    A resumed trainer corrects its counters only when its loops begin, and may fetch a batch before that (an iterable
    without a length is fetched one batch ahead). So the corrections are made here too.
    """
    fit_loop = trainer.fit_loop
    epochs, batches = fit_loop.epoch_progress.current, fit_loop.epoch_loop.batch_progress.current
    if not fit_loop.epoch_loop.restarting:
        return trainer.current_epoch, batches.ready
    if epochs.processed == epochs.ready:  # saved after the epoch's last batch was processed
        return epochs.processed, 0
    done = batches.completed
    if batches.ready == batches.processed == done + 1:  # saved in on_train_batch_end
        done += 1
    last = fit_loop.epoch_loop.batch_progress.is_last_batch or (fit_loop.max_batches and done >= fit_loop.max_batches)
    return (epochs.processed + 1, 0) if last and done else (epochs.processed, done)


def home_of(trainer: Any, loader: object) -> tuple[str, int, bool] | None:
    """Return the stage of a loader, its number among that stage's loaders, and whether it is begun again when short."""
    for stage, loop in _loops(trainer):
        combined = loop._combined_loader
        for number, candidate in enumerate(combined.flattened if combined is not None else ()):
            if candidate is loader:
                return stage, number, combined._mode == "max_size_cycle"
    return None


def unwrap_loaders(trainer: Any) -> None:
    """Put the user's own loaders back in place of keyed ones: a CombinedLoader may be an object of the user's."""
    from repro_callbacks.loading import KeyedLoader

    for _, loop in _loops(trainer):
        combined = loop._combined_loader
        if combined is not None:
            combined.flattened = [
                loader.wrapped if isinstance(loader, KeyedLoader) else loader for loader in combined.flattened
            ]


def data_sources(trainer: Any) -> Iterator[Any]:
    """Yield the user's own objects whose methods make and serve data: the module and the datamodule."""
    yield trainer.lightning_module
    if trainer.datamodule is not None:
        yield trainer.datamodule


def loader_epoch(trainer: Any) -> int:
    """Return the epoch in which the loaders in use now were made, or would have been in a run that never stopped."""
    every = trainer.reload_dataloaders_every_n_epochs
    epoch, _ = train_position(trainer)
    return (epoch // every) * every if every else 0


def set_reload_epoch(trainer: Any, epoch: float) -> None:
    """Tell a trainer in which epoch it has made its train loaders; minus infinity makes it make them anew."""
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def leave_finished_epoch(trainer: Any) -> None:
    """Let a resumed trainer with ``max_steps`` go on with the next epoch after one that was finished when it was saved.

    Lightning does so only without ``max_steps``; with it, it trains one more batch and ends the epoch a second time.
    """
    fit_loop = trainer.fit_loop
    if not (fit_loop.restarting and fit_loop.restarted_on_epoch_end and trainer.max_steps != -1):
        return
    for loop in (fit_loop, fit_loop.epoch_loop, fit_loop.epoch_loop.val_loop):
        loop._restarting = False  # not the property: with max_steps its setter makes True of False
        loop.reset_restart_stage()
    fit_loop.epoch_progress.increment_completed()


def saved_at_last_batch(trainer: Any) -> bool:
    """Whether a trainer is resumed from the last batch of an epoch, before the end of that epoch."""
    epoch_loop = trainer.fit_loop.epoch_loop
    return bool(epoch_loop.restarted_on_train_batch_end and epoch_loop.batch_progress.is_last_batch)


def begin_next_epoch(trainer: Any) -> None:
    """Let a trainer that was saved at the last batch of an epoch call the hooks of the next one's start, too.

    Where the loader has no length, Lightning does not see that the epoch has ended, and counts its batches on.
    """
    fit_loop = trainer.fit_loop
    fit_loop.reset_restart_stage()
    fit_loop._restarting = False  # of this loop alone; while it is True, plateau schedulers are not updated
    if fit_loop.max_batches == float("inf"):
        epoch_loop = fit_loop.epoch_loop
        epoch_loop._batches_that_stepped += not epoch_loop._should_accumulate()
        epoch_loop.batch_progress.increment_completed()
        epoch_loop._restarting = False
        epoch_loop.reset_restart_stage()


def lost_validation(trainer: Any) -> bool:
    """Whether a validation was due after the last batch of an epoch, at which a trainer was saved."""
    epoch_loop = trainer.fit_loop.epoch_loop
    every = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not isinstance(trainer.val_check_batch, int):
        return False
    if every is None:
        return bool((epoch_loop.total_batch_idx + 1) % trainer.val_check_batch == 0)
    return bool(
        (trainer.current_epoch + 1) % every == 0 and trainer.fit_loop.max_batches % trainer.val_check_batch == 0
    )


def end_saved_epoch(trainer: Any) -> None:
    """Do what a trainer saved at the last batch of an epoch leaves out: validate, and call the hooks of its end."""
    fit_loop = trainer.fit_loop
    val_loop, epochs = fit_loop.epoch_loop.val_loop, fit_loop.epoch_progress.current
    batches = fit_loop.epoch_loop.batch_progress
    # The counters as they are at that moment in a run that never stopped: the batch is completed, its epoch is not.
    epochs.completed -= 1
    batches.increment_completed()
    try:
        if lost_validation(trainer):
            val_loop._restarting = False
            trainer.validating = True
            try:
                val_loop.run()
            finally:
                trainer.training = True
        call = importlib.import_module(f"{namespace_of(trainer).__name__}.trainer.call")
        call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=False)
        call._call_lightning_module_hook(trainer, "on_train_epoch_end")
        call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=True)
    finally:
        epochs.completed += 1
        batches.total.completed -= 1
        batches.current.completed -= 1


def _loops(trainer: Any) -> list[tuple[str, Any]]:
    return [
        ("train", trainer.fit_loop),
        ("validate", trainer.fit_loop.epoch_loop.val_loop),
        ("validate", trainer.validate_loop),
        ("test", trainer.test_loop),
        ("predict", trainer.predict_loop),
    ]
