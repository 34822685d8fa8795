"""MONAI's SmartCacheDataset, whose content changes at each epoch's end, brought to where it is in a given epoch.

Its content is a window that moves over the data, and so a function of the number of epochs: which samples there are, in
which order. What MONAI does not do is to start anywhere but at the beginning. Not documented, with a test in
``tests/handlers/test_smartcache.py`` that fails if a new version moves it: everything here with an underscore.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from repro_callbacks.loading import KeyedLoader

_moved: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those whose window is not at the beginning any more: MONAI never takes it back."""


def align(cache: Any, epoch: int) -> None:
    """Let a cache hold what it holds after ``epoch`` epochs; it loads its samples again if need be.

    Args:
        cache: A SmartCacheDataset; whether its replacement thread has started does not matter.
        epoch: How many epochs are done.
    """
    if epoch or cache in _moved:
        _move(cache, epoch)
    _moved.add(cache)


def _move(cache: Any, epoch: int) -> None:
    with cache._update_lock:  # its thread waits for this between two rounds
        start = epoch * cache._replace_num % cache._total_num
        cache._cache = cache._fill_cache([(start + i) % cache._total_num for i in range(cache.cache_num)])
        cache._start_pos = start
        cache._compute_data_idx()
        cache._replace_done = False
        cache._round += 1  # so that its thread makes the replacements anew


def warn_of_problems(cache: Any, loader: Any, epoch_length: int | None) -> None:
    """Say what keeps the content of a cache from being the same with any number of workers."""
    if not isinstance(loader, KeyedLoader) or loader.num_workers == 0:
        return
    problem = None
    if loader.persistent_workers:
        problem = "persistent workers keep the samples of the first epoch: set persistent_workers=False"
    elif epoch_length != len(loader):
        problem = (
            f"with epoch_length={epoch_length} and {len(loader)} batches the workers keep the samples that were there "
            "when they started: leave epoch_length out"
        )
    if problem is not None:
        warnings.warn(
            f"{type(cache).__name__} renews its samples in the main process when an epoch ends, and {problem}, or use "
            "num_workers=0. Otherwise the number of workers changes the results.",
            stacklevel=2,
        )


def warn_of_unmanaged(loader: Any) -> None:
    """Say that a resumed dataset is renewed by somebody whom the handler does not know."""
    dataset = getattr(loader, "dataset", None)
    if callable(getattr(type(dataset), "update_cache", None)):
        warnings.warn(
            f"{type(dataset).__name__} begins with the samples of the first epoch, and what renews them is not known: "
            "give the engine a SmartCacheHandler, and a resumed run begins with the samples of its epoch",
            stacklevel=2,
        )
