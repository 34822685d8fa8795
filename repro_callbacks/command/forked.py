"""``repro-callbacks run`` for a process that has done the imports already: the fork of a seed study's nursery.

``run`` starts an interpreter for the script, which then imports for seconds. Here the script takes the place of
``__main__`` in this very process, with the same settings in force as ``run`` puts in force, so that it sees and
computes the same; a study compares some of its runs with real ones of ``run``. Where a command is not a plain
``python script.py``, this is ``run``.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import os
import random
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repro_callbacks.callbacks.settings import Settings
from repro_callbacks.command import launch, run, seeding
from repro_callbacks.study.engines.child import DRAWN_VARIABLE


def main(argv: Sequence[str]) -> int:
    """Run a command as ``repro-callbacks run`` does, and return its exit code. This process is the command's own.

    Args:
        argv: The arguments of ``run``.

    Raises:
        BaseException: What the script raises, SystemExit too.
    """
    parser = argparse.ArgumentParser(prog="repro-callbacks run")
    run.add_arguments(parser)
    arguments = parser.parse_args(list(argv))
    command = run.command_of(arguments)
    if arguments.seed is None or plain_script(command) is None:
        return run.run(arguments)
    settings = Settings(
        start_seed=arguments.seeds.get("init", arguments.seed),
        seed=arguments.seed,
        seeds=arguments.seeds,
        deterministic=arguments.deterministic,
        fingerprint=None if arguments.fingerprint is None else arguments.fingerprint.absolute(),
        result=None if arguments.result is None else arguments.result.absolute(),
    )
    environment = launch.environment(settings)
    os.environ.clear()
    os.environ.update(environment)
    seed_late(settings)
    become(command[command.index(str(plain_script(command))) :])
    return 0


def plain_script(command: Sequence[str]) -> Path | None:
    """Return the script of a command of the form ``python script.py ...`` or ``script.py ...``, run by this Python.

    Example:
        >>> plain_script(["python", "-O", "train.py"]), plain_script(["torchrun", "train.py"])
        (None, None)
    """
    words = list(command)
    if words and not words[0].endswith(".py"):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        try:
            program = Path(launch.resolve(words[:1], path)[0])
        except launch.CannotRun:
            return None
        ours = Path(sys.executable)
        if program.parent.resolve() != ours.parent.resolve() or program.resolve() != ours.resolve():
            return None
        words = words[1:]
    elif words and os.access(words[0], os.X_OK):
        return None  # its first line says what runs it
    return Path(words[0]) if words and words[0].endswith(".py") and Path(words[0]).is_file() else None


def seed_late(settings: Settings) -> None:
    """Do what :func:`repro_callbacks.command.seeding.start` does when an interpreter starts, after the imports.

    What is imported later is seeded after its import, as there.
    """
    seeding.start(settings.to_environment())
    # The script's imports, which would come after this, were done before it: draw what they would have drawn.
    for _ in range(int(os.environ.pop(DRAWN_VARIABLE, "0"))):
        random.getrandbits(32)
    for name, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if name in sys.modules:
            getattr(sys.modules[name], seed)(settings.start_seed)
    for name, function in seeding.SEED_FUNCTIONS.items():
        module = sys.modules.get(name)
        if module is not None:
            original = getattr(module, function)
            seeding._override(module, function, settings)
            _replace_everywhere(original, getattr(module, function))


def become(argv: Sequence[str]) -> None:
    """Run a script as ``__main__`` of this process, as ``python script.py`` does.

    Args:
        argv: The script and its arguments.
    """
    script = os.path.abspath(argv[0])
    module = types.ModuleType("__main__")
    module.__file__ = script
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", script)
    module.__dict__["__builtins__"] = __builtins__
    module.__dict__["__cached__"] = None
    sys.modules["__main__"] = module
    sys.argv[:] = argv
    sys.orig_argv[:] = [sys.executable, *argv]
    sys.path.insert(0, os.path.dirname(script))
    exec(compile(Path(script).read_bytes(), script, "exec"), module.__dict__)


def _replace_everywhere(original: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Let every module that has taken a function by its name have the replacement: its import is over."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        for name in [name for name, value in names.items() if value is original]:
            names[name] = replacement
