"""The stream that takes the place of a transform's ``R``: a ``RandomState`` that is quick to move and to draw from."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from typing import Any, Final

import numpy as np

WORDS_BYTES: Final = 32
"""SFC64's state is 256 bits, and it takes any."""

_FROM_GENERATOR: Final = (
    *("normal", "standard_normal", "lognormal", "multivariate_normal", "gamma", "standard_gamma", "beta", "chisquare"),
    *("noncentral_chisquare", "f", "noncentral_f", "standard_t", "standard_cauchy", "wald", "dirichlet"),
    "negative_binomial",
)
"""The distributions that are made of Gaussians."""
_LAYOUT: Final = struct.Struct("<4QII")
"""How NumPy keeps SFC64: four words, whether half of a 64-bit draw is left over, and that half (on a little-endian
machine; on another, the layout is not recognised)."""
_NOTHING_LEFT: Final = bytes(8)


class Stream(np.random.RandomState):
    """A ``RandomState`` over SFC64 that takes its Gaussians from ``numpy.random.Generator``, on the same SFC64.

    They are most of what a random transform of volumes draws, and come in half the time. Nor is there ever the second
    one of a pair left over, so that four words are all its state, and moving it is copying them.

    Example:
        >>> stream = Stream()
        >>> stream.seek(bytes(range(32))); a = stream.normal(size=3)
        >>> stream.seek(bytes(range(32))); b = stream.normal(size=3)
        >>> bool((a == b).all())
        True
    """

    def __init__(self) -> None:
        self._bits = np.random.SFC64(0)
        super().__init__(self._bits)
        generator = np.random.Generator(self._bits)
        for name in _FROM_GENERATOR:
            setattr(self, name, getattr(generator, name))
        self._memory = _memory_of(self._bits)

    def randn(self, *shape: int) -> Any:
        """Draw from the standard normal distribution."""
        return self.standard_normal(shape or None)

    def seek(self, words: bytes) -> None:
        """Move to the stream whose state is ``words``, 32 bytes: four little-endian integers of 64 bits."""
        if self._memory is not None:
            self._memory[:] = words + _NOTHING_LEFT
        else:
            self._bits.state = _state(np.frombuffer(words, "<u8"))

    def __reduce__(self) -> tuple[Any, ...]:  # RandomState's own would make a plain RandomState of a copy
        return Stream, (), self.get_state(legacy=False)


def stream_words(key: bytes, count: int) -> tuple[bytes, ...]:
    """Return what :meth:`Stream.seek` takes for ``count`` streams under a key: 32 bytes each of its SHAKE-256."""
    return struct.unpack(f"{WORDS_BYTES}s" * count, hashlib.shake_256(key).digest(WORDS_BYTES * count))


def _state(words: Any, left: int = 0) -> Any:
    return {
        "bit_generator": "SFC64",
        "state": {"state": np.asarray(words, np.uint64)},
        "has_uint32": int(left > 0),
        "uinteger": left,
    }


def _memory_of(bits: np.random.SFC64) -> memoryview | None:
    """Return the memory in which SFC64 keeps its state; None if this NumPy does not lay it out as :data:`_LAYOUT`.

    Writing there takes a tenth of the time of ``bits.state = ...``, which each sample does once for each transform.
    """
    words = [0x0123456789ABCDEF, 0xFEDCBA9876543210, 3, 2**64 - 1]
    bits.state = _state(words, left=0xDEADBEEF)
    memory = memoryview((ctypes.c_char * _LAYOUT.size).from_address(bits.ctypes.state_address)).cast("B")
    return memory if memory.tobytes() == _LAYOUT.pack(*words, 1, 0xDEADBEEF) else None
