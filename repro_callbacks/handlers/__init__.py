"""Handlers for MONAI's and Ignite's engines: :class:`DeterminismHandler` makes a run repeatable."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repro_callbacks.handlers.determinism import DeterminismHandler
    from repro_callbacks.handlers.fingerprint import FingerprintHandler

__all__ = ["DeterminismHandler", "FingerprintHandler"]

_HOMES = {"DeterminismHandler": "determinism", "FingerprintHandler": "fingerprint"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
