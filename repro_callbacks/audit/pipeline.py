"""What in a data pipeline is not a function of its generators: by the classes in it, and by drawing samples twice."""

from __future__ import annotations

import multiprocessing.context
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from repro_callbacks.audit.draws import unequal_draws
from repro_callbacks.audit.findings import Finding
from repro_callbacks.audit.transforms import of_object
from repro_callbacks.loading.holders import reachable


def audit_pipeline(dataset_or_loader: Any, samples: int = 2) -> list[Finding]:
    """Return what in a dataset, a loader or a transform is not a function of its position.

    Args:
        dataset_or_loader: A DataLoader, a dataset, or a transform; it is left as it is.
        samples: How many samples to draw twice, in a worker process, of a map-style dataset: the first ones. 0 draws
            none.

    Raises:
        ValueError: If ``samples`` is negative.
        What the dataset raises while a sample is drawn.

    Example:
        >>> import random
        >>> from torch.utils.data import Dataset
        >>> class Entropy(Dataset):
        ...     def __len__(self): return 1
        ...     def __getitem__(self, index): return random.SystemRandom().random()
        >>> print(audit_pipeline(Entropy())[0].what)
        sample 0 differs when it is drawn again under the same key
    """
    if samples < 0:
        raise ValueError(f"samples must be 0 or more, not {samples}")
    pipeline = getattr(dataset_or_loader, "wrapped", dataset_or_loader)  # a keyed loader's
    findings: list[Finding] = []
    roots = [pipeline]
    if isinstance(pipeline, DataLoader):
        findings += _of_loader(pipeline)
        roots = [pipeline.dataset, pipeline.collate_fn, pipeline.sampler]
    findings += _of_objects(list(reachable(roots)))
    dataset = roots[0]
    if isinstance(dataset, IterableDataset):
        findings.append(
            Finding(
                "note",
                type(dataset).__name__,
                "is an iterable dataset, whose samples have no index: they depend on num_workers",
                "the same num_workers in every run that is to be equal, or a map-style dataset",
                "PyTorch, torch.utils.data.IterableDataset",
            )
        )
    elif samples and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        findings += _of_draws(dataset, min(samples, len(dataset)))
    return findings


def _of_loader(loader: DataLoader[Any]) -> Iterator[Finding]:
    name = type(loader).__name__
    # MONAI's ThreadDataLoader(use_thread_workers=True) keeps no other trace of it than the context of its workers.
    context = loader.multiprocessing_context
    if isinstance(context, multiprocessing.context.BaseContext) and issubclass(context.Process, threading.Thread):  # type: ignore[attr-defined]
        yield Finding(
            "warning",
            f"{name}(use_thread_workers=True)",
            "loads in threads that share their generators, in an order that nothing fixes",
            "use_thread_workers=False; Determinism and keyed() load it in worker processes",
            "MONAI 1.6.1, data/thread_buffer.py",
        )
    if not getattr(loader, "in_order", True) and loader.num_workers > 0:
        yield Finding(
            "warning",
            f"{name}(in_order=False)",
            "hands batches out as they are finished",
            "in_order=True; Determinism and keyed() hand them out in order",
            "PyTorch, torch.utils.data.DataLoader",
        )


def _of_objects(objects: list[Any]) -> Iterator[Finding]:
    # Data that is loaded from a file for each sample, or copied out of a cache, is nobody else's.
    fresh = any(
        getattr(obj, "copy_cache", False) is True or type(obj).__name__ in ("LoadImage", "LoadImaged")
        for obj in objects
    )
    rows = [(obj, row) for obj in objects if (row := of_object(obj)) is not None]
    inner = {id(value) for obj, _ in rows for value in vars(obj).values()}  # the array transform in a dictionary's
    for obj, row in rows:
        if id(obj) not in inner:
            level = "note" if row.in_place and fresh else row.level
            yield Finding(level, _name(obj), row.what, row.instead, row.source)


def _name(obj: Any) -> str:
    keys = getattr(obj, "keys", None)
    return type(obj).__name__ + (f"(keys={keys!r})" if isinstance(keys, tuple) else "")


def _of_draws(dataset: Any, samples: int) -> Iterator[Finding]:
    unequal = unequal_draws(dataset, range(samples))
    if unequal is None:
        return
    what = f"sample {unequal.index} differs when it is drawn again under the same key"
    if unequal.altered is not None:
        yield Finding(
            "error",
            f"{unequal.altered} in {type(dataset).__name__}",
            f"{what}: it alters the stored data in place",
            "a copy before it: Lambdad(keys, copy.deepcopy), or CacheDataset with copy_cache=True",
            "drawn twice here",
        )
    if unequal.step is not None or unequal.altered is None:
        yield Finding(
            "error",
            type(dataset).__name__ if unequal.step is None else f"{unequal.step} in {type(dataset).__name__}",
            what,
            "generators that are kept as attributes, or the process-wide ones (random, numpy.random, torch); no time, "
            "no entropy, no state that goes on from sample to sample",
            "drawn twice here",
        )
