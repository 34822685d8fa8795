"""Names the operator behind a first divergence: the step runs again in both settings, from a checkpoint before it.

The checkpoint is the reference's own, saved at the optimizer step before: up to there both runs agree. What is random
in the step is a function of its position, so that it comes out as it did in the runs that were compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from repro_callbacks.callbacks.settings import Settings, trace_path
from repro_callbacks.command import trials
from repro_callbacks.command.launch import CannotRun
from repro_callbacks.command.trials import Trial

if TYPE_CHECKING:
    from repro_callbacks.fingerprint.compare import Divergence
    from repro_callbacks.fingerprint.operators import OperatorTrace

FIELDS: Final = frozenset({"loss", "buffers", "gradients", "optimizer", "parameters"})
"""The digests that operators of the step compute: a first difference in another has come from outside of it."""
FOLDER: Final = "zoom"


def can_zoom(trial: Trial, divergence: Divergence) -> bool:
    """Say whether there is an operator to look for: the step's own inputs agree, and the run was not resumed."""
    return bool(trial.circumstance.resume_at is None and divergence.step and FIELDS.issuperset(divergence.fields[:1]))


def zoom(
    reference: Trial,
    trial: Trial,
    fit: int,
    divergence: Divergence,
    command: Sequence[str],
    settings: Settings,
    watch: Callable[[Path], None],
    timeout: float | None = None,
) -> str:
    """Run the step in which two runs part again in both settings, and return the first operator in words.

    Args:
        reference: The run that the other is compared with.
        trial: The other run.
        fit: Which fit of the process.
        divergence: The first, of these two runs.
        command: The training command.
        settings: What is common to all runs.
        watch: Called some times a second with the folder in which the progress is told.
        timeout: Seconds for one start of the command.

    Raises:
        CannotRun: If a run does not come to that step.
    """
    from repro_callbacks.fingerprint.operators import OperatorTrace, zoom_with

    epoch, batch, step = divergence.epoch, divergence.batch, divergence.step
    assert epoch is not None
    assert batch is not None
    assert step is not None
    folder = trial.folder / FOLDER
    folder.mkdir()
    starts = iter(range(1000))

    def start(side: Trial, own: Settings) -> Trial:
        again = Trial(side.circumstance, folder)
        state = folder / f"state-{next(starts)}"
        trials.start(
            again, command, replace(own, num_workers=side.circumstance.num_workers, state=state), watch, timeout
        )
        shutil.rmtree(state)
        return again

    checkpoint = folder / "before.ckpt"
    if step > 1:
        again = start(reference, replace(settings, stop=(fit, step - 1), checkpoint=checkpoint))
        if not checkpoint.exists():
            raise CannotRun(f"the reference did not come to step {step - 1} again{trials.tail(again)}")
        settings = replace(settings, resume=fit, checkpoint=checkpoint)

    def trace(side: Trial, name: str, keep: Collection[int]) -> OperatorTrace:
        path = trace_path(folder / f"{name}.pt", divergence.rank or 0)
        path.unlink(missing_ok=True)
        again = start(side, replace(settings, zoom=(fit, epoch, batch, *keep), trace=folder / f"{name}.pt"))
        if not path.exists():
            raise CannotRun(f"epoch {epoch}, batch {batch} was not reached again{trials.tail(again)}")
        return OperatorTrace.load(path)

    try:
        found = zoom_with(lambda keep: trace(reference, "a", keep), lambda keep: trace(trial, "b", keep))
    finally:
        checkpoint.unlink(missing_ok=True)  # as large as the model, and of no use to anybody now
    if found is None:
        return (
            "Run again from the step before, this step came out the same in both settings: it does not differ each "
            "time, or what differs was not in the checkpoint."
        )
    return found.sentence
