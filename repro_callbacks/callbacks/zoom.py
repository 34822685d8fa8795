"""One training step of a Trainer, run again in two settings, to name the first operator in which they differ."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

from repro_callbacks.callbacks.base import Callback
from repro_callbacks.callbacks.observe import observe
from repro_callbacks.fingerprint.operators import OperatorDifference, OperatorRecorder, OperatorTrace, zoom_with


class StepRecorded(Exception):
    """Ends a fit once its step is recorded."""


class RecordOperators(Callback):
    """Records every operator of one training step, from its forward pass to the optimizer, and ends the fit behind it.

    Put it last, so that what other callbacks do at the end of the step is recorded too.

    Args:
        epoch: From 0.
        batch: Within the epoch, from 0.
        keep: Numbers of operators whose outputs are kept.

    Attributes:
        trace: The operators; None until the step was run.

    Raises:
        StepRecorded: Out of ``fit``, when the step is done.
    """

    def __init__(self, epoch: int, batch: int, keep: Collection[int] = ()) -> None:
        super().__init__()
        self.at = (epoch, batch)
        self.trace: OperatorTrace | None = None
        self._keep = keep
        self._recorder: OperatorRecorder | None = None
        self._module: Any = None
        self._here = False
        self._end_observing: Callable[[], None] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at ``training_step``."""
        self._module = pl_module
        self._end_observing = observe(pl_module, self)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Tell whether this is the step."""
        self._here = (trainer.current_epoch, batch_idx) == self.at

    def before_forward(self, batch: Any) -> None:
        """Begin to record. Called right before ``training_step``."""
        if self._here and self._recorder is None:
            self._recorder = OperatorRecorder(self._module, self._keep)
            self._recorder.__enter__()

    def after_forward(self) -> None:
        """Go on: the backward pass and the optimizer follow."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the recording, and the fit."""
        if self._recorder is not None:
            self._stop()
            raise StepRecorded

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave nothing behind, after which Lightning calls no teardown."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave nothing behind."""
        self._stop()
        if self._end_observing is not None:
            self._end_observing()
        self._end_observing, self._module = None, None

    def _stop(self) -> None:
        if self._recorder is not None:
            self._recorder.__exit__(None, None, None)
            self.trace, self._recorder = self._recorder.trace, None


def zoom_fit(
    fit_a: Callable[[RecordOperators], Any], fit_b: Callable[[RecordOperators], Any], *, epoch: int, batch: int
) -> OperatorDifference | None:
    """Run one training step in two settings, and name the first operator in which they differ.

    Each fit runs up to the step, twice. Let it go on from the nearest checkpoint before the step: with
    ``Determinism``, the batch and the random numbers of the step are those of the run that was never stopped.

    Args:
        fit_a: Takes its setting, makes module and trainer, with the callback that it is given at the end of the list,
            and calls ``trainer.fit(..., ckpt_path=...)``.
        fit_b: The same in the other setting.
        epoch: Of the step, from 0, as :func:`~repro_callbacks.compare` gives it.
        batch: Within the epoch, from 0.

    Returns:
        The first operator in which they differ; None if the step is the same in both.

    Raises:
        ValueError: If a fit ends without having come to the step.
    """

    def trace(fit: Callable[[RecordOperators], Any], keep: Collection[int]) -> OperatorTrace:
        callback = RecordOperators(epoch, batch, keep)
        with contextlib.suppress(StepRecorded):
            fit(callback)
        if callback.trace is None:
            raise ValueError(
                f"the fit ended without having trained epoch {epoch}, batch {batch}: let it begin before that step, "
                "train long enough, and have the callback it is given"
            )
        return callback.trace

    return zoom_with(lambda keep: trace(fit_a, keep), lambda keep: trace(fit_b, keep))
