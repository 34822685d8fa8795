"""What a study runs: a function or a command. How it is named, sent to another process, told from a changed one."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import pickle
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from repro_callbacks.study import results
from repro_callbacks.study.problems import require
from repro_callbacks.study.task import Task

Fit: TypeAlias = "Callable[..., Any] | Sequence[str]"

RESULT_VARIABLE = "REPRO_CALLBACKS_RESULT"
"""Names the file in which ``repro-callbacks run`` leaves the metrics and the digest of the weights."""


@dataclass(frozen=True)
class FunctionTarget:
    """A function of the seed. With a parameter ``seeds`` it also gets the seed of each purpose."""

    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """The function's full name; of a partial, with what is bound."""
        return _name(self.function)

    @property
    def takes_seeds(self) -> bool:
        """Whether the function wants the seed of each purpose."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some builtins have no signature
            return False
        return any(p.name == "seeds" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)

    def digest(self) -> str | None:
        """Return a digest of the function's source, or None where it can't be read."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        try:
            source = inspect.getsource(function if inspect.isroutine(function) else type(function))
        except (OSError, TypeError):  # typed into an interpreter, or not written in Python
            return None
        return hashlib.blake2b(source.encode(), digest_size=16).hexdigest()

    def call(self, task: Task) -> results.Result:
        """Run the function in this process and read what it returns."""
        keywords = {"seeds": dict(task.seeds)} if self.takes_seeds else {}
        return results.read(self.function(task.base, **keywords))


@dataclass(frozen=True)
class CommandTarget:
    """An unmodified training script, run through ``repro-callbacks run``."""

    command: tuple[str, ...]

    takes_seeds = True

    @property
    def name(self) -> str:
        """The command itself, with ``python`` for this interpreter, so that a study can go on on another machine."""
        return shlex.join(["python" if word == sys.executable else word for word in self.command])

    @property
    def script(self) -> Path | None:
        """The Python file that the command runs, if it can be seen."""
        found = next((Path(word) for word in self.command if word.endswith(".py")), None)
        return found if found is not None and found.is_file() else None

    def digest(self) -> str | None:
        """Return a digest of the script, or None if there is none to be seen."""
        return None if self.script is None else hashlib.blake2b(self.script.read_bytes(), digest_size=16).hexdigest()

    def arguments(self, task: Task) -> list[str]:
        """Return the arguments of ``repro-callbacks`` that run the command with the task's seeds."""
        own = [f"{purpose}={seed}" for purpose, seed in task.seeds.items() if seed != task.base]
        seeds = ["--seeds", ",".join(own)] if own else []
        return ["run", "--seed", str(task.base), *seeds, "--", *self.command]

    def call(self, task: Task) -> results.Result:
        """Run the command in this process, which is this run's own, and read the file that it leaves.

        Raises:
            SystemExit: If the command ends with another exit code than 0.
            results.ResultError: If it leaves no file.
        """
        path = Path(task.folder, "command.json")
        os.environ[RESULT_VARIABLE] = str(path)
        # By its name, since what runs commands stands above this room. A run that others are compared with is left to
        # `run` itself, which starts an interpreter for the script.
        home, arguments = "repro_callbacks.command.main", self.arguments(task)
        if not task.fresh:
            home, arguments = "repro_callbacks.command.forked", arguments[1:]
        try:
            code = importlib.import_module(home).main(arguments)
        except SystemExit as error:
            code = error.code
        if code not in (None, 0):
            raise SystemExit(code)
        return results.read_file(path)


Target: TypeAlias = "FunctionTarget | CommandTarget"


def make_targets(fit: Fit | Mapping[str, Fit]) -> dict[str, Target]:
    """Return what a study compares, name to target; the name of a single one is ``""``.

    Raises:
        TypeError: If one is neither callable nor a command.
        ValueError: If there is none, or a name can't be a folder.
    """
    given: Mapping[str, Fit] = fit if isinstance(fit, Mapping) else {"": fit}
    if not given:
        raise ValueError("fit names no variant; give a function, a command, or a dict of them such as {'A': fit_a}")
    for name in given if isinstance(fit, Mapping) else ():
        if (
            not isinstance(name, str)
            or not name
            or not all(c.isalnum() or c in "-_.+=" for c in name)
            or name[0] == "."
        ):
            raise ValueError(f"a variant's name is made of letters, digits and -_.+=, not {name!r}")
    return {name: _target(value) for name, value in given.items()}


def pickled(targets: Mapping[str, Target]) -> bytes:
    """Return targets as bytes that another process can load, lambdas and functions of ``__main__`` included.

    Raises:
        ImportError: If that takes cloudpickle, which is not installed.
        TypeError: If a function holds something that can't leave this process.
    """
    plain = all(isinstance(target, CommandTarget) for target in targets.values())
    cloudpickle = pickle if plain else require("cloudpickle", "study", "a study of a function")
    try:
        return bytes(cloudpickle.dumps(dict(targets)))
    except Exception as error:
        names = ", ".join(target.name for target in targets.values())
        raise TypeError(
            f"{names} can't be sent to another process: {error}. Make what it holds inside the function."
        ) from error


def _target(value: Fit) -> Target:
    if callable(value):
        return FunctionTarget(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and value and all(isinstance(w, str) for w in value):
        return CommandTarget(tuple(value))
    raise TypeError(
        f"fit must be a function of the seed or a command such as ['python', 'train.py'], not {value!r} of type "
        f"{type(value).__name__}"
    )


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        bound = [repr(value) for value in function.args]
        bound += [f"{key}={value!r}" for key, value in function.keywords.items()]
        return f"{_name(function.func)}({', '.join(bound)})"
    home = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    return f"{home.__module__}.{home.__qualname__}"
