"""The keyed loader: a DataLoader whose batches are a function of their position.

It wraps a loader of the user's and reads, but never changes it: torch's, MONAI's, torchdata's, map-style or iterable.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.autograd import profiler
from torch.utils.data import DataLoader, IterableDataset

from repro_callbacks import generators, keys
from repro_callbacks.loading import order
from repro_callbacks.loading.fetch import KeyedDataset, Place, Request
from repro_callbacks.loading.problems import has_thread_workers, repeats_of, warn_of_problems
from repro_callbacks.loading.stream import KeyedStream, StreamPosition, StreamRequest, next_run
from repro_callbacks.loading.workers import WorkerInit, rank

_PROFILED = "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"
"""What torch's iterator calls its work in a profile; TensorBoard's page of a profile looks for the first part."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where an iteration begins. A trainer's is made from its own counters, so that nothing needs to be restored.

    Attributes:
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        epoch: The epoch.
        batch: How many batches of this pass are done already.
        cycle: Which pass of this epoch, for a loader that is shorter than another that it runs beside.
        loader: Which of several loaders.
        rank: Which process of a distributed run.
    """

    stage: str = "train"
    epoch: int = 0
    batch: int = 0
    cycle: int = 0
    loader: int = 0
    rank: int = 0


class KeyedLoader(DataLoader[Any]):
    """A DataLoader over the same dataset, in which everything random is keyed by where it is drawn.

    Made by :func:`keyed`, and by the ``Determinism`` callback for every loader of a trainer. Attributes that it does
    not have itself (``dataset``, ``batch_size``, ``sampler``, ...) are those of the loader that it was made from.

    Args:
        loader: The user's loader; it is left as it is.
        seeds: A seed for each purpose, as :func:`repro_callbacks.keys.check_seeds` gives them.
        where: Says where an iteration begins, at its first batch; the loader's own counters where it is None.
        stage: What the loader is for, where ``where`` is None.
        number: Which of several loaders of that stage it is, where ``where`` is None.
        num_workers: Another number of workers than the loader's own.

    Attributes:
        indices: What the sampler gave for the batch that was handed out last: the indices of its samples. None before
            the first batch of an epoch, and of an iterable dataset.
    """

    indices: Any = None

    def __init__(
        self,
        loader: DataLoader[Any],
        seeds: Mapping[str, int],
        where: Callable[[KeyedLoader], Start] | None = None,
        *,
        stage: str = "train",
        number: int = 0,
        num_workers: int | None = None,
    ) -> None:
        self.wrapped = loader
        self.seeds = dict(seeds)
        self.iterable = isinstance(loader.dataset, IterableDataset)
        self._where = where
        self._start = Start(stage=stage, loader=number)
        self._next_epoch: int | None = None
        self._batch = 0
        self._history: deque[dict[str, Any]] = deque(maxlen=4)
        self._resumed: dict[str, Any] | None = None
        self._plan = _Plan()
        self._engine = self._make_engine(loader, loader.num_workers if num_workers is None else num_workers)
        warn_of_problems(loader)

    def _make_engine(self, loader: DataLoader[Any], num_workers: int) -> DataLoader[Any]:
        dataset: Any
        if self.iterable:
            dataset = KeyedStream(loader.dataset, loader.collate_fn, loader.batch_size, loader.drop_last)
        else:
            dataset = KeyedDataset(loader.dataset, loader.collate_fn, batched=loader.batch_sampler is not None)
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=self._plan,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout if num_workers else 0,
            worker_init_fn=WorkerInit(loader.worker_init_fn, self.seeds["augment"]),
            multiprocessing_context=None
            if not num_workers or has_thread_workers(loader)
            else loader.multiprocessing_context,
            generator=torch.Generator(),  # so that starting an iterator draws from nobody else's
            prefetch_factor=loader.prefetch_factor if num_workers else None,
            persistent_workers=loader.persistent_workers and num_workers > 0,
        )

    def __getattr__(self, name: str) -> Any:
        if name in {"wrapped", "__setstate__"} or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __len__(self) -> int:
        return len(self.wrapped)

    @property
    def num_workers(self) -> int:  # type: ignore[override]
        """How many workers load; that of the loader it was made from unless another number was asked for."""
        return self._engine.num_workers

    @property
    def _iterator(self) -> Any:
        # Lightning shuts persistent workers down through this attribute of torch's DataLoader.
        return self._engine._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self._engine._iterator = value

    # -- positions ---------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is; without it, each iteration is the epoch after the last.

        Args:
            epoch: 0 or more.
        """
        self._next_epoch = keys.check_seed(epoch, "epoch")

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, as plain values (``torch.load(weights_only=True)`` reads them)."""
        state: dict[str, Any] = {
            "version": 1,
            "seeds": dict(self.seeds),
            "epoch": self._start.epoch,
            "batch": self._batch,
            "num_workers": self.num_workers,
        }
        if self.iterable and self._history:
            done = self._where(self).batch if self._where is not None else self._batch
            fitting = [position for position in self._history if position["delivered"] == done]
            state["stream"] = (fitting or [self._history[-1]])[-1]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on where :meth:`state_dict` was taken.

        No sample is loaded to be skipped, except in an iterable dataset without a ``state_dict`` of its own.

        Raises:
            ValueError: If the state is not one of a keyed loader, or was made with other seeds; or, for an iterable
                dataset, with another ``num_workers``, which gives other samples.
        """
        if state.get("version") != 1 or "seeds" not in state:
            raise ValueError(f"not the state of a keyed loader: it holds {sorted(state)}")
        if dict(state["seeds"]) != self.seeds:
            raise ValueError(
                f"this state was made with the seeds {dict(state['seeds'])}, and the loader has {self.seeds}: "
                "make it with the same ones"
            )
        if self.iterable and state["num_workers"] != self.num_workers and state["batch"]:
            raise ValueError(
                f"this state was made with num_workers={state['num_workers']}, and the loader has "
                f"num_workers={self.num_workers}: the samples of an iterable dataset depend on it, so a run resumes "
                "only with the same number (a map-style dataset resumes with any)"
            )
        self._resumed = dict(state)

    def _own_start(self) -> Start:
        """Where the next iteration begins when nobody else says it."""
        resumed, self._resumed = self._resumed, None
        epoch = self._next_epoch
        if resumed is not None and epoch in (None, resumed["epoch"]):
            self._stream_state = resumed.get("stream")
            return dataclasses.replace(self._start, epoch=resumed["epoch"], batch=resumed["batch"], rank=rank())
        self._stream_state = None
        if epoch is None:
            epoch = self._start.epoch + 1 if self._begun else self._start.epoch
        return dataclasses.replace(self._start, epoch=epoch, batch=0, rank=rank())

    _begun = False
    _stream_state: dict[str, Any] | None = None

    # -- iteration ---------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: the position is read at the first batch, when the counters of a resumed trainer are final.
        start = self._own_start() if self._where is None else self._where(self)
        if self._where is not None and self._resumed is not None:
            self._stream_state, self._resumed = self._resumed.get("stream"), None
        self._start, self._batch, self._begun, self._next_epoch = start, start.batch, True, None
        self.indices = None
        place = Place(self.seeds["augment"], start.stage, start.loader, start.epoch, start.cycle, start.rank)
        fetched = self._stream(place, start) if self.iterable else self._map(place, start)
        for batch in fetched:
            self.key_step("batch", self._batch)
            self._batch += 1
            yield batch
        if self._where is None:
            self._start, self._batch, self._begun = dataclasses.replace(start, epoch=start.epoch + 1, batch=0), 0, False

    def _deliver(self, requests: Iterator[Any]) -> Iterator[Any]:
        """Yield what the dataset of the engine makes of each request."""
        if self.num_workers or self._engine.pin_memory:
            self._plan.requests = requests
            yield from self._engine
            return
        # What torch's iterator does in the main process, but for the note that it leaves for a profiler whether or not
        # there is one: that takes longer than a small batch.
        fetch = self._engine.dataset.__getitem__
        for request in requests:
            if profiler._is_profiler_enabled:
                with profiler.record_function(_PROFILED):
                    batch = fetch(request)
                yield batch
            else:
                yield fetch(request)

    def _map(self, place: Place, start: Start) -> Iterator[Any]:
        key = place._replace(seed=self.seeds["order"]).key("order")
        # MONAI's ThreadDataLoader hands out each batch this many times
        repeats = repeats_of(self.wrapped)
        first, done = divmod(start.batch, repeats)
        drawn = order.batches(self.wrapped, key, first, start.epoch)
        asked: deque[Any] = deque()  # workers are asked ahead
        for batch in self._deliver(_noted(asked, place, enumerate(drawn, first))):
            self.indices = asked.popleft()
            yield from itertools.repeat(batch, repeats - done)
            done = 0

    def _stream(self, place: Place, start: Start) -> Iterator[Any]:
        workers = max(1, self.num_workers)
        saved, self._stream_state = self._stream_state, None
        position = StreamPosition(workers)
        if saved is not None and self._engine.dataset.keeps_state and saved["delivered"] == start.batch:  # type: ignore[attr-defined]
            position = StreamPosition.from_state(workers, saved)
        offset, states = position.requests, dict(position.states)
        requests = itertools.repeat(StreamRequest(place, next_run(), offset % workers, states))
        self._history.clear()
        progress = _ReplayProgress(start.batch - position.delivered)
        for delivery in self._deliver(requests):
            if position.take(delivery):
                if position.delivered <= start.batch:
                    progress.step()
                    continue
                self._history.append(position.state_dict())
                yield delivery.batch
            elif position.ended:
                return

    def key_step(self, purpose: str, batch: int) -> None:
        """Key the process-wide generators for what is drawn in the main process while it works on a batch."""
        start = self._start
        place = (self.seeds["step"], "step", start.stage, purpose, start.loader, start.epoch)
        generators.key_all(keys.derive_within(place, batch, start.rank))

    def sample(self, index: Any, epoch: int = 0, *, occurrence: int = 0, cycle: int = 0) -> Any:
        """Draw one sample again, alone, as it comes in that epoch: before it is collated.

        Args:
            index: Its index in the dataset.
            epoch: The epoch.
            occurrence: How often the index came up before in this epoch (a sampler with replacement).
            cycle: Which pass of this epoch.

        Raises:
            TypeError: If the dataset is iterable-style: it has no index.

        Example:
            >>> loader = keyed(DataLoader([10, 20, 30]), seed=0)
            >>> loader.sample(2, epoch=3)
            30
        """
        if self.iterable:
            raise TypeError(
                f"{type(self.wrapped.dataset).__name__} is an iterable dataset: it has no sample {index!r} to draw"
            )
        place = Place(self.seeds["augment"], self._start.stage, self._start.loader, epoch, cycle, 0)
        return self._engine.dataset.sample(place, index, occurrence)  # type: ignore[attr-defined]


def _noted(asked: deque[Any], place: Place, batches: Iterator[tuple[int, tuple[Any, Any]]]) -> Iterator[Request]:
    """Yield a request for each batch, and note the indices that it asks for."""
    for batch, (indices, occurrences) in batches:
        asked.append(indices)
        yield Request(place, batch, indices, occurrences)


class _Plan:
    """The engine's sampler: what its next iterator asks for."""

    requests: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.requests


class _ReplayProgress:
    """Says on the terminal how far a replay is, once it takes longer than a few seconds."""

    def __init__(self, total: int, patience: float = 5.0) -> None:
        self.total, self.done = total, 0
        self._due = time.monotonic() + patience

    def step(self) -> None:
        self.done += 1
        if time.monotonic() >= self._due:
            print(
                f"repro_callbacks: replaying an iterable dataset to resume: batch {self.done} of {self.total}",
                flush=True,
            )
            self._due = time.monotonic() + 5.0


def _as_it_is(batch: Any) -> Any:
    return batch


def check_num_workers(num_workers: object) -> None:
    """Refuse what is not a number of workers, or None for a loader's own.

    Raises:
        ValueError: If it is neither None nor an integer of 0 or more.
    """
    if num_workers is not None and (
        isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0
    ):
        raise ValueError(f"num_workers must be an integer of 0 or more, or None, not {num_workers!r}")


def keyed(
    loader: DataLoader[Any],
    seed: int,
    *,
    seeds: Mapping[str, int] | None = None,
    stage: str = "train",
    number: int = 0,
    num_workers: int | None = None,
) -> KeyedLoader:
    """Return a loader over the same data whose batches are a function of seed, epoch and index alone.

    For a plain PyTorch or MONAI loop; inside Lightning the ``Determinism`` callback does it. Any ``num_workers`` gives
    the same bits, and a run goes on from :meth:`KeyedLoader.state_dict` at any batch. Each batch that is handed out
    also keys the process-wide generators, so that dropout in the loop's body is a function of epoch and batch too.

    With several processes the loader has a ``DistributedSampler`` of the user's. Lightning Fabric is given the keyed
    loader: ``fabric.setup_dataloaders(keyed(loader, 3407), use_distributed_sampler=False)``.

    Args:
        loader: A DataLoader of torch, MONAI or torchdata, map-style or iterable. It is left as it is.
        seed: 0 to 2³²-1.
        seeds: Another seed for some purposes: ``"order"``, ``"augment"``, ``"step"``.
        stage: ``"train"``; another name for a loader whose draws are to be independent of it.
        number: Which of several loaders of a stage: their draws are independent of each other.
        num_workers: Another number of workers than the loader's own.

    Raises:
        TypeError: If ``loader`` is not a DataLoader, or a seed is not an integer.
        ValueError: If a seed or ``num_workers`` is out of range.

    Example:
        >>> data = torch.arange(6.0)
        >>> loader = keyed(DataLoader(data, batch_size=2, shuffle=True), seed=3407)
        >>> first = [batch.tolist() for batch in loader]
        >>> loader.set_epoch(0)
        >>> [batch.tolist() for batch in loader] == first
        True
    """
    if isinstance(loader, KeyedLoader):
        loader = loader.wrapped
    if not isinstance(loader, DataLoader):
        kind = type(loader).__name__
        remedy = ": key the loader first, and give what you get to Fabric" if kind == "_FabricDataLoader" else ""
        raise TypeError(f"keyed needs a torch DataLoader (or MONAI's, or torchdata's), not {kind}{remedy}")
    check_num_workers(num_workers)
    every = keys.check_seeds(keys.check_seed(seed), seeds)
    return KeyedLoader(loader, every, stage=stage, number=keys.check_seed(number, "number"), num_workers=num_workers)
