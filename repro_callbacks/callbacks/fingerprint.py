"""``Fingerprint``: a digest of every training step, to prove that two runs are equal or to find where they part."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from repro_callbacks.callbacks.base import Callback
from repro_callbacks.callbacks.observe import observe
from repro_callbacks.fingerprint import indices
from repro_callbacks.fingerprint.recorder import Recorder, check_every
from repro_callbacks.fingerprint.store import rank_path
from repro_callbacks.record import RunRecord

NAME: Final = "fingerprint"


class Fingerprint(Callback):
    """Write a digest of each training step: batch, generators, loss, gradients, weights, optimizer.

    Compare two files with ``repro-callbacks compare A B`` or :func:`repro_callbacks.compare`. Each rank writes a file
    of its own. The file is whole up to the last finished step, also after ``kill -9``; on an accelerator, up to the
    last but one, because waiting for each step would slow the training. A resumed run continues it: in the same file
    where ``path`` is given and the same, else in a new one that refers to the old. The callback draws nothing and
    changes nothing of the training. Its place among the other callbacks matters little: it looks at what goes into
    ``training_step`` itself.

    Args:
        path: A file, such as ``runs/a.jsonl``, or a folder. Default: ``fingerprint.rank0.jsonl`` beside the logs of the
            trainer's first logger, under another number where one is there. A file given here that holds a run already
            is appended to: the new run supersedes the old from its first step on.
        every: How often each digest is taken: 1 at every batch, 50 at every 50th, 0 never. The names, with their
            defaults: ``batch`` 1, ``generators`` 1, ``loss`` 1, ``gradients`` 1, ``parameters`` 1, ``optimizer`` 50
            (what it remembers of each parameter), ``validation`` 1. Schedule and learning rates are always taken.

    Raises:
        ValueError: If ``every`` names an unknown digest or a number that is not an integer of at least 0.
        FileExistsError: At the first step, if another run is writing the file, it is something else than a
            fingerprint, or it holds another run than the one that is resumed.

    Example:
        >>> Fingerprint(every={"parameters": 50}).every["parameters"]
        50
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, every: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self.every = check_every(every)
        self._recorder: Recorder | None = None
        self._resumed = False
        self._loaded: dict[str, Any] | None = None
        self._trainer: Any = None
        self._watching = False
        self._loaders: list[Any] = []
        self._end_observing: Callable[[], None] | None = None
        self._before_validation: dict[str, Any] = {}

    @property
    def file(self) -> Path | None:
        """The file that this rank writes, or wrote last; None before the training has begun."""
        return None if self._recorder is None else self._recorder.path

    # -- the course of a fit -------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look at which samples the loaders ask for, from before their iterators are made."""
        if stage == "fit" and not self._watching:
            indices.watch()
            self._watching = True

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Remember that this run goes on from a checkpoint."""
        self._resumed = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where the run that wrote the checkpoint was."""
        self._loaded = state_dict or None

    def state_dict(self) -> dict[str, Any]:
        """Return where the run is, as strings and integers."""
        if self._recorder is None or self._trainer is None:
            return {}
        return self._recorder.state(self._trainer.optimizers, _schedulers(self._trainer))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin: by now a checkpoint is restored in full."""
        self._trainer = trainer
        resumed = self._resumed or self._loaded is not None
        self._recorder = Recorder(self._path(trainer, resumed), self.every, trainer.global_rank, trainer.world_size)
        self._recorder.start(
            pl_module,
            trainer.optimizers,
            _schedulers(trainer),
            record=_record(trainer),
            resumed=resumed,
            state=self._loaded,
        )
        self._resumed, self._loaded = False, None
        self._unobserve()
        self._end_observing = observe(pl_module, self)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember the loaders, which a trainer may have made anew."""
        self._loaders = _leaves(trainer.train_dataloader)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a step."""
        if self._recorder is not None:
            number = trainer.fit_loop.epoch_loop.total_batch_idx
            self._recorder.begin_step(trainer.current_epoch, batch_idx, number)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Take the loss."""
        if self._recorder is not None:
            self._recorder.loss(loss)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Take the gradients after each backward pass, before they are clipped."""
        if self._recorder is not None and pl_module.automatic_optimization:
            self._recorder.gradients(trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """In manual optimization, take those of the optimizer that steps: others may hold what was left over."""
        if self._recorder is not None and not pl_module.automatic_optimization:
            self._recorder.gradients([optimizer])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the step and write its line."""
        if self._recorder is not None:
            self._recorder.end_step(trainer.global_step, trainer.optimizers, _schedulers(trainer))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember which metrics were there before."""
        self._before_validation = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the metrics of this validation; those that it didn't compute are of another one, or of the training."""
        if self._recorder is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        before, self._before_validation = self._before_validation, {}
        metrics = {
            name: value for name, value in trainer.callback_metrics.items() if value is not before.get(name, None)
        }
        batch = trainer.fit_loop.epoch_loop.batch_idx
        self._recorder.validation(trainer.current_epoch, batch, trainer.global_step, metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write that the training has ended by itself."""
        if self._recorder is not None:
            self._recorder.end(trainer.optimizers, _schedulers(trainer))
            self._recorder.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep what was recorded until an exception, after which Lightning calls no teardown."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close the file and leave the module as it was."""
        if self._recorder is not None:
            self._recorder.close()
        self._unobserve()
        if self._watching:
            indices.unwatch()
        self._watching, self._loaders = False, []

    # -- what it is told by training_step itself -----------------------------------------------------------------------

    def before_forward(self, batch: Any) -> None:
        """Take the batch and the generators. Called right before ``training_step``."""
        if self._recorder is not None:
            self._recorder.before_forward(batch, indices.last_indices(self._loaders))

    def after_forward(self) -> None:
        """Take the generators. Called right after ``training_step``."""
        if self._recorder is not None:
            self._recorder.after_forward()

    # ------------------------------------------------------------------------------------------------------------------

    def _unobserve(self) -> None:
        if self._end_observing is not None:
            self._end_observing()
        self._end_observing = None

    def _path(self, trainer: Any, resumed: bool) -> Path:
        """Choose the file; every rank takes the choice of rank 0."""
        if self.path is not None:
            given = self.path
            return given if given.suffix and not given.is_dir() else given / f"{NAME}.jsonl"
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        chosen, number = folder / f"{NAME}.jsonl", 1
        while not resumed and rank_path(chosen, 0).exists():
            number += 1
            chosen = folder / f"{NAME}-{number}.jsonl"
        return Path(trainer.strategy.broadcast(str(chosen)))

    def __getstate__(self) -> dict[str, Any]:
        # A launcher that spawns processes pickles the callbacks before any training; a file can't go with them.
        return {
            **vars(self),
            "_recorder": None,
            "_trainer": None,
            "_end_observing": None,
            "_watching": False,
            "_loaders": [],
            "_before_validation": {},
        }


def _leaves(loaders: Any) -> list[Any]:
    """Return the loaders in nested lists and mappings of them, in their order."""
    if isinstance(loaders, Mapping):
        return [leaf for member in loaders.values() for leaf in _leaves(member)]
    if isinstance(loaders, list | tuple):
        return [leaf for member in loaders for leaf in _leaves(member)]
    iterables = getattr(loaders, "iterables", None)  # of a CombinedLoader
    return [loaders] if iterables is None else _leaves(iterables)


def _schedulers(trainer: Any) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _record(trainer: Any) -> RunRecord:
    """Return the record that another callback has captured, else capture one."""
    for callback in trainer.callbacks:
        record = getattr(callback, "record", None)
        if isinstance(record, RunRecord):
            return record
    seed = os.environ.get("PL_GLOBAL_SEED", "")  # seed_everything leaves it there
    return RunRecord.capture(seed=int(seed) if seed.isdecimal() else None)
