"""The order of an epoch: a function of its key, whatever sampler makes it, with the user's sampler left as it was."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from repro_callbacks import generators, keys
from repro_callbacks.loading.holders import Holders

Drawn = tuple[Any, int]
"""An index, and how often it has come up before in this pass."""

_SEEDED_BY_GENERATOR = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class _Pass(NamedTuple):
    """Which pass over a loader an order is drawn for."""

    key: bytes
    epoch: int
    excluded: list[Any]


def batches(loader: DataLoader[Any], key: bytes, start: int = 0, epoch: int = 0) -> Iterator[tuple[Any, list[int]]]:
    """Yield the indices of each batch, and their occurrences, from batch ``start`` on; no sample is loaded.

    Args:
        loader: The user's loader.
        key: The key of this pass's order; the same on every rank.
        start: How many batches to pass over.
        epoch: What a sampler that has ``set_epoch`` is told, in a copy of it.
    """
    this = _Pass(key, epoch, [loader.dataset])
    batch_sampler = _as_torchs(loader.batch_sampler)
    if batch_sampler is None:  # batch_size=None: one index at a time
        for index, occurrence in _drawn(loader.sampler, this, start):
            yield index, [occurrence]
    elif type(batch_sampler) is BatchSampler:
        again: Any = copy.copy(batch_sampler)
        again.sampler = _drawn(batch_sampler.sampler, this, start * batch_sampler.batch_size)
        for batch in again:
            yield [index for index, _ in batch], [occurrence for _, occurrence in batch]
    else:
        count = _counter()
        for number, indices in enumerate(_isolated(batch_sampler, this)):
            occurrences = [count(index) for index in indices]
            if number >= start:
                yield indices, occurrences


def _as_torchs(sampler: Any) -> Any:
    """Return torchdata's stateful version of a torch sampler, which has the same attributes, as torch's own."""
    kind = {"RandomSampler": RandomSampler, "BatchSampler": BatchSampler}.get(type(sampler).__name__)
    if kind is None or not type(sampler).__module__.startswith("torchdata."):
        return sampler
    plain: Any = object.__new__(kind)
    vars(plain).update(vars(sampler))
    return plain


def _drawn(sampler: Any, this: _Pass, start: int = 0) -> Iterator[Drawn]:
    sampler = _as_torchs(sampler)
    if type(sampler) is RandomSampler and _is_permutation(sampler):
        # What the sampler itself draws; cut before it becomes a list, so that a resume costs no more than a start.
        order = torch.randperm(len(sampler.data_source), generator=_keyed_copy(sampler, this.key).generator)
        return zip(order[start : sampler.num_samples].tolist(), itertools.repeat(0))
    return itertools.islice(_all_drawn(sampler, this), start, None)


def _is_permutation(sampler: RandomSampler) -> bool:
    return not sampler.replacement and sampler.num_samples <= len(sampler.data_source)


def _all_drawn(sampler: Any, this: _Pass) -> Iterator[Drawn]:
    kind = type(sampler)
    if kind is SequentialSampler:
        return zip(sampler, itertools.repeat(0))
    if kind in _SEEDED_BY_GENERATOR:
        return _counted(_keyed_copy(sampler, this.key))
    if not isinstance(sampler, DistributedSampler):
        return _counted(_isolated(sampler, this))
    wrapped = getattr(getattr(sampler, "dataset", None), "_sampler", None)
    if isinstance(wrapped, Sampler):
        return _distributed(sampler, wrapped, this)
    if kind.__iter__ is DistributedSampler.__iter__:  # torch's, MONAI's
        return _counted(_keyed_copy(sampler, this.key))
    # One that goes on to draw, each rank for itself, as MONAI's weighted one does.
    own = this._replace(key=keys.derive(0, "rank", this.key.hex(), sampler.rank))
    return _counted(_isolated(_keyed_copy(sampler, this.key), own))


def _keyed_copy(sampler: Any, key: bytes) -> Any:
    """Return the sampler with another seed, leaving the user's own as it is.

    A ``RandomSampler`` and a ``DistributedSampler`` draw the same permutation from the same key, of which each rank
    of the latter takes its share. So the order of samples is the same for any number of ranks.
    """
    again = copy.copy(sampler)
    seed = keys.words64(key)[0]
    if isinstance(again, DistributedSampler):
        again.seed, again.epoch = seed, 0
    else:
        again.generator = torch.Generator()
        again.generator.manual_seed(seed)
    return again


def _distributed(sampler: DistributedSampler[Any], wrapped: Sampler[Any], this: _Pass) -> Iterator[Drawn]:
    """Deal out the order of another sampler to the ranks, as Lightning's ``DistributedSamplerWrapper`` does.

    It is not shuffled once more, and an index is counted over all ranks: the samples do not depend on their number.
    """
    order = list(_drawn(wrapped, this))
    positions = copy.copy(sampler)
    positions.dataset = range(len(order))  # type: ignore[assignment]
    positions.shuffle = False
    return (order[position] for position in DistributedSampler.__iter__(positions))


def _counter() -> Any:
    seen: defaultdict[Any, int] = defaultdict(int)

    def count(index: Any) -> int:
        name = tuple(index) if isinstance(index, list) else index
        seen[name] += 1
        return seen[name] - 1

    return count


def _counted(indices: Iterable[Any]) -> Iterator[Drawn]:
    count = _counter()
    return ((index, count(index)) for index in indices)


def _isolated(sampler: Any, this: _Pass) -> Iterator[Any]:
    """Iterate a sampler of unknown make: whatever it draws from is keyed, and kept apart from everybody else's draws.

    It may draw at any of its steps from a generator of its own or a process-wide one. These are put back to where they
    were after each step, and so is what it holds once the iteration ends.
    """
    if callable(getattr(sampler, "set_epoch", None)):
        sampler = copy.copy(sampler)
        sampler.set_epoch(this.epoch)
    holders = Holders([sampler], this.excluded)
    iterator: Iterator[Any] | None = None
    inside: Any = None
    with holders:
        holders.key(this.key)
        while True:
            with generators.isolate():
                if iterator is None:
                    generators.key_all(this.key)
                    iterator = iter(sampler)
                else:
                    generators.restore(inside)
                try:
                    index = next(iterator)
                except StopIteration:
                    return
                inside = generators.snapshot()
            yield index
