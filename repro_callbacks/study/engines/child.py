"""What happens inside the process of one run. A fork of the nursery and a new interpreter both come through here."""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NoReturn

from repro_callbacks.study.engines import preload
from repro_callbacks.study.results import ResultError
from repro_callbacks.study.targets import Target
from repro_callbacks.study.task import LOG, RECORD, Context, Outcome, Task

IMPORTS: Final = "imports.json"
DRAWN_VARIABLE: Final = "SEED_STUDY_IMPORTS_DREW"
"""In a fork: how many words of 32 bits the imports have drawn from Python's generator."""
RUN_DIRECTORY_VARIABLE: Final = "SEED_STUDY_RUN_DIR"
"""Names the run's own folder, for whatever a training wants to leave there."""


def run(context: Context, target: Target, task: Task, known: Collection[str] | None = None) -> NoReturn:
    """Run a task in this process, which ends with it. The outcome is left in the task's folder.

    Nothing is left behind for the next run: there is none in this process.

    Args:
        context: What all runs have in common.
        target: What to run.
        task: The run.
        known: If given, leave a list of the modules that were imported besides these, too.
    """
    _forget_entropy()
    outcome = execute(context, target, task)
    if known is not None and outcome.status == "done":
        Path(task.folder, IMPORTS).write_text(json.dumps(preload.imported_since(known)))
    outcome.save(task.folder, context.study)
    leave()


def execute(context: Context, target: Target, task: Task) -> Outcome:
    """Run a task in this process and return how it ended, whatever it raised."""
    started = time.perf_counter()
    failed = Outcome(task.name, task.attempt, "failed")
    try:
        return train(context, target, task)
    except ResultError as error:
        failed = dataclasses.replace(failed, cause="metric", error=str(error))
    except SystemExit as error:
        cause, text = _left(error.code)
        failed = dataclasses.replace(failed, cause=cause, error=text)
    except BaseException as error:  # noqa: BLE001 - whatever ends a run is its outcome, and is reported
        traceback.print_exc()
        failed = dataclasses.replace(failed, cause="raised", error=_in_one_line(error))
    return dataclasses.replace(failed, seconds=time.perf_counter() - started)


def train(context: Context, target: Target, task: Task) -> Outcome:
    """Seed, keep the run's record, run a task in this process and return what it gave. What it raises is raised."""
    import torch

    from repro_callbacks import generators
    from repro_callbacks.record import RunRecord

    torch.set_num_threads(context.threads)
    generators.seed_all(task.seeds["init"])
    record = RunRecord.capture(seed=task.base, seeds=task.seeds, extra={"study": target.name, "run": task.name})
    record = dataclasses.replace(record, command=list(context.command))  # not that of the process that was forked
    record.save(Path(task.folder, RECORD))
    started = time.perf_counter()
    result = target.call(task).named(context.metric)
    return Outcome(
        name=task.name,
        attempt=task.attempt,
        status="done",
        metrics=result.metrics,
        weights=result.weights,
        cases=result.cases,
        seconds=time.perf_counter() - started,
    )


def enter(context: Context, task: Task, parent: int) -> None:
    """Make this process the run's own: it dies with its parent, writes to its log and has its settings.

    Args:
        context: What all runs have in common.
        task: The run.
        parent: The process that started it.
    """
    _die_with(parent)
    log = os.open(Path(task.folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, standard in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, standard)
    os.close(log)
    os.close(nothing)
    sys.path[:] = context.path
    # Runs side by side would otherwise race for lightning_logs/version_N of one working directory, and take each
    # other's checkpoints for their own.
    os.environ["PL_TRAINER_DEFAULT_ROOT_DIR"] = task.folder
    os.environ[RUN_DIRECTORY_VARIABLE] = task.folder


def _forget_entropy() -> None:
    """Give MONAI's transforms that nobody seeds a new start from entropy, as a new interpreter would have.

    They share a generator that was seeded when MONAI was imported. In a fork it is the parent's, the same for every
    run, and a pipeline that nobody seeded would look repeatable.
    """
    transform = sys.modules.get("monai.transforms.transform")
    if transform is not None:
        import numpy as np

        transform.Randomizable.R = np.random.RandomState()


def disown() -> None:
    """Leave what the parent's imports want to have cleared away when they end (temporary files, registries) to it.

    A fork would clear it away a second time, and for torch's operators alone that takes half as long as a fork does.
    """
    # There is no public way to list them.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False


def _left(code: object) -> tuple[str, str]:
    if (
        isinstance(code, int) and 128 < code <= 128 + signal.NSIG
    ):  # as shells and `run` tell that a signal ended a command
        return "killed", f"a process of it was killed by {signal.Signals(code - 128).name}"
    return "exit", f"left by sys.exit({code!r})"


def _in_one_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())[:500]


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, so that no run outlives its study."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be asked for
        os._exit(1)


def leave() -> NoReturn:
    """End the process as multiprocessing ends its own: threads joined, exit handlers run, memory not torn down.

    Tearing down torch, Lightning and MONAI takes a third of a second, which nobody reads anything from.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main(context_file: str, task_file: str, parent: str) -> NoReturn:
    """Run a task in a new interpreter. The arguments are paths of pickled objects, and the parent's process id."""
    context: Context = pickle.loads(Path(context_file).read_bytes())
    task: Task = pickle.loads(Path(task_file).read_bytes())
    enter(context, task, int(parent))
    try:
        targets: Mapping[str, Target] = pickle.loads(context.payload)
    except Exception as error:  # noqa: BLE001 - the user's module runs here
        traceback.print_exc()
        Outcome(task.name, task.attempt, "failed", "raised", _in_one_line(error)).save(task.folder, context.study)
        leave()
    run(context, targets[task.variant], task)


if __name__ == "__main__":
    main(*sys.argv[1:])
