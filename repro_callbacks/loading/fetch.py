"""What happens around one sample: its key, its streams, one thread, and everything as it was afterwards.

The same function runs in a worker and in the main process, so that both give the same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, Subset, get_worker_info

from repro_callbacks import generators, keys
from repro_callbacks.loading.holders import Holders
from repro_callbacks.loading.problems import DataWatch


class Place(NamedTuple):
    """Which pass over which loader: the part of a position that all of its batches share."""

    seed: int
    stage: str
    loader: int
    epoch: int
    cycle: int
    rank: int

    def key(self, purpose: str, *position: keys.Component) -> bytes:
        """Return the key of something in this pass that is the same for every rank."""
        place = (self.seed, purpose, self.stage, self.loader, self.epoch, self.cycle)
        return keys.derive_within(place, *position)


class Request(NamedTuple):
    """One batch to be fetched: what the index queue carries to a worker in place of a list of indices."""

    place: Place
    batch: int
    indices: Any
    occurrences: list[int] | None
    """How often each index has come up before in this pass; None where none can come up twice."""


class KeyedDataset(Dataset[Any]):
    """A map-style dataset whose items are whole, collated batches, each a function of its :class:`Request`.

    Args:
        dataset: The user's dataset; it is not changed.
        collate_fn: The user's, called with a key of its own.
        batched: False for a loader with ``batch_size=None``, whose sampler gives one index at a time.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[Any], Any], batched: bool) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.batched = batched
        self.holders = Holders([dataset, collate_fn])
        home = getattr(collate_fn, "__module__", None) or ""
        self._collate_is_pure = isinstance(collate_fn, FunctionType) and home.split(".")[0] in {"torch", "monai"}
        self._in_one_go = type(dataset) is not Subset and callable(getattr(dataset, "__getitems__", None))
        self._watch = DataWatch(dataset, self.holders)

    def __getitem__(self, request: Request) -> Any:
        batch = self._fetch(request)
        self._watch.look()
        return batch

    def _fetch(self, request: Request) -> Any:
        with OneThread(), self.holders:
            if self.batched:
                samples: Any = self._samples(request)
            else:
                samples = self._sample(request.place, request.indices, (request.occurrences or [0])[0])
            if not self._collate_is_pure:
                self._key(request.place.key("batch", request.batch, request.place.rank))
            return self.collate_fn(samples)

    def sample(self, place: Place, index: Any, occurrence: int = 0) -> Any:
        """Draw one sample alone, leaving the process-wide generators as they were."""
        with generators.isolate(), OneThread(), self.holders:
            return self._sample(place, index, occurrence)

    def _samples(self, request: Request) -> Any:
        indices = request.indices
        if self._in_one_go:
            # The dataset draws a batch in one go: a function of all its indices.
            drawn = tuple(map(index_component, indices))
            self._key(request.place.key("samples", drawn, tuple(request.occurrences or ())))
            return self.dataset.__getitems__(indices)
        occurrences = request.occurrences or [0] * len(indices)
        return [self._sample(request.place, *drawn) for drawn in zip(indices, occurrences, strict=True)]

    def _sample(self, place: Place, index: Any, occurrence: int) -> Any:
        self._key(place.key("sample", index_component(index), occurrence))
        return self.dataset[index]

    def _key(self, key: bytes) -> None:
        generators.key_all(key)
        self.holders.key(key)


def index_component(index: Any) -> keys.Component:
    """Write what a sampler yields as a component of a position.

    Raises:
        TypeError: If it is not made of integers, strings, and tuples or lists of them.
    """
    if isinstance(index, (list, tuple)):
        return tuple(map(index_component, index))
    if isinstance(index, str):
        return index
    try:
        return operator.index(index)
    except (AttributeError, TypeError):
        raise TypeError(
            f"the sampler yields {index!r} of type {type(index).__name__}, and samples are keyed by their index: "
            "let it yield integers, strings, or tuples or lists of them"
        ) from None


class OneThread:
    """Run torch's CPU kernels on one thread, as in a worker: some give other bits on more (sums, elastic fields)."""

    def __enter__(self) -> None:
        self._threads = torch.get_num_threads()
        if self._threads != 1:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._threads != 1:
            torch.set_num_threads(self._threads)


def worker_position() -> tuple[int, int]:
    """Return this worker's number and how many there are; (0, 1) in the main process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
