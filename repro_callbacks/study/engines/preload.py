"""Which modules a training will import, so that they can be imported once, before its runs are forked."""

from __future__ import annotations

import ast
import dis
import functools
import importlib.util
import random
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, Final

from repro_callbacks.study.targets import CommandTarget, Target

HEAVY: Final = ("torch", "lightning.pytorch", "pytorch_lightning", "monai", "ignite", "torchvision", "transformers",
                "pandas", "scipy.stats", "sklearn")  # fmt: skip
"""What takes long to import, and is imported for a function if the study's own process has it."""

_FIRST: Final = (
    "torch",
    "torch._dynamo",
)  # the second is imported by the first optimizer, and takes longer than the first
_SITES: Final = ("site-packages", "dist-packages")


def modules(target: Target) -> list[str]:
    """Return the modules to import before the first run of a target, in the order in which it names them.

    A module that is missed costs each run its import; one too many costs a second, once. Neither changes bits.

    Example:
        >>> from repro_callbacks.study.targets import make_targets
        >>> def fit(seed):
        ...     import json.decoder
        >>> "json.decoder" in modules(make_targets(fit)[""])
        True
    """
    if isinstance(target, CommandTarget):
        found = list(_of_script(target.script, set())) if target.script else []
        return list(dict.fromkeys([*_FIRST, *found]))
    loaded = [name for name in HEAVY if name in sys.modules]
    return list(dict.fromkeys([*_FIRST, *loaded, *_of_function(target.function)]))


def words_drawn(seed: int) -> int:
    """Return how many words of 32 bits were drawn from Python's generator since ``random.seed(seed)``.

    A few libraries draw from it when they are imported (rich: once). A script whose interpreter is seeded when it
    starts finds it that much further on. 0 if something has seeded it meanwhile.

    Example:
        >>> state = random.getstate()
        >>> random.seed(0); _ = random.random(), random.getrandbits(24); words_drawn(0)
        3
        >>> random.setstate(state)
    """
    state, other = random.getstate(), random.Random(seed)
    for words in range(10_000):
        if other.getstate() == state:
            return words
        other.getrandbits(32)
    return 0


def imported_since(before: Collection[str]) -> list[str]:
    """Return the installed modules that this process has imported and that are not in ``before``, in their order.

    What a training imports only while it runs (a logger's library, parts of torch) can be seen afterwards. The user's
    own modules are left out: importing them runs the user's code, which belongs into each run.
    """
    homes = (*_SITES, sysconfig.get_path("stdlib"))
    found = []
    for name, module in list(sys.modules.items()):
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        if name not in before and isinstance(origin, str) and any(home in origin for home in homes):
            found.append(name)
    return found


def _of_function(function: Callable[..., Any]) -> Iterator[str]:
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return _of_code(code) if code is not None else iter(())


def _of_code(code: CodeType) -> Iterator[str]:
    """Read the imports inside a function from its code; its module's own are done when it is loaded."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant)


def _of_script(script: Path, seen: set[Path]) -> Iterator[str]:
    """Read the installed modules that a script imports, itself or through files beside it, which are not run here."""
    seen.add(script)
    try:
        tree = ast.parse(script.read_bytes())
    except SyntaxError:
        return  # the run itself will say so
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            beside = script.parent / f"{name.replace('.', '/')}.py"
            if beside.is_file():
                if beside not in seen:
                    yield from _of_script(beside, seen)
            elif _is_installed(name.split(".")[0]):
                yield name


def _is_installed(top: str) -> bool:
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    origin = spec.origin if spec is not None else None
    return origin is not None and any(site in origin for site in _SITES)
