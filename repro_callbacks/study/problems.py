"""What can go wrong with a study as a whole, and the error for an extra that is not installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


class StudyError(RuntimeError):
    """A study can't start or go on. The message says what to do; what is recorded stays recorded."""


class NotRepeatableWarning(UserWarning):
    """A seed was run twice on purpose and gave different bits."""

    @classmethod
    def of(cls, names: Sequence[str]) -> NotRepeatableWarning:
        """Return the warning for some runs."""
        return cls(
            f"{', '.join(names)}: run twice, with different results. What differs between two runs of a seed is not "
            "the seed's doing, and this study can't tell them apart; repro-callbacks verify and compare find the cause"
        )


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional dependency.

    Args:
        module: Its name, such as ``"dask.distributed"``.
        extra: The extra of this package that installs it.
        purpose: What needs it, to begin the message with.

    Raises:
        ImportError: If it is missing; the message names the extra.

    Example:
        >>> require("not_there", "dask", "engine='dask'")
        Traceback (most recent call last):
        ...
        ImportError: engine='dask' needs not_there, which is not installed: pip install 'repro-callbacks[dask]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # it is there, but something that it needs itself is broken
        raise ImportError(
            f"{purpose} needs {module}, which is not installed: pip install 'repro-callbacks[{extra}]'"
        ) from error
