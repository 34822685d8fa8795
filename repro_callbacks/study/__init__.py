"""Many seeds: run a training with each of them, keep every result, and say what they support.

Each public name is imported on first use, because this package is imported in every process that runs a seed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repro_callbacks.study.problems import NotRepeatableWarning, StudyError
    from repro_callbacks.study.runs import SeedStudy, StudyResult, rebuild

_HOMES = {
    "SeedStudy": "repro_callbacks.study.runs",
    "StudyResult": "repro_callbacks.study.runs",
    "rebuild": "repro_callbacks.study.runs",
    "StudyError": "repro_callbacks.study.problems",
    "NotRepeatableWarning": "repro_callbacks.study.problems",
}

__all__ = ["NotRepeatableWarning", "SeedStudy", "StudyError", "StudyResult", "rebuild"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
