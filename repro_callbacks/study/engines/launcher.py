"""Starts a nursery and talks to it. Every engine runs its seeds through this, wherever it has brought them to."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from repro_callbacks.study.engines.nursery import Ended
from repro_callbacks.study.problems import StudyError
from repro_callbacks.study.task import Context, Outcome, Task

_CODE = "import sys; sys.path[:] = {!r}; from {} import nursery; nursery.main(*sys.argv[1:])"


class Nursery:
    """A process that runs are forked from, each in a process of its own; it dies with this one.

    Args:
        context: What all runs have in common.
        keep_open: File descriptors that the nursery inherits, such as the study's lock: released when it has ended.

    Raises:
        StudyError: By :meth:`wait`, if the targets can't be loaded in another process.
    """

    def __init__(self, context: Context, keep_open: tuple[int, ...] = ()) -> None:
        if sys.platform == "win32":
            raise StudyError("a study starts its runs as POSIX processes, which Windows has not; use engine='debug'")
        self.context = context
        self.keep_open = keep_open
        self.running: dict[str, tuple[Task, float]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any]
        self._files: Path
        self._ready = False

    def start(self, task: Task) -> None:
        """Start a run. Its end is told by :meth:`wait`."""
        if self._process is None:
            self._open()
        self.running[task.name] = task, time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # wait will find the nursery dead
            self._connection.send(task)

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what has ended, after at most ``timeout`` seconds, or as soon as there is something."""
        if self._process is None or not self._connection.poll(timeout):
            return []
        ended: list[Outcome] = []
        try:
            while self._connection.poll():
                ended += self._heard(self._connection.recv())
        except (EOFError, ConnectionResetError):
            ended += self._all_lost()
        return ended

    def close(self) -> None:
        """Kill what still runs, and wait until it is gone."""
        if self._process is None:
            return
        self._connection.close()  # the nursery kills its runs and ends
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._files, ignore_errors=True)  # it does that itself unless it was killed
        self._process = None
        self.running.clear()

    def _open(self) -> None:
        self._ready = False
        self._files = Path(tempfile.mkdtemp(prefix="repro-callbacks-study-"))
        (self._files / "context").write_bytes(pickle.dumps(self.context))
        self._connection, theirs = multiprocessing.Pipe()
        arguments = [str(theirs.fileno()), str(self._files), *map(str, self.keep_open)]
        with (self._files / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE.format(list(self.context.path), __package__), *arguments],
                pass_fds=(theirs.fileno(), *self.keep_open),
                env=self.context.full_environment(),
                cwd=self.context.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the study, which then stops its runs in order
            )
        theirs.close()

    def _heard(self, message: Any) -> list[Outcome]:
        if isinstance(message, Ended):
            del self.running[message.task.name]
            return [self._outcome(message)]
        kind, text = message
        self._ready = True
        if kind == "broken":
            raise StudyError(f"the runs can't be started in another process:\n{text}")
        if text:
            warnings.warn(
                f"{text}, which doesn't survive a fork: each run gets a new interpreter, and takes some seconds longer",
                RuntimeWarning,
                stacklevel=2,
            )
        return []

    def _outcome(self, ended: Ended) -> Outcome:
        task = ended.task
        outcome = Outcome.load(task.folder, self.context.study, task.name, task.attempt)
        if outcome is None:
            cause, error = _explain(ended, self.context.timeout)
            outcome = Outcome(task.name, task.attempt, "failed", cause, error, seconds=ended.seconds)
        return dataclasses.replace(outcome, peak_memory_bytes=ended.peak_memory_bytes)

    def _all_lost(self) -> list[Outcome]:
        """The nursery is gone, and every run with it. The next run starts another."""
        assert self._process is not None
        log = self._files / "log"
        said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        status = self._process.wait()
        if status >= 0 and not self._ready:
            raise StudyError(f"the process that looks after the runs ended with exit code {status}:\n{said}")
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        lost = []
        for task, started in self.running.values():
            outcome = Outcome.load(task.folder, self.context.study, task.name, task.attempt)
            lost.append(
                outcome
                or Outcome(
                    task.name,
                    task.attempt,
                    "failed",
                    "lost",
                    f"the process that looks after the runs {how}",
                    seconds=time.monotonic() - started,
                )
            )
        self.close()
        return lost


def run_one(nursery: Nursery, task: Task, wanted: Callable[[], bool] = lambda: True) -> Outcome | None:
    """Run a task and wait for its end.

    Args:
        nursery: Where it runs. Nothing else may run there.
        task: The run.
        wanted: Asked twice a second; when it says no, the run is killed and None is returned.
    """
    nursery.start(task)
    while wanted():
        for outcome in nursery.wait(0.5):
            return outcome
    nursery.close()
    return None


def _explain(ended: Ended, timeout: float | None) -> tuple[str, str]:
    """Tell the cause of a run's end without an outcome, and say it in a line."""
    if ended.overdue:
        return "timeout", f"killed because it took longer than {timeout:g} s"
    if ended.out_of_memory == "certainly":
        return "oom", "killed by the kernel because memory ran out (SIGKILL; the control group counts an OOM kill)"
    if ended.out_of_memory == "probably":
        return "oom", "killed, probably because memory ran out (SIGKILL; the system counts an OOM kill)"
    if ended.status < 0:
        name = signal.Signals(-ended.status).name
        extra = "; the kernel counts no OOM kill" if name == "SIGKILL" else ""
        return "killed", f"killed by {name}{extra}"
    return "exit", f"ended with exit code {ended.status} and left no result"
