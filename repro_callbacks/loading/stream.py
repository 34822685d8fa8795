"""Iterable-style datasets. They have no index to key by, so their randomness is a function of worker and item.

What worker ``w`` of ``n`` draws for its item ``i`` depends on (seed, epoch, rank, w, i), so a run repeats for the same
``num_workers``, and another number gives other samples, as it does without us. A run resumes exactly: by the
dataset's own ``state_dict`` where it has one, else by going through the items again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import Dataset, get_worker_info

from repro_callbacks import generators
from repro_callbacks.loading.fetch import OneThread, Place, worker_position
from repro_callbacks.loading.holders import Holders


class StreamRequest(NamedTuple):
    """The next batch of whichever worker gets this request."""

    place: Place
    run: int
    """Another number for each iterator, so that a worker that lives on knows when to start again."""
    offset: int
    """How many requests came before this iterator: worker ``w`` goes on as number ``(w + offset) % n``."""
    states: dict[int, WorkerState]


class WorkerState(NamedTuple):
    """Where one worker's stream stands."""

    items: int
    ended: bool
    dataset: Any


class Delivery(NamedTuple):
    """What a worker answers: a batch, unless its stream has ended, and where it stands then."""

    worker: int
    batch: Any
    state: WorkerState


class KeyedStream(Dataset[Any]):
    """An iterable-style dataset, seen as a map-style one whose items are :class:`Delivery` of the next batch.

    Args:
        dataset: The user's iterable.
        collate_fn: The user's.
        batch_size: Samples in a batch; None where the dataset yields whole batches.
        drop_last: Whether to leave out a last batch that is not full.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[Any], Any], batch_size: int | None, drop_last: bool) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.holders = Holders([dataset, collate_fn])
        self.keeps_state = has_state(dataset)
        self._run = -1
        self._worker = 0
        self._items = 0
        self._ended = False
        self._iterator: Iterator[Any] = iter(())

    def __getitem__(self, request: StreamRequest) -> Delivery:
        with OneThread(), self.holders:
            if request.run != self._run:
                self._begin(request)
            batch = None if self._ended else self._next_batch(request.place)
        state = self.dataset.state_dict() if self.keeps_state and not self._ended else None
        return Delivery(self._worker, batch, WorkerState(self._items, self._ended, state))

    def _begin(self, request: StreamRequest) -> None:
        number, workers = worker_position()
        self._run, self._worker = request.run, (number + request.offset) % workers
        if (info := get_worker_info()) is not None:
            object.__setattr__(info, "id", self._worker)  # WorkerInfo refuses assignment; the dataset shards by this
        state = request.states.get(self._worker, WorkerState(0, False, None))
        self._items, self._ended = state.items, state.ended
        if state.dataset is not None:
            self.dataset.load_state_dict(state.dataset)
        self._key(request.place, "worker")
        self._iterator = iter(()) if self._ended else iter(self.dataset)

    def _next_batch(self, place: Place) -> Any:
        wanted = 1 if self.batch_size is None else self.batch_size
        samples: list[Any] = []
        while len(samples) < wanted:
            self._key(place, "worker")
            try:
                samples.append(next(self._iterator))
            except StopIteration:
                self._ended = True
                break
            self._items += 1
        if not samples or (self.drop_last and len(samples) < wanted):
            self._ended = True
            return None
        # A short last batch is delivered first; the request after it finds the stream ended.
        self._ended = False
        self._key(place, "worker batch")
        return self.collate_fn(samples[0] if self.batch_size is None else samples)

    def _key(self, place: Place, purpose: str) -> None:
        key = place.key(purpose, place.rank, self._worker, self._items)
        generators.key_all(key)
        self.holders.key(key)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iterator": iter(()), "_run": -1}


def has_state(dataset: object) -> bool:
    """Whether a dataset can say and take back where its iteration stands."""
    return all(callable(getattr(dataset, name, None)) for name in ("state_dict", "load_state_dict"))


class StreamPosition:
    """Where an iterator over a :class:`KeyedStream` stands, as the main process knows it.

    Args:
        workers: How many streams there are: ``num_workers``, or 1 without workers.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.requests = 0
        self.delivered = 0
        self.states: dict[int, WorkerState] = {}

    def take(self, delivery: Delivery) -> bool:
        """Note a delivery, and return whether it holds a batch."""
        self.requests += 1
        self.states[delivery.worker] = delivery.state
        holds = not delivery.state.ended
        self.delivered += holds
        return holds

    @property
    def ended(self) -> bool:
        """Whether every stream has ended."""
        return len(self.states) == self.workers and all(state.ended for state in self.states.values())

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, as a checkpoint holds them."""
        return {
            "requests": self.requests,
            "delivered": self.delivered,
            "workers": {worker: list(state) for worker, state in self.states.items()},
        }

    @classmethod
    def from_state(cls, workers: int, state: dict[str, Any]) -> StreamPosition:
        """Make a position from what :meth:`state_dict` returned."""
        position = cls(workers)
        position.requests, position.delivered = state["requests"], state["delivered"]
        position.states = {int(worker): WorkerState(*values) for worker, values in state["workers"].items()}
        return position


_runs = itertools.count()


def next_run() -> int:
    """Return a number that no iterator of this process had before."""
    return next(_runs)
