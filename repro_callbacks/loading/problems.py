"""What can't be keyed in a loader, said once, with the object and the remedy."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader

from repro_callbacks.loading.holders import Holders


class NotKeyedWarning(UserWarning):
    """Something random stays outside of what is keyed."""


def warn_of_problems(loader: DataLoader[Any], holders: Holders) -> None:
    """Warn of everything in a loader that position-keyed randomness does not reach."""
    for problem in problems(loader, holders):
        warnings.warn(problem, NotKeyedWarning, stacklevel=4)


def problems(loader: DataLoader[Any], holders: Holders) -> list[str]:
    """Return a sentence for each thing in a loader that can't be keyed."""
    found = []
    name = type(loader).__name__
    if getattr(loader, "use_thread_workers", False):
        found.append(
            f"{name}(use_thread_workers=True) loads in threads that share their generators, which nothing can make "
            "repeatable: it is loaded in worker processes instead"
        )
    if not getattr(loader, "in_order", True) and loader.num_workers > 0:
        found.append(f"{name}(in_order=False) hands batches out as they finish: they are handed out in order instead")
    return found
