"""Seeds a Python process when it starts, before the script's first line, without importing anything for it.

Python's generator is seeded at once, NumPy's and torch's at the end of their import: nobody can draw from them
earlier. So a process that never imports torch, as multiprocessing's helpers, pays microseconds.

Where a seed is asked for (``run --seed``), it wins over those that the script sets by ``seed_everything`` or
``set_determinism``: a study over seeds would otherwise train the same initial weights again and again.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

from repro_callbacks.callbacks import settings as settings_module
from repro_callbacks.callbacks.settings import Settings

SEED_FUNCTIONS: Final = {
    "lightning.fabric.utilities.seed": "seed_everything",
    "lightning_fabric.utilities.seed": "seed_everything",
    "monai.utils.misc": "set_determinism",
    "repro_callbacks.determinism": "set_determinism",
}
"""Where a script seeds everything at once: module and function. Each takes the seed first, by the name ``seed``."""

_told: set[str] = set()


def start(environ: Mapping[str, str]) -> None:
    """Seed this process as ``run`` asks; nothing outside of it.

    Raises:
        ValueError: If a variable holds what it can't.
    """
    settings = Settings.from_environment(environ)
    if settings is None:
        return
    seed = settings.start_seed
    random.seed(seed)
    actions: dict[str, Callable[[ModuleType], None]] = {
        "numpy.random": lambda module: module.seed(seed),
        "torch": lambda module: module.manual_seed(seed),
    }
    if settings.seed is not None:
        for name, function in SEED_FUNCTIONS.items():
            actions[name] = functools.partial(_override, function=function, settings=settings)
    sys.meta_path.insert(0, AfterImport(actions))
    settings_module.mark_started()


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls an action with a module when its import has ended, once, and leaves no trace in the module.

    Args:
        actions: Module name to what is called with the module.
    """

    def __init__(self, actions: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._actions = dict(actions)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module that is waited for as the other finders do, with a loader that calls the action."""
        if fullname not in self._actions:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self._actions.pop(fullname))
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Stands in for a module's loader until the module is executed."""

    def __init__(self, loader: Any, action: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._action = action

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._action(module)


def _override(module: ModuleType, function: str, settings: Settings) -> None:
    """Let the seed that was asked for win over the one that a script passes."""
    original = getattr(module, function)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def seeded(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        asked = bound.arguments["seed"]
        if asked is None or asked == settings.seed:
            return original(*args, **kwargs)
        _tell(f"{function}({asked}) of the script gets {settings.seed} in its place, as --seed asks")
        bound.arguments["seed"] = settings.seed
        result = original(*bound.args, **bound.kwargs)
        if settings.start_seed != settings.seed:  # the initial weights have a seed of their own
            from repro_callbacks import generators

            generators.seed_all(settings.start_seed)
        return result

    setattr(module, function, seeded)


def _tell(message: str) -> None:
    if message not in _told and os.environ.get("LOCAL_RANK", "0") == "0":
        _told.add(message)
        print(f"repro-callbacks: {message}", file=sys.stderr, flush=True)
