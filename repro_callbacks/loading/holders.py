"""Who holds a generator: every random stream that a dataset, its transforms and its collate function can reach.

A MONAI transform is recognised by what it has (``set_random_state`` and ``R``), not by its class. While a sample is
drawn, each such object gets a stream of its own under the sample's key, in place of its ``R``; a NumPy, torch or
Python generator that is kept anywhere else is keyed where it is. Afterwards all are as they were.
"""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from repro_callbacks import keys
from repro_callbacks.loading.streams import Stream, stream_words

_PLAIN = frozenset({str, bytes, bytearray, int, float, bool, complex, type(None), range, slice, type})
_ROWS = _PLAIN | {dict, list, tuple, np.ndarray, torch.Tensor}
_MANY = 2000
"""A container with more entries than this that holds nothing but plain rows is data: only its start is looked into."""
_SKIPPED_CLASSES = frozenset({"Trainer", "LightningModule", "Tensor", "ndarray", "DataFrame", "Series"})
_SHARED = frozenset(map(id, (np.random.mtrand._rand, torch.default_generator, random._inst)))
"""The process-wide generators, which :mod:`repro_callbacks.generators` keys."""


def reachable(roots: Iterable[object], excluded: Iterable[object] = ()) -> Iterator[Any]:
    """Yield every object that can be reached from ``roots``, nearest first, in an order that repeats.

    It follows attributes, slots, dictionaries, lists, tuples, closures, defaults, partials and bound methods, and
    survives cycles. Trainers, models, modules and classes are not entered.

    Args:
        roots: Where to start.
        excluded: Objects that are not entered.
    """
    queue = deque(roots)
    seen: dict[int, object] = {id(obj): obj for obj in excluded}
    while queue:
        obj = queue.popleft()
        if id(obj) in seen:
            continue
        seen[id(obj)] = obj  # kept alive, so that its id can't be another object's
        yield obj
        queue.extend(child for child in _children(obj) if type(child) not in _PLAIN and id(child) not in seen)


def _children(obj: Any) -> Iterable[Any]:
    if isinstance(obj, dict):
        return [*_entries(list(obj.values())), *_attributes(obj)]
    if isinstance(obj, (list, tuple, deque)):
        return [*_entries(obj), *_attributes(obj)]
    if isinstance(obj, types.FunctionType):
        cells = [_cell(cell) for cell in obj.__closure__ or ()]
        return [*cells, *(obj.__defaults__ or ()), *(obj.__kwdefaults__ or {}).values(), *obj.__dict__.values()]
    if isinstance(obj, types.MethodType):
        return (obj.__self__, obj.__func__)
    if isinstance(obj, functools.partial):
        return (obj.func, *obj.args, *obj.keywords.values())
    if isinstance(obj, (type, types.ModuleType, types.BuiltinFunctionType, set, frozenset)):
        return ()
    if any(cls.__name__ in _SKIPPED_CLASSES for cls in type(obj).__mro__):
        return ()
    return _attributes(obj)


def _entries(values: Any) -> Iterable[Any]:
    if len(values) <= _MANY:
        return list(values)
    kinds = set(map(type, values))
    if kinds <= _PLAIN:
        return ()
    return list(values)[: _MANY // 2] if kinds <= _ROWS else list(values)


def _attributes(obj: Any) -> list[Any]:
    values = list(getattr(obj, "__dict__", {}).values())
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            descriptor = cls.__dict__.get(name)
            if isinstance(descriptor, types.MemberDescriptorType) and hasattr(obj, name):
                values.append(getattr(obj, name))
    return values


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that the enclosing function has not assigned yet
        return None


def has_own_stream(obj: object) -> bool:
    """Whether an object draws from an ``R`` as MONAI's ``Randomizable`` does, so that ``R`` can be replaced."""
    if isinstance(obj, type) or not hasattr(obj, "__dict__") or not callable(getattr(obj, "set_random_state", None)):
        return False
    return isinstance(getattr(obj, "R", None), np.random.RandomState) and not hasattr(
        getattr(type(obj), "R", None), "__set__"
    )


class Holders:
    """The objects below ``roots`` that hold a generator, and the streams that they get while a sample is drawn.

    Args:
        roots: The dataset, the collate function, a sampler, ...
        excluded: Objects that are not entered.

    Attributes:
        randomizables: Objects, and classes of such objects, whose ``R`` is replaced.
        generators: Other generators, which are keyed where they are.
        data: The tensors and arrays that were met, for :class:`repro_callbacks.loading.problems.DataWatch`.

    Example:
        >>> class Noisy:
        ...     def __init__(self): self.rng = np.random.default_rng()
        >>> noisy = Noisy()
        >>> holders = Holders([noisy])
        >>> with holders:
        ...     holders.key(keys.derive(0, "sample", 7)); a = noisy.rng.random()
        ...     holders.key(keys.derive(0, "sample", 7)); b = noisy.rng.random()
        >>> a == b
        True
    """

    def __init__(self, roots: Iterable[object], excluded: Iterable[object] = ()) -> None:
        self.randomizables: list[Any] = []
        self.generators: list[Any] = []
        self.data: list[Any] = []
        classes: dict[type, None] = {}
        replaced: set[int] = set()
        found: list[Any] = []
        for obj in reachable(roots, excluded):
            if has_own_stream(obj):
                self.randomizables.append(obj)
                replaced.add(id(obj.R))
                classes.update((cls, None) for cls in type(obj).__mro__ if "R" in vars(cls))
            elif isinstance(obj, (torch.Tensor, np.ndarray)):
                self.data.append(obj)
            elif isinstance(obj, (np.random.RandomState, np.random.Generator, torch.Generator, random.Random)):
                found.append(obj)
        # Objects that a transform makes anew in each call share the R of their class.
        self.randomizables += classes
        self.generators = [g for g in found if id(g) not in _SHARED and id(g) not in replaced]
        self._streams = [Stream() for _ in self.randomizables]
        self._kept: list[Any] = []
        self._states: list[Any] = []
        self._depth = 0

    def __enter__(self) -> Holders:
        self._depth += 1
        if self._depth == 1 and (self.randomizables or self.generators):
            self._kept = [vars(obj).get("R") for obj in self.randomizables]
            self._states = [_state(generator) for generator in self.generators]
            for obj, stream in zip(self.randomizables, self._streams, strict=True):
                obj.R = stream
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth or not (self.randomizables or self.generators):
            return
        for obj, kept in zip(self.randomizables, self._kept, strict=True):
            if kept is None:
                vars(obj).pop("R", None)  # it shared the R of its class
            else:
                obj.R = kept
        for generator, state in zip(self.generators, self._states, strict=True):
            _set_state(generator, state)
        self._kept, self._states = [], []

    def key(self, key: bytes) -> None:
        """Give every holder its stream under ``key``. Between :meth:`__enter__` and :meth:`__exit__`."""
        if not self._streams and not self.generators:
            return
        for stream, words in zip(self._streams, stream_words(key, len(self._streams)), strict=True):
            stream.seek(words)
        for number, generator in enumerate(self.generators, len(self._streams) + 1):
            _key_generator(generator, keys.derive(0, "holder", key.hex(), number))

    def __getstate__(self) -> dict[str, Any]:
        # the streams hold nothing that is worth sending to a worker
        return {"randomizables": self.randomizables, "generators": self.generators, "data": self.data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._streams = [Stream() for _ in self.randomizables]
        self._kept, self._states, self._depth = [], [], 0


def _key_generator(generator: Any, key: bytes) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(keys.words64(key)[0])
    elif isinstance(generator, random.Random):
        generator.seed(int.from_bytes(key[:16], "little"))
    elif isinstance(generator, np.random.RandomState) and isinstance(generator._bit_generator, np.random.MT19937):
        generator.seed(keys.words32(key)[:4])
    elif isinstance(generator, np.random.RandomState):
        fresh = type(generator._bit_generator)(list(keys.words32(key)[:4])).state
        generator.set_state({**fresh, "has_gauss": 0, "gauss": 0.0})
    else:
        generator.bit_generator.state = type(generator.bit_generator)(list(keys.words32(key)[:4])).state


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state
