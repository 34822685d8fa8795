"""``FingerprintHandler``: a digest of every iteration of an engine of MONAI or Ignite."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from repro_callbacks.fingerprint import indices
from repro_callbacks.fingerprint.recorder import Recorder, check_every
from repro_callbacks.handlers import engine as engines
from repro_callbacks.handlers.attachment import rank
from repro_callbacks.handlers.engine import Events
from repro_callbacks.record import RunRecord

_OPTIMIZERS: Final = ("optimizer", "g_optimizer", "d_optimizer")


class FingerprintHandler:
    """Write a digest of each iteration of a training: batch, generators, loss, gradients, weights, optimizer.

    Compare two files with ``repro-callbacks compare A B`` or :func:`repro_callbacks.compare`. The file is whole up to
    the last finished iteration, also after ``kill -9``; on an accelerator, up to the last but one. The handler draws
    nothing and changes nothing of the training. Of a MONAI trainer, loss and gradients are taken at its events. Of an
    engine that has none, the loss is what the process function returns (or its entries that are called so), and the
    gradients are those that are there then. Attach it to an evaluator too, to record its metrics.

    To let a resumed run continue the file, put the handler into the ``save_dict`` of ``CheckpointSaver`` and the
    ``load_dict`` of ``CheckpointLoader``.

    Args:
        path: A file, such as ``runs/a.jsonl``, or a folder for ``fingerprint.rank0.jsonl``. A file that holds a run
            already is appended to: the new run supersedes the old from its first iteration on.
        every: How often each digest is taken, as in :class:`~repro_callbacks.Fingerprint`.
        module: What is trained; None: the networks of a MONAI trainer.
        optimizers: None: those of a MONAI trainer.
        schedulers: The schedulers of the learning rate, whose states are to be recorded.

    Raises:
        ValueError: If ``every`` is refused, or, when a run starts, if nothing is known to be trained.
        FileExistsError: At the first iteration, as in :class:`~repro_callbacks.Fingerprint`.

    Example:
        >>> FingerprintHandler("runs/a", every={"parameters": 50}).every["parameters"]
        50
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: Mapping[str, int] | None = None,
        module: nn.Module | None = None,
        optimizers: Sequence[Any] | None = None,
        schedulers: Sequence[Any] = (),
    ) -> None:
        given = Path(path)
        self.path = given if given.suffix and not given.is_dir() else given / "fingerprint.jsonl"
        self.every = check_every(every)
        self.schedulers = schedulers
        self._module, self._optimizers = module, optimizers
        self._recorder: Recorder | None = None
        self._loaded: dict[str, Any] | None = None
        self._epoch_began_at = 0
        self._position = (0, 0)
        self._told = False
        self._begun = False
        self._trained_by: Sequence[Any] = ()

    @property
    def file(self) -> Path | None:
        """The file that this rank writes, or wrote last; None before the training has begun."""
        return None if self._recorder is None else self._recorder.path

    def attach(self, engine: Any) -> None:
        """Record what an engine does from its next run on.

        Args:
            engine: A trainer; or an evaluator of MONAI's, whose metrics are recorded at the place of the training.

        Raises:
            TypeError: If it is not an engine of MONAI or Ignite.
        """
        engines.check_engine(engine)
        if engines.is_evaluator(engine):
            engine.add_event_handler(Events.COMPLETED, self._validated)
            return
        engine.run = self._closing(engine, engine.run)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        if engines.is_trainer(engine):
            from monai.engines.utils import IterationEvents

            engine.register_events(*IterationEvents)
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._forward_completed)
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._loss_completed)
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._backward_completed)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where the run is, as strings and integers."""
        recorder = self._recorder
        return {} if recorder is None else recorder.state(self._trained_by, self.schedulers)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Remember where the run that wrote the checkpoint was."""
        self._loaded = dict(state_dict)

    # -- events --------------------------------------------------------------------------------------------------------

    def _closing(self, engine: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def recorded_run(*args: Any, **kwargs: Any) -> Any:
            self._begun = False
            indices.watch()
            try:
                return run(*args, **kwargs)
            finally:
                indices.unwatch()
                if self._recorder is not None:
                    self._recorder.close()

        return recorded_run

    def _start(self, engine: Any) -> None:
        networks = engines.networks(engine)
        module = self._module or (nn.ModuleDict(networks) if len(networks) > 1 else next(iter(networks.values()), None))
        if module is None:
            raise ValueError(f"{type(engine).__name__} does not say what it trains: give FingerprintHandler its module")
        found = [getattr(engine, name, None) for name in _OPTIMIZERS]
        self._trained_by = [own for own in found if own is not None] if self._optimizers is None else self._optimizers
        resumed = bool(self._loaded) or engine.state.iteration > 1
        world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        self._recorder = Recorder(self.path, self.every, rank(), world_size)
        handler = getattr(getattr(engine.run, "attachment", None), "handler", None)
        record = getattr(handler, "record", None) or RunRecord.capture()
        self._recorder.start(
            module, self._trained_by, self.schedulers, record=record, resumed=resumed, state=self._loaded
        )
        self._loaded, self._begun = None, True

    def _epoch_started(self, engine: Any) -> None:
        self._epoch_began_at = engine.state.iteration

    def _iteration_started(self, engine: Any) -> None:
        if not self._begun:
            self._start(engine)
        assert self._recorder is not None
        done, length = engine.state.iteration - 1, engine.state.epoch_length
        batch = done % length if length else done - self._epoch_began_at
        self._position = (engine.state.epoch - 1, batch)
        self._told = False
        self._recorder.begin_step(*self._position, done)
        self._recorder.before_forward(engine.state.batch, indices.last_indices([engine.state.dataloader]))

    def _forward_completed(self, engine: Any) -> None:
        assert self._recorder is not None
        self._recorder.after_forward()

    def _loss_completed(self, engine: Any) -> None:
        assert self._recorder is not None
        self._recorder.loss(engine.state.output["loss"])
        self._told = True

    def _backward_completed(self, engine: Any) -> None:
        assert self._recorder is not None
        self._recorder.gradients(self._trained_by)

    def _iteration_completed(self, engine: Any) -> None:
        assert self._recorder is not None
        if not self._told:  # an engine that does not tell of its loss and its backward pass
            for loss in _losses(engine.state.output):
                self._recorder.loss(loss)
            self._recorder.after_forward()
            self._recorder.gradients(self._trained_by)
        self._recorder.end_step(engine.state.iteration, self._trained_by, self.schedulers)

    def _validated(self, engine: Any) -> None:
        if self._recorder is not None and self._begun:
            numbers = {name: value for name, value in engine.state.metrics.items() if _is_number(value)}
            self._recorder.validation(*self._position, self._position[1] + 1, numbers)

    def _completed(self, engine: Any) -> None:
        if self._recorder is not None:
            self._recorder.end(self._trained_by, self.schedulers)


def _losses(output: Any) -> list[Any]:
    """Return the losses in what a process function has returned: the output itself, or what is called so in it."""
    if isinstance(output, Mapping):
        return [value for name, value in output.items() if "loss" in str(name).lower()]
    return [] if output is None else [output]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "__float__") and getattr(value, "size", 1) in (1, ()))
