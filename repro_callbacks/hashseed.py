"""Whether ``PYTHONHASHSEED`` is in force: read from what this interpreter's hashes are, not from what was asked for.

Python reads the variable once, when it starts. Setting it later changes the interpreters that are started from here
and nothing in this one, while ``os.environ`` looks the same in both cases. The hash of a known string tells them
apart, since CPython derives it from the variable: a linear congruential generator fills the key, and SipHash-1-3
(Aumasson and Bernstein, 2012; PEP 456, with the rounds that CPython has used since 3.11) hashes the bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "PYTHONHASHSEED"
_MASK: Final = 2**64 - 1
_PROBE: Final = b"repro-callbacks"


def in_force(value: str | None) -> bool:
    """Say whether ``PYTHONHASHSEED=value`` is what this interpreter was started with.

    Args:
        value: A decimal number from 0 to 4294967295. ``None``, ``"random"`` and anything else that fixes nothing
            is never in force.

    Example:
        >>> in_force("random"), in_force(None)
        (False, False)
    """
    try:
        seed = parse(value)
    except ValueError:  # Python would not have started with it
        return False
    if seed is None or sys.hash_info.algorithm != "siphash13" or sys.hash_info.cutoff:
        return False
    return hash(_PROBE) == _siphash13(_key(seed), _PROBE)


def parse(value: str | None) -> int | None:
    """Read a value of the variable as Python does; ``None`` where it fixes nothing (unset, empty, ``random``).

    Raises:
        ValueError: If Python would refuse to start with this value.
    """
    if not value or value == "random":
        return None
    if not (value.isascii() and value.isdecimal() and int(value) < 2**32):
        raise ValueError(f"{VARIABLE} must be 'random' or an integer from 0 to 4294967295, not {value!r}")
    return int(value)


def describe(env: Mapping[str, str]) -> dict[str, object]:
    """Tell the variable's value, whether it is in force here, and whether hashes are randomised in this interpreter."""
    value = env.get(VARIABLE)
    return {
        VARIABLE: value,
        f"{VARIABLE}_in_force": in_force(value),
        "hash_randomization": bool(sys.flags.hash_randomization),
    }


def _key(seed: int) -> tuple[int, int]:
    if seed == 0:  # hashing without randomisation
        return 0, 0
    secret, state = bytearray(), seed
    for _ in range(16):
        state = (state * 214013 + 2531011) % 2**32
        secret.append(state >> 16 & 0xFF)
    return int.from_bytes(secret[:8], "little"), int.from_bytes(secret[8:], "little")


def _siphash13(key: tuple[int, int], data: bytes) -> int:
    """Hash ``data`` as CPython does, down to the sign and to -1, which it reserves for errors."""
    words = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    state = [word ^ key[i % 2] for i, word in enumerate(words)]
    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) % 256])
    for start in range(0, len(padded), 8):
        block = int.from_bytes(padded[start : start + 8], "little")
        state[3] ^= block
        _round(state)
        state[0] ^= block
    state[2] ^= 0xFF
    for _ in range(3):
        _round(state)
    value = state[0] ^ state[1] ^ state[2] ^ state[3]
    signed = value - 2**64 if value >> 63 else value
    return -2 if signed == -1 else signed


def _round(v: list[int]) -> None:
    def rotate(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & _MASK

    v[0] = (v[0] + v[1]) & _MASK
    v[1] = rotate(v[1], 13) ^ v[0]
    v[0] = rotate(v[0], 32)
    v[2] = (v[2] + v[3]) & _MASK
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & _MASK
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & _MASK
    v[1] = rotate(v[1], 17) ^ v[2]
    v[2] = rotate(v[2], 32)
