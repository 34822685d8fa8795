"""Lightning callbacks: :class:`Determinism` makes a run repeatable, :class:`Fingerprint` proves it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repro_callbacks.callbacks.determinism import Determinism
    from repro_callbacks.callbacks.fingerprint import Fingerprint

__all__ = ["Determinism", "Fingerprint"]

_HOMES = {"Determinism": "determinism", "Fingerprint": "fingerprint"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
