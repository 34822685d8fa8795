"""Which indices of the dataset a batch was made of, as torch's DataLoader asked for them.

A keyed loader tells it. Of another nothing public does, once the samples are collated. So, while a training is watched,
four methods of a DataLoader's iterators are looked at (torch 2.13, ``torch/utils/data/dataloader.py``:
``_BaseDataLoaderIter.__init__``, ``_reset``, ``_next_index`` and ``__next__``). They do what they did before, and are
put back. Only this module knows them.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from repro_callbacks.loading import KeyedLoader

_METHODS: Final = ("__init__", "_reset", "_next_index", "__next__")
_watching = 0
_originals: dict[str, Any] = {}
_asked: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()
_handed_out: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def watch() -> None:
    """Begin to look. Each call needs one of :func:`unwatch`."""
    global _watching
    _watching += 1
    if _watching > 1:
        return
    _originals.update({name: vars(_BaseDataLoaderIter)[name] for name in _METHODS})
    begin, reset, next_index, next_batch = (_originals[name] for name in _METHODS)

    def __init__(self: Any, loader: Any) -> None:
        _asked[self] = deque()
        self._repro_callbacks_loader = weakref.ref(loader)
        begin(self, loader)

    def _reset(self: Any, *args: Any, **kwargs: Any) -> None:
        if self in _asked:
            _asked[self].clear()  # a persistent iterator that was left before its end had asked ahead
        reset(self, *args, **kwargs)

    def _next_index(self: Any) -> Any:
        index = next_index(self)
        if self in _asked:
            _asked[self].append(index)
        return index

    def __next__(self: Any) -> Any:
        batch = next_batch(self)
        loader = self._repro_callbacks_loader() if self in _asked else None
        if loader is not None and _asked[self]:
            _handed_out[loader] = _asked[self].popleft()
        return batch

    for name, method in zip(_METHODS, (__init__, _reset, _next_index, __next__), strict=True):
        setattr(_BaseDataLoaderIter, name, method)


def unwatch() -> None:
    """End to look, and put torch's methods back."""
    global _watching
    _watching -= 1
    if _watching == 0:
        for name in _METHODS:
            setattr(_BaseDataLoaderIter, name, _originals[name])


def last_indices(loaders: Iterable[Any]) -> list[Any] | None:
    """Return the indices of the last batch that loaders have handed out; None where they can't be known.

    They can't of an iterable dataset, of a loader that is not a DataLoader, and where batches may come out of order.
    """
    found: list[Any] = []
    for loader in loaders:
        if isinstance(loader, KeyedLoader):
            asked = loader.indices
        elif isinstance(loader, DataLoader) and getattr(loader, "in_order", True):
            asked = _handed_out.get(loader)
        else:
            return None
        found += asked if isinstance(asked, list | tuple) else [asked]
    plain = [index.__index__() if hasattr(index, "__index__") else index for index in found]
    return plain if plain and all(isinstance(index, int | str) for index in plain) else None
