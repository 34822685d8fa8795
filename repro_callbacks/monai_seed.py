"""The seed that ``monai.utils.get_seed()`` answers: read it, set it, and set it when MONAI is imported later.

MONAI keeps it in ``monai.utils.misc._seed``, a private name, and has no function that sets it alone. ``Compose``,
``Dataset`` and ``ImageDataset`` seed their transforms from it when they are built; where it is ``None`` they take
theirs from entropy. MONAI is never imported from here.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

_MODULE: Final = "monai.utils.misc"
_NAME: Final = "_seed"


def imported() -> bool:
    """Say whether MONAI's seed exists yet."""
    return _MODULE in sys.modules


def read() -> int | None:
    """Return MONAI's seed, or the one that it will have once it is imported."""
    if imported():
        seed: int | None = getattr(sys.modules[_MODULE], _NAME)
        return seed
    return next((finder.seed for finder in sys.meta_path if isinstance(finder, _OnImport)), None)


def write(seed: int | None) -> None:
    """Give MONAI this seed: now if it is imported, else when it is."""
    _forget()
    if imported():
        setattr(sys.modules[_MODULE], _NAME, seed)
    elif seed is not None:
        sys.meta_path.insert(0, _OnImport(seed))


def _forget() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _OnImport)]


class _OnImport(MetaPathFinder):
    """Gives MONAI its seed once its module has run, and goes. It answers for no other module."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._searching = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODULE or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            if self in sys.meta_path:  # else it was taken back while the module was being imported
                setattr(module, _NAME, self.seed)
                _forget()

        loader.exec_module = exec_module
