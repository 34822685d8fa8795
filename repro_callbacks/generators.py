"""The process-wide generators, Python's, NumPy's, torch's and every accelerator's: seed, key, keep, put back."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro_callbacks import keys

_python: Any = random._inst  # whose methods random.seed, random.random, ... are
_seed_python = super(random.Random, _python).seed


@dataclass(frozen=True)
class GeneratorStates:
    """The states of the process-wide generators, as :func:`snapshot` read them."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch: Tensor
    accelerators: dict[str, list[Tensor]]


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators and those of every accelerator with ``seed`` itself.

    The results are those of ``random.seed``, ``numpy.random.seed`` and ``torch.manual_seed``, as
    ``seed_everything`` and MONAI's ``set_determinism`` give them.

    Args:
        seed: 0 to 2³²-1.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA, MPS and XPU too, also before they have started


def key_all(key: bytes) -> None:
    """Put the process-wide generators at a position: their streams are those of ``key``, a key of :mod:`keys`.

    Takes some 10 µs without an accelerator. torch's CPU generator reads 32 bits of what it is given and no more, so
    that of 80,000 positions two are expected to share its stream; NumPy's is given another 32 (more cost it eight times
    as long), and Python's 64. Positions that share one of the three streams do not share the others.
    """
    words = keys.words64(key)
    _seed_python(words[0])  # random.seed, without the time that its checks of the seed's type take
    _python.gauss_next = None
    np.random.seed(words[1] & keys.MAX_SEED)
    torch.default_generator.manual_seed(words[3])
    _seed_accelerators(words[3])


def snapshot() -> GeneratorStates:
    """Read the states of the process-wide generators."""
    accelerators = {name: _module(name).get_rng_state_all() for name in _started() if name != "mps"}
    if "mps" in _started():
        accelerators["mps"] = [torch.mps.get_rng_state()]
    return GeneratorStates(
        random.getstate(), np.random.get_state(legacy=False), torch.default_generator.get_state(), accelerators
    )


def restore(states: GeneratorStates) -> None:
    """Put the process-wide generators back to where :func:`snapshot` read them."""
    random.setstate(states.python)
    np.random.set_state(states.numpy)
    torch.default_generator.set_state(states.torch)
    for name, values in states.accelerators.items():
        if name == "mps":
            torch.mps.set_rng_state(values[0])
        else:
            _module(name).set_rng_state_all(values)


@contextmanager
def isolate() -> Iterator[None]:
    """Leave the process-wide generators as they were, whatever is drawn inside, also after an exception.

    Example:
        >>> import random
        >>> random.seed(0); first = random.random()
        >>> random.seed(0)
        >>> with isolate():
        ...     _ = random.random(), torch.rand(3)
        >>> random.random() == first
        True
    """
    states = snapshot()
    try:
        yield
    finally:
        restore(states)


def _module(name: str) -> Any:
    return getattr(torch, name)


_SEVERAL: tuple[Any, ...] = (torch.cuda, torch.xpu)
"""The accelerators of which a machine can have several."""


@functools.cache
def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _started() -> list[str]:
    """Name the accelerators whose generators can be read now. One that has not started holds no state to keep."""
    started = [module.__name__.removeprefix("torch.") for module in _SEVERAL if module.is_initialized()]
    return [*started, "mps"] if _has_mps() else started


def _seed_accelerators(seed: int) -> None:
    for module in _SEVERAL:
        if module.is_initialized():
            module.manual_seed_all(seed)
    if _has_mps():
        torch.mps.manual_seed(seed)
