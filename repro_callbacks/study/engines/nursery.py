"""The process that runs are forked from: it does the heavy imports once and never runs anything itself.

A fork of it is as good as a new interpreter, because it has drawn no random number, made no tensor and started no
thread; where an import did start one, each run gets a new interpreter instead. It dies with whoever started it, and
every run dies with it. Used through :class:`repro_callbacks.study.engines.launcher.Nursery`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pickle
import random
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from repro_callbacks.study.engines import child, oom, preload
from repro_callbacks.study.targets import Target
from repro_callbacks.study.task import Context, Task

_WATCHED: Final = 0  # Python's generator is seeded with it before the imports, to see what they draw


@dataclass(frozen=True)
class Ended:
    """How the process of a run ended: what its parent knows of it.

    Attributes:
        task: The run.
        status: The exit code; minus the number of the signal that killed it.
        seconds: Since it was started.
        peak_memory_bytes: The largest resident set.
        overdue: It was killed because its time was up.
        out_of_memory: The OOM killer was at work: ``"certainly"`` in this control group, ``"probably"`` on this
            system, or ``""``.
    """

    task: Task
    status: int
    seconds: float
    peak_memory_bytes: int
    overdue: bool
    out_of_memory: str


@dataclass
class _Running:
    task: Task
    started: float
    overdue: bool = False


class _Server:
    """Starts runs and reports their ends until the other side of the connection is gone."""

    def __init__(self, connection: Connection, context: Context, files: Path, keep_open: tuple[int, ...]) -> None:
        self.connection = connection
        self.keep_open = keep_open
        self.context = context
        self.files = files
        self.targets: Mapping[str, Target] = {}
        self.running: dict[int, _Running] = {}
        self.parent = os.getppid()
        self.counters = oom.counters()
        self.oom_kills = oom.read(self.counters)
        self.words = 0  # that imports have drawn from Python's generator
        self.known: frozenset[str] | None = None  # the modules that are imported, until a run has shown what it lacks
        self.waker, self.wakes = os.pipe()
        for end in (self.waker, self.wakes):
            os.set_blocking(end, False)

    def prepare(self) -> None:
        """Do the imports, and say whether forks are safe."""
        warning = ""
        if self.context.start == "fork":
            random.seed(_WATCHED)
            self.targets, warning = _load(self.context)
            self.words = preload.words_drawn(_WATCHED)
            if warning:
                self.targets = {}
            self.known = frozenset(sys.modules)
        self.connection.send(("ready", warning))

    def serve(self) -> None:
        """Serve until the connection is closed or its other side has died."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            selector.register(self.waker, selectors.EVENT_READ)
            # A fork of the other side would keep the connection open after its death, so look at the parent too.
            while os.getppid() == self.parent:
                selector.select(timeout=1.0)
                with contextlib.suppress(BlockingIOError):
                    os.read(self.waker, 4096)
                while self.connection.poll():
                    self.start(self.connection.recv())
                self.kill_overdue()
                self.reap()

    def start(self, task: Task) -> None:
        """Start a run in a fork, or in a new interpreter if that is asked for or forks aren't safe."""
        shutil.rmtree(task.folder, ignore_errors=True)  # a try before this one that ended halfway
        os.makedirs(task.folder)
        if task.fresh or not self.targets:
            pid = self._spawn(task)
        else:
            nursery = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become(task, nursery)
        self.running[pid] = _Running(task, time.monotonic())

    def _become(self, task: Task, nursery: int) -> None:
        """Be the run. Never returns."""
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self.waker, self.wakes, self.connection.fileno(), *self.keep_open):
                os.close(end)
            child.disown()
            os.environ[child.DRAWN_VARIABLE] = str(self.words)
            child.enter(self.context, task, nursery)
            child.run(self.context, self.targets[task.variant], task, self.known)
        except BaseException:  # noqa: BLE001 - this process must not go on as the nursery
            traceback.print_exc()
        finally:
            os._exit(1)

    def _spawn(self, task: Task) -> int:
        path = self.files / f"{task.name.replace('/', '-')}.task"
        path.write_bytes(pickle.dumps(task))
        arguments = [str(self.files / "context"), str(path), str(os.getpid())]
        code = "import sys; sys.path[:] = {!r}; from {} import child; child.main(*sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(list(self.context.path), __package__), *arguments],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        process.returncode = 0  # reaped below, like forks, and not by Popen
        return process.pid

    def kill_overdue(self) -> None:
        """Kill runs whose time is up."""
        if self.context.timeout is None:
            return
        for pid, running in self.running.items():
            if not running.overdue and time.monotonic() - running.started > self.context.timeout:
                running.overdue = True
                _kill_group(pid)

    def reap(self) -> None:
        """Report every run that has ended, after killing what it has left running, such as loader workers."""
        for pid in list(self.running):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if not ended:
                continue
            _kill_group(pid)
            running = self.running.pop(pid)
            self.learn(Path(running.task.folder, child.IMPORTS))
            code = os.waitstatus_to_exitcode(status)
            self.connection.send(
                Ended(
                    task=running.task,
                    status=code,
                    seconds=time.monotonic() - running.started,
                    peak_memory_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
                    overdue=running.overdue,
                    out_of_memory=self._out_of_memory() if code == -signal.SIGKILL and not running.overdue else "",
                )
            )

    def learn(self, file: Path) -> None:
        """Import what the first run had to import while it ran, so that the others don't have to.

        It is tried in a fork first: what would make forks unsafe is left to the runs.
        """
        if self.known is None or not file.exists():
            return
        self.known, missed = None, json.loads(file.read_text())
        file.unlink()
        scout = os.fork()
        if scout == 0:
            try:
                signal.alarm(60)  # an import that waits for something must not hold up the study
                _import(missed)
                os._exit(1 if _unsafe() else 0)
            finally:
                os._exit(1)
        if os.waitstatus_to_exitcode(os.waitpid(scout, 0)[1]) == 0:
            _import(missed)
            self.words = preload.words_drawn(_WATCHED)
            gc.freeze()

    def _out_of_memory(self) -> str:
        """Say whether the OOM killer has killed something since a run was last killed."""
        before, self.oom_kills = self.oom_kills, oom.read(self.counters)
        rose = [now > then for then, now in zip(before, self.oom_kills, strict=True)]
        if any(rose[:-1]):  # all but the last are of this control group
            return "certainly"
        return "probably" if any(rose) else ""

    def close(self) -> None:
        """Kill what still runs, and wait until it is gone."""
        for pid in self.running:
            _kill_group(pid)
        for pid in self.running:
            os.waitpid(pid, 0)
        shutil.rmtree(self.files, ignore_errors=True)


def _load(context: Context) -> tuple[Mapping[str, Target], str]:
    """Import everything that runs will need. Return the targets, and why a fork wouldn't be safe."""
    for name in context.preload:
        # A script may import a module in a try; if it must have it, its runs say so.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    targets: Mapping[str, Target] = pickle.loads(context.payload)
    from repro_callbacks.record import environment

    for read in (environment.versions, environment.build, environment.system):
        read()  # each keeps its answer, for all runs
    gc.collect()
    gc.freeze()  # or the first collection in each fork would copy all that was imported
    return targets, _unsafe()


def _import(names: Sequence[str]) -> None:
    for name in names:
        # The run could import it where it did; if it can't be had ahead of that, each run imports it there again.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _unsafe() -> str:
    """Say what an import has started that doesn't survive a fork; ``""`` if nothing."""
    import torch

    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        return f"an import has started the thread {others[0]!r}"
    tasks = Path("/proc/self/task")
    if tasks.is_dir():
        names = [(path / "comm").read_text() for path in tasks.iterdir()]
        # A pool of OpenMP or of a BLAS has the process's name; others, such as jemalloc's, see to forks themselves.
        if names.count((tasks.parent / "comm").read_text()) > 1:
            return "an import has started a pool of threads (by computing something?)"
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return "an import has started CUDA"
    return ""


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses for a group of zombies
        os.killpg(pid, signal.SIGKILL)


def main(descriptor: str, files: str, *keep_open: str) -> None:
    """Serve on an inherited connection.

    Args:
        descriptor: Its file descriptor.
        files: A folder that holds the pickled context, and is removed in the end.
        keep_open: File descriptors that this process holds until it ends, and no run of it.
    """
    connection: Any = Connection(int(descriptor))
    context: Context = pickle.loads(Path(files, "context").read_bytes())
    held = tuple(map(int, keep_open))
    for end in held:
        os.set_inheritable(end, False)
    server = _Server(connection, context, Path(files), held)
    try:
        server.prepare()
        server.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the study has ended or was killed
    except BaseException:  # noqa: BLE001 - told to the study, which stops with it
        with contextlib.suppress(OSError):
            connection.send(("broken", traceback.format_exc()))
    finally:
        server.close()
    child.leave()
