"""What a worker process begins with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch
from torch.utils.data import get_worker_info

from repro_callbacks import generators, keys
from repro_callbacks.loading.holders import Holders


class WorkerInit:
    """Seeds a worker, shows it the user's dataset, and then calls the user's own ``worker_init_fn``."""

    def __init__(self, worker_init_fn: Callable[[int], None] | None, seed: int) -> None:
        self.worker_init_fn = worker_init_fn
        self.seed = seed

    def __call__(self, worker: int) -> None:
        """Seed, then call the user's."""
        info = get_worker_info()
        if info is not None:
            # What people read here is their own dataset; WorkerInfo refuses assignment.
            object.__setattr__(info, "dataset", info.dataset.dataset)  # type: ignore[attr-defined]
        generators.key_all(keys.derive(self.seed, "worker init", rank(), worker))
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)


def rank() -> int:
    """Return which process of a distributed run this is; 0 alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", 0))


def worker_init_fn(worker: int) -> None:
    """Seed a worker's process-wide generators and what its dataset holds, from the seed that the loader gives it.

    For those who want only that: ``DataLoader(..., worker_init_fn=worker_init_fn)`` in place of MONAI's. Results hold
    for a fixed ``num_workers``; for any, use :func:`keyed` or ``Determinism``.

    Args:
        worker: The worker's number, as torch passes it.
    """
    info = get_worker_info()
    if info is None:
        warnings.warn("worker_init_fn was called outside a DataLoader's worker: nothing was seeded", stacklevel=2)
        return
    key = keys.derive(info.seed % 2**32, "worker", info.seed)
    generators.key_all(key)
    holders = Holders([info.dataset])
    holders.__enter__()  # for good: the worker's copy of the dataset keeps its streams
    holders.key(key)
