"""From a position to the random numbers drawn there. Pure: no state, no framework, nothing but hashing.

The derivation is a promise: it is pinned by golden values in ``tests/test_keys.py`` and changes only with a major
version. Another program can compute it from this description alone:

1. Each component of a position is written as a tag, the length of its payload in bytes, a colon and the payload:
   an integer ``17`` is ``i2:17`` (decimal), a string ``"order"`` is ``s5:order`` (UTF-8), a tuple ``(1, "a")`` is
   ``t8:i1:1s1:a`` (its components, one after the other).
2. The message is the seed, the purpose and the position, in that order, written like that and joined.
3. The key is BLAKE2b of the message with a digest of 32 bytes and the personalisation ``repro-callbacks1``.
4. The process-wide generators take the key as four little-endian integers of 64 bits: ``random.seed`` the first,
   ``numpy.random.seed`` the low 32 bits of the second, ``torch.manual_seed`` the fourth.
5. A transform's ``R`` is a ``numpy.random.RandomState`` over SFC64. Those of a dataset are numbered in the order in
   which they are met, and the state of number ``n`` (from 0) is bytes ``32 n`` to ``32 n + 31`` of the SHAKE-256 of
   the key, as four little-endian integers of 64 bits. What is made of Gaussians (``normal``,
   ``gamma``, ...) is drawn by a ``numpy.random.Generator`` over the same SFC64.

Keys are hashed, never added: with ``seed + epoch``, epoch 1 of seed 0 is epoch 0 of seed 1.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import struct
from collections.abc import Mapping
from typing import Final, TypeAlias

MAX_SEED: Final = 2**32 - 1
PURPOSES: Final = ("order", "augment", "init", "step")
"""What a seed of its own can be given to: the order of samples, their random transforms, the initial weights,
and what is drawn inside a training step (dropout, augmentation on the device)."""

Component: TypeAlias = "int | str | tuple[Component, ...]"

_PERSON: Final = b"repro-callbacks1"
_WORDS64: Final = struct.Struct("<4Q")
_WORDS32: Final = struct.Struct("<8I")


def check_seed(seed: object, name: str = "seed") -> int:
    """Return ``seed`` as a Python integer, or refuse it.

    Args:
        seed: An integer from 0 to 2³²-1; NumPy integers too.
        name: What to call the value in the error.

    Raises:
        TypeError: If it is not an integer (a bool, a float and a string are not).
        ValueError: If it is negative or larger than 2³²-1.

    Example:
        >>> check_seed(3407)
        3407
        >>> check_seed(-1)
        Traceback (most recent call last):
        ...
        ValueError: seed must be an integer from 0 to 4294967295, not -1
    """
    allowed = f"an integer from 0 to {MAX_SEED}"
    if _is_bool(seed) or not hasattr(seed, "__index__"):
        raise TypeError(f"{name} must be {allowed}, not {seed!r} of type {type(seed).__name__}")
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"{name} must be {allowed}, not {seed!r} of type {type(seed).__name__}") from None
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{name} must be {allowed}, not {value}")
    return value


def check_seeds(seed: int, seeds: Mapping[str, int] | None) -> dict[str, int]:
    """Return a seed for each purpose: the one given in ``seeds``, else ``seed``.

    Raises:
        TypeError, ValueError: If a seed is refused by :func:`check_seed` or a purpose is unknown.

    Example:
        >>> check_seeds(3407, {"order": 1})
        {'order': 1, 'augment': 3407, 'init': 3407, 'step': 3407}
    """
    given = dict(seeds or {})
    unknown = [name for name in given if name not in PURPOSES]
    if unknown:
        raise ValueError(f"seeds has no purpose {unknown[0]!r}; allowed are {', '.join(PURPOSES)}")
    return {name: check_seed(given[name], f"seeds[{name!r}]") if name in given else seed for name in PURPOSES}


def encode(component: Component) -> bytes:
    """Write one component of a position as bytes, so that no two different positions are written alike.

    Raises:
        TypeError: If it is neither an integer, a string, nor a tuple of those.

    Example:
        >>> encode(("sample", 17))
        b't14:s6:samplei2:17'
    """
    kind = type(component)
    if kind is int:  # the two common cases first: this runs several times for each sample
        payload = b"%d" % component  # type: ignore[str-format]
        return b"i%d:%b" % (len(payload), payload)
    if kind is str:
        return _encode_text(component)
    if isinstance(component, str):
        return _encode_text(str(component))
    if isinstance(component, tuple):
        payload, tag = b"".join(map(encode, component)), b"t"
    elif _is_bool(component):
        raise TypeError(_no_position(component))
    else:
        try:
            payload, tag = b"%d" % operator.index(component), b"i"
        except TypeError:  # an array has __index__ too, and refuses to be one unless it holds a single integer
            raise TypeError(_no_position(component)) from None
    return b"%b%d:%b" % (tag, len(payload), payload)


def _is_bool(value: object) -> bool:
    """Whether a value is Python's bool or NumPy's, which has ``__index__`` in older NumPys (2.0 for one)."""
    kind = type(value)
    return kind is bool or (kind.__module__ == "numpy" and kind.__name__ in {"bool", "bool_"})


def _no_position(component: object) -> str:
    return (
        f"a position is made of integers, strings and tuples of them, not {component!r} of type "
        f"{type(component).__name__}"
    )


@functools.lru_cache(1024)
def _encode_text(text: str) -> bytes:
    payload = text.encode()
    return b"s%d:%b" % (len(payload), payload)


def derive(seed: int, purpose: str, *position: Component) -> bytes:
    """Return the 32-byte key of a position.

    Args:
        seed: The base seed of this purpose, 0 to 2³²-1.
        purpose: What is drawn there: ``"order"``, ``"sample"``, ``"batch"``, ``"step"``, ``"worker"``, ...
        position: Where: epoch, index, rank, ...

    Example:
        >>> derive(3407, "sample", 3, 17, 0).hex()[:16]
        'aba80425eaf3c4ca'
    """
    message = encode(seed) + encode(purpose) + b"".join(map(encode, position))
    return hashlib.blake2b(message, digest_size=32, person=_PERSON).digest()


def derive_within(place: tuple[Component, ...], *position: Component) -> bytes:
    """Return ``derive(*place, *position)`` in half the time, where many keys share a ``place``: it is hashed once.

    Args:
        place: Seed, purpose and the first components of the position, integers and strings.
        position: The other components.

    Example:
        >>> derive_within((3407, "sample", 3), 17, 0) == derive(3407, "sample", 3, 17, 0)
        True
    """
    hasher = _hasher(place).copy()
    hasher.update(b"".join(map(encode, position)))
    return hasher.digest()


@functools.lru_cache(128)
def _hasher(place: tuple[Component, ...]) -> hashlib.blake2b:
    return hashlib.blake2b(b"".join(map(encode, place)), digest_size=32, person=_PERSON)


def words64(key: bytes) -> tuple[int, int, int, int]:
    """Read a key as four unsigned 64-bit integers, little-endian."""
    return _WORDS64.unpack(key)


def words32(key: bytes) -> tuple[int, ...]:
    """Read a key as eight unsigned 32-bit integers, little-endian."""
    return _WORDS32.unpack(key)
