"""Drawing samples twice under the same key, to see whether they are a function of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from repro_callbacks import generators, keys
from repro_callbacks.fingerprint import digest_tree
from repro_callbacks.loading import keyed
from repro_callbacks.loading.fetch import OneThread
from repro_callbacks.loading.holders import Holders


@dataclass(frozen=True)
class Unequal:
    """A sample that differs when it is drawn again under the same key.

    Attributes:
        index: Its index.
        step: The first transform whose result differs; ``None`` if it can't be told.
        altered: The first transform that alters the stored data; ``None`` if none does, or if it can't be told.
    """

    index: int
    step: str | None
    altered: str | None


def unequal_draws(dataset: Any, indices: Sequence[int]) -> Unequal | None:
    """Draw each sample, each in another epoch, and each again under the first key; return the first that differs.

    It is done in a worker process, so that nothing of the caller's is altered.

    Args:
        dataset: A map-style dataset.
        indices: Which samples.

    Raises:
        What the dataset raises.
    """
    differing = _in_worker(_Again(dataset, list(indices)))
    if differing is None:
        return None
    step, altered = _in_worker(_Steps(dataset, differing))
    return Unequal(differing, step, altered)


def _in_worker(job: Dataset[Any]) -> Any:
    (result,) = DataLoader(job, batch_size=None, num_workers=1)
    return result


class _Again(Dataset[Any]):
    """One item: the first index whose sample differs at the second draw, or ``None``."""

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return 1

    def __getitem__(self, item: int) -> int | None:
        loader = keyed(DataLoader(self.dataset), seed=0)
        # In between come those of another epoch: what alters its data alike under the same key would be missed.
        first, _, again = ([digest_tree(loader.sample(index, epoch)) for index in self.indices] for epoch in (0, 1, 0))
        return next((i for i, one, other in zip(self.indices, first, again, strict=True) if one != other), None)


class _Steps(Dataset[Any]):
    """One item: of a dataset that keeps ``data`` and a ``transform``, as MONAI's, the steps that are at fault."""

    def __init__(self, dataset: Any, index: int) -> None:
        self.dataset = dataset
        self.index = index

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> tuple[str | None, str | None]:
        stored, transform = getattr(self.dataset, "data", None), getattr(self.dataset, "transform", None)
        if stored is None or not callable(transform):
            return None, None
        steps = list(getattr(transform, "transforms", (transform,)))
        passes = [self._pass(copy.deepcopy(stored[self.index]), steps) for _ in range(2)]
        names = [type(step).__name__ for step in steps]
        results, originals = zip(*passes, strict=True)
        step = next((name for name, one, other in zip(names, *results, strict=True) if one != other), None)
        before = digest_tree(stored[self.index])
        altered = next((name for name, after in zip(names, originals[0], strict=True) if after != before), None)
        return step, altered

    def _pass(self, original: Any, steps: list[Any]) -> tuple[list[str], list[str]]:
        """Apply the steps; return the digests of each one's result, and of the original after it."""
        results, originals = [], []
        item = original
        key = keys.derive(0, "audit", self.index)
        with generators.isolate(), OneThread(), Holders([self.dataset]) as holders:
            generators.key_all(key)
            holders.key(key)
            for step in steps:
                # a transform that crops several patches hands on a list, and MONAI applies the next to each
                item = [step(member) for member in item] if isinstance(item, list) else step(item)
                results.append(digest_tree(item))
                originals.append(digest_tree(original))
        return results, originals
