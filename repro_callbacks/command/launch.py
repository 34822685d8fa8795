"""Starts an unmodified training command with everything in force before its interpreter starts.

Nothing of the command is rewritten: the script runs as ``__main__`` as it always does, so that pickling, spawned
workers and Lightning's way of launching ranks (running the script again) are what they were. Everything is carried by
environment variables, which reach all processes below.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from repro_callbacks import hashseed
from repro_callbacks.callbacks.settings import NAMES, Settings, parse_seed

STARTUP: Final = Path(__file__).parent / "startup"
GRACE_SECONDS: Final = 10.0
GONE_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.05


class CannotRun(RuntimeError):
    """A training command could not be run, or did not come to its end."""


def environment(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a training command.

    ``PYTHONHASHSEED`` is 0 unless a number was set: the order of sets and the like is fixed, and the same for every
    seed. ``CUBLAS_WORKSPACE_CONFIG`` is ``:4096:8`` unless it was set. ``PL_GLOBAL_SEED`` is what Lightning's
    ``seed_everything()`` takes without a seed. ``PATH`` begins with the folder of this Python, so that ``python``
    and console commands are those of the environment in which this package is installed.

    Args:
        settings: What is to be in force.
        environ: What to start from; ``os.environ`` if ``None``. Settings of an outer ``run`` are dropped.

    Raises:
        ValueError: If ``PYTHONHASHSEED`` holds what Python would refuse.

    Example:
        >>> made = environment(Settings(start_seed=7), {"PATH": "/usr/bin"})
        >>> made["PYTHONHASHSEED"], made["PL_GLOBAL_SEED"], made["REPRO_CALLBACKS_RUN"]
        ('0', '7', '1')
    """
    environ = os.environ if environ is None else environ
    made = {name: value for name, value in environ.items() if name not in NAMES}
    made |= settings.to_environment()
    if hashseed.parse(made.get(hashseed.VARIABLE)) is None:
        made[hashseed.VARIABLE] = "0"
    if settings.deterministic is not False:
        made.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    made["PL_GLOBAL_SEED"] = str(settings.start_seed if settings.seed is None else settings.seed)
    made["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), made.get("PYTHONPATH")]))
    made["PATH"] = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), made.get("PATH")]))
    return made


def choose_seed(seed: int | None, environ: Mapping[str, str] | None = None) -> int:
    """Return the seed of the script's start: the one given, else that of ``PL_GLOBAL_SEED``, else one drawn."""
    if seed is not None:
        return seed
    environ = os.environ if environ is None else environ
    if "PL_GLOBAL_SEED" in environ:
        return parse_seed(environ["PL_GLOBAL_SEED"])
    return secrets.randbits(32)


def resolve(command: Sequence[str], path: str) -> list[str]:
    """Return the command with its program found on ``path``; a ``.py`` file is given to this Python.

    Raises:
        CannotRun: If there is no command or no such program.

    Example:
        >>> resolve(["train.py", "--lr", "0.1"], "")[1:]
        ['train.py', '--lr', '0.1']
    """
    words = list(command)
    if not words:
        raise CannotRun("no command was given; write it behind two dashes: repro-callbacks run -- python train.py")
    if words[0].endswith(".py") and not os.access(words[0], os.X_OK):
        return [sys.executable, *words]
    program = shutil.which(words[0], path=path)
    if program is None:
        raise CannotRun(f"there is no program {words[0]!r} on PATH; the command was: {shlex.join(words)}")
    return [program, *words[1:]]


def die_with_parent() -> Callable[[], None] | None:
    """Return what a child calls first so that it is killed when this process is killed; None where that can't be had.

    A training that nobody waits for would go on writing where the next one writes.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)


class Child:
    """A training command in a process group of its own, its output in a file.

    Args:
        command: Program and arguments.
        env: Its environment, whole.
        log: The file that its output is appended to.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                resolve(command, env.get("PATH", "")),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    def wait(self, watch: Callable[[], None] | None = None, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code; what is left of the process group then is killed.

        Args:
            watch: Called some times a second.
            timeout: Seconds.

        Raises:
            CannotRun: If it took longer. The processes are ended.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while self._process.poll() is None:
                if deadline is not None and time.monotonic() > deadline:
                    raise CannotRun(f"the run took longer than {timeout:g} s and was ended")
                if watch is not None:
                    watch()
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.stop()
            raise
        self._signal(signal.SIGKILL)  # ranks that outlived the one that died
        self._await_group()
        return self._process.returncode

    def stop(self) -> None:
        """End all of its processes: asked first, killed if they don't within some seconds."""
        self._signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        finally:  # a second Ctrl-C does not wait
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._await_group()

    def _await_group(self) -> None:
        """Wait until those that were killed are gone: what they held, a port or a file, is free then."""
        deadline = time.monotonic() + GONE_SECONDS
        with contextlib.suppress(ProcessLookupError):  # none is left
            while time.monotonic() < deadline:  # one that init does not collect would stay for ever
                os.killpg(self._process.pid, 0)
                time.sleep(0.01)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self._process.pid, number)
