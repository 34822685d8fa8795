"""What can't be keyed in a loader, and what changes its own data: said once, with the object and the remedy."""

from __future__ import annotations

import threading
import warnings
import zlib
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from repro_callbacks.loading.holders import Holders

CHANGES_ITS_INPUT = ("RandStdShiftIntensity", "RandCoarseDropout", "RandCoarseShuffle")
"""Names of MONAI 1.6 transforms that write into the tensor they are given; their dictionary versions do, too."""


class NotKeyedWarning(UserWarning):
    """Something random stays outside of what is keyed, or is not loaded as it was asked for."""


class ChangedDataWarning(UserWarning):
    """Drawing samples has changed the dataset's own data."""


def warn_of_problems(loader: DataLoader[Any]) -> None:
    """Warn of everything in a loader that position-keyed randomness does not reach."""
    for problem in problems(loader):
        warnings.warn(problem, NotKeyedWarning, stacklevel=4)


def problems(loader: DataLoader[Any]) -> list[str]:
    """Return a sentence for each thing about a loader that is not kept, since it can't be repeated."""
    found = []
    name = type(loader).__name__
    if has_thread_workers(loader):
        found.append(
            f"{name}(use_thread_workers=True) loads in threads that share their generators, which nothing can make "
            "repeatable: it is loaded in worker processes instead"
        )
    if not getattr(loader, "in_order", True) and loader.num_workers > 0:
        found.append(f"{name}(in_order=False) hands batches out as they finish: they are handed out in order instead")
    own = next(cls for cls in type(loader).__mro__ if "__iter__" in vars(cls))
    if own.__module__.split(".")[0] not in {"torch", "torchdata", "monai", "repro_callbacks"}:
        found.append(
            f"{own.__name__}.__iter__ is your own, and is not called: batches are fetched by position from its "
            "dataset, sampler and collate_fn. Put what it does to a batch into the collate_fn."
        )
    return found


def has_thread_workers(loader: DataLoader[Any]) -> bool:
    """Whether a loader's workers are threads, as those of MONAI's ``ThreadDataLoader(use_thread_workers=True)``."""
    process = getattr(loader.multiprocessing_context, "Process", None)
    return isinstance(process, type) and issubclass(process, threading.Thread)


def repeats_of(loader: DataLoader[Any]) -> int:
    """Return how often a loader hands out each batch: MONAI's ``ThreadDataLoader(repeats=2)`` twice, others once."""
    return int(getattr(loader, "repeats", 1)) if type(loader).__module__.startswith("monai.") else 1


class DataWatch:
    """Sees when drawing samples changes the dataset's own data, so that later epochs would draw from altered data.

    With workers that end with the epoch each epoch has a fresh copy; without workers, or with persistent ones, it has
    not: the same run gives other bits. A tensor's version counter tells of each write that is not made through another
    tensor on the same memory, as MONAI's are; so some values are compared too. It looks after the first few batches,
    and then now and then.

    Args:
        dataset: The dataset, to be named.
        holders: What was met on the way through it.
    """

    _FIRST, _EVERY, _ARRAYS, _VALUES = 8, 64, 64, 1024

    def __init__(self, dataset: Any, holders: Holders) -> None:
        self._name = type(dataset).__name__
        names = {type(obj).__name__ for obj in holders.randomizables}
        self._suspects = sorted(name for name in names if name.startswith(CHANGES_ITS_INPUT))
        self._tensors = [data for data in holders.data if isinstance(data, torch.Tensor) and not data.is_inference()]
        # The data themselves, and no view of their memory: sending a tensor to a worker moves it to shared memory.
        self._compared = [data for data in holders.data[: self._ARRAYS] if _values(data) is not None]
        self._looks = 0
        self._before = self._state()

    def look(self) -> None:
        """Compare the data with what it was, and warn once if it was changed."""
        self._looks += 1
        if self._looks > self._FIRST and self._looks % self._EVERY:
            return
        if self._before != (state := self._state()):
            self._before = state
            self._tensors, self._compared = [], []
            self._before = self._state()
            who = " or ".join(self._suspects) or "a transform, or the dataset itself,"
            warnings.warn(
                f"drawing a sample has changed the data that {self._name} keeps in memory: {who} writes into its "
                "input. Later epochs draw from altered data unless each has fresh workers. Let the dataset hand out a "
                "copy: MONAI's CacheDataset does (copy_cache=True), or clone the tensor first in the transform.",
                ChangedDataWarning,
                stacklevel=2,
            )

    def _state(self) -> tuple[int, ...]:
        versions = sum(tensor._version for tensor in self._tensors)
        return (versions, *(zlib.crc32(_some(_values(data), self._VALUES)) for data in self._compared))

    def __getstate__(self) -> dict[str, Any]:
        # version counters don't travel to a spawned worker
        return {**self.__dict__, "_before": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._before = self._state()


def _values(data: Any) -> Any:
    """Return an array on the same memory, or None where there is none to look at."""
    if isinstance(data, np.ndarray):
        return None if data.dtype == object else data
    plain = data.device.type == "cpu" and data.layout == torch.strided and data.dtype != torch.bfloat16
    return data.detach().as_subclass(torch.Tensor).numpy() if plain else None


def _some(array: Any, values: int) -> bytes:
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel()[: 4 * values]
    return bytes(np.ascontiguousarray(flat[:: max(1, flat.size // values)]).tobytes())
