"""Puts the callbacks that ``run`` asked for into a Trainer for the time of one call, and lets a fit go on from a kill.

Lightning's entry point can give callbacks, but sees no Trainer: it can't know whether the script has a ``Determinism``
of its own, and no hook of a callback can choose the checkpoint that a fit goes on from. So below ``run``, and only
there, the four public methods that start a Trainer are wrapped.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from repro_callbacks.callbacks import settings as settings_module
from repro_callbacks.callbacks.base import installed_namespaces
from repro_callbacks.callbacks.control import Control
from repro_callbacks.callbacks.determinism import Determinism
from repro_callbacks.callbacks.fingerprint import Fingerprint
from repro_callbacks.callbacks.seeding import Seeding
from repro_callbacks.callbacks.settings import Settings, fingerprint_path, trace_path
from repro_callbacks.callbacks.zoom import RecordOperators, StepRecorded

ENTRIES: Final = ("fit", "validate", "test", "predict")

_installed = False
_fits = 0


def install(settings: Settings) -> None:
    """Wrap the Trainers of every namespace, once in a process."""
    global _installed
    if _installed:
        return
    _installed = True
    _check_start(settings)
    for namespace in installed_namespaces():
        for name in ENTRIES:
            setattr(namespace.Trainer, name, _controlled(getattr(namespace.Trainer, name)))


def _controlled(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def entry(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        control = next((callback for callback in trainer.callbacks if isinstance(callback, Control)), None)
        if control is None:  # made before `run` was in force, or taken out by the script
            return original(trainer, *args, **kwargs)
        with _arranged(trainer, control, original.__name__):
            if original.__name__ == "fit" and control.fit and control.fit == control.settings.resume:
                bound = signature.bind(trainer, *args, **kwargs)
                bound.arguments["ckpt_path"] = control.settings.checkpoint
                bound.arguments["weights_only"] = False  # our own file; it may hold the user's hyperparameters
                return original(*bound.args, **bound.kwargs)
            return original(trainer, *args, **kwargs)

    return entry


@contextmanager
def _arranged(trainer: Any, control: Control, entry: str) -> Iterator[None]:
    """Have the callbacks in the trainer while it runs; afterwards its list is as it was."""
    global _fits
    control.fit = 0
    if entry == "fit" and not _is_trial(trainer):
        _fits += 1
        control.fit = _fits
    settings, before = control.settings, trainer.callbacks
    place = before.index(control)
    others = [callback for callback in before if callback is not control]
    own = [callback for callback in others if isinstance(callback, Determinism)]
    added: list[Any] = []
    if not own:
        if control.determinism is None:
            control.determinism = _determinism(settings)
        added.append(control.determinism)
    if settings.fingerprint is not None and control.fit:
        added.append(RunFingerprint(fingerprint_path(settings.fingerprint, control.fit)))
    # last, so that it saves and stops when the others, ModelCheckpoint too, are done with the step
    last: list[Any] = [control]
    if settings.zoom is not None and control.fit == settings.zoom[0]:
        last.append(RunOperators(settings))
    trainer.callbacks = [*others[:place], *added, *others[place:], *last]
    try:
        with _overridden(own, settings):
            yield
    finally:
        trainer.callbacks = [callback for callback in trainer.callbacks if callback not in (*added, *last)]
        trainer.callbacks.insert(min(place, len(trainer.callbacks)), control)


class RunFingerprint(Fingerprint):
    """The fingerprint that ``run`` adds; in a checkpoint it stands beside one that the script has of its own."""

    @property
    def state_key(self) -> str:
        """Its name in a checkpoint."""
        return "repro_callbacks.run.Fingerprint"


class RunOperators(RecordOperators):
    """Records the operators of the step that is asked for, writes them, and ends the process as ``kill -9`` does."""

    def __init__(self, settings: Settings) -> None:
        assert settings.zoom is not None
        _, epoch, batch, *keep = settings.zoom
        super().__init__(epoch, batch, keep)
        self._path = settings.trace

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write what was recorded, and end."""
        with contextlib.suppress(StepRecorded):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.trace is None:
            return
        if self._path is None:
            raise ValueError("to record the operators of a step, Settings needs a file for them")
        self.trace.save(trace_path(self._path, trainer.global_rank))
        trainer.strategy.barrier("repro_callbacks.zoom")
        os.kill(os.getpid(), signal.SIGKILL)


def _determinism(settings: Settings) -> Determinism:
    return Determinism(
        settings.seed,
        deterministic=True if settings.deterministic is None else settings.deterministic,
        seeds=settings.seeds,
        num_workers=settings.num_workers,
        log=settings.log,
    )


@contextmanager
def _overridden(own: list[Any], settings: Settings) -> Iterator[None]:
    """Let what was asked for on the command line win over the script's own ``Determinism``."""
    before = [(callback._seeding, callback.deterministic, callback.num_workers) for callback in own]
    for callback in own:
        if settings.seed is not None or settings.seeds:
            seeds = {**callback._seeding.given_seeds, **settings.seeds}
            callback._seeding = Seeding(callback._seeding.given if settings.seed is None else settings.seed, seeds)
        if settings.deterministic is not None:
            callback.deterministic = settings.deterministic
        if settings.num_workers is not None:
            callback.num_workers = settings.num_workers
    try:
        yield
    finally:
        for callback, (seeding, deterministic, num_workers) in zip(own, before, strict=True):
            callback._seeding, callback.deterministic, callback.num_workers = seeding, deterministic, num_workers


def _is_trial(trainer: Any) -> bool:
    """Say whether ``Tuner`` calls: it looks for a learning rate or a batch size, and the fit is not one of the user."""
    # The Tuner marks its callback so (lightning.pytorch.tuner.tuning); there is no public sign.
    return any(getattr(callback, "_early_exit", False) for callback in trainer.callbacks)


def _check_start(settings: Settings) -> None:
    """Warn where the seeds are not in force from the script's first line on."""
    import torch

    if not settings_module.started():
        warnings.warn(
            "this Python was not seeded when it started, since PYTHONPATH was replaced below `repro-callbacks run`, "
            "or Python was started with -I, -E or -S: what is drawn before the fit, such as the initial weights, is "
            "not repeatable; extend PYTHONPATH (PYTHONPATH=src:$PYTHONPATH) or leave the option out",
            stacklevel=2,
        )
    elif settings.seed is not None and torch.initial_seed() != settings.start_seed:
        warnings.warn(
            f"the script seeds torch itself, with {torch.initial_seed()}: what it draws before the fit, such as the "
            f"initial weights, does not follow --seed {settings.seed}; take that call out, or make it "
            "seed_everything or set_determinism, which follow",
            stacklevel=2,
        )
