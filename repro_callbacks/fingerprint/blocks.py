"""The part of a digest that touches every bit: block sums of many tensors, computed on the device they lie on.

The bytes of a tensor, in the order of its indices, are cut into blocks of 8 KiB (the last one filled up with zeros),
and each block is read as 1024 64-bit little-endian words. Of each block two sums are taken, modulo 2⁶⁴::

    sum over i of  low(i) * a(i) + high(i) * b(i)      low, high: the halves of word i, high with its sign

with fixed random odd coefficients, others for each of the two sums. This is multilinear universal hashing. A change
inside one half of one word, such as one flipped bit, always changes both sums. Over the choice of the coefficients,
any two different blocks agree in both sums with a probability of at most 2⁻⁶⁴. Integer sums do not depend on the order
of addition, so threads and devices can't change them.

Source: Lemire and Kaser, Strongly universal string hashing is fast, The Computer Journal 57(11), 2014.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

if sys.byteorder != "little":
    raise ImportError("digests are defined on little-endian machines, and this one is big-endian")

WORDS: Final = 1024
BLOCK_BYTES: Final = 8 * WORDS
_RAW: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# From this size on, a tensor is read where it lies; smaller ones are first copied together, which on an accelerator
# takes a handful of kernel launches for a whole network.
_READ_IN_PLACE: Final = {"cpu": 1 << 17}
_READ_IN_PLACE_ELSEWHERE: Final = 1 << 23
_CPU_ROWS: Final = 64  # 512 KiB at once stay in the cache between the passes
_DEVICE_ROWS: Final = 1 << 12  # 32 MiB at once, so that the memory for products is bounded

Sums: TypeAlias = "npt.NDArray[np.int64]"


class PendingSums:
    """Block sums that a device may still be computing.

    Args:
        sums: For each device, the sums of its blocks, int64 of shape (blocks, 2).
        rows: For each tensor, the device and the ranges of rows that are its own.
    """

    def __init__(self, sums: dict[torch.device, torch.Tensor], rows: list[tuple[torch.device, list[slice]]]) -> None:
        self._rows = rows
        self._host: dict[torch.device, torch.Tensor] = {}
        self._events: list[torch.cuda.Event] = []
        for device, values in sums.items():
            if device.type == "cuda":
                # A copy on the stream and an event: reading the result later waits for this step, not for what
                # has been queued behind it.
                pinned = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
                self._host[device] = pinned.copy_(values, non_blocking=True)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(device))
                self._events.append(event)
            else:
                self._host[device] = values.cpu()

    def result(self) -> list[Sums]:
        """Return the sums of each tensor's blocks, int64 of shape (blocks, 2), waiting for the devices if need be."""
        for event in self._events:
            event.synchronize()
        arrays = {device: values.numpy() for device, values in self._host.items()}
        none = np.empty((0, 2), dtype=np.int64)
        return [np.concatenate([none, *(arrays[device][own] for own in ranges)]) for device, ranges in self._rows]


@torch.no_grad()
def block_sums(tensors: Sequence[torch.Tensor]) -> PendingSums:
    """Start the block sums of many dense tensors, each on its own device.

    Args:
        tensors: Any shapes, dtypes of 1, 2, 4, 8 or 16 bytes, strides and devices.
    """
    rows: list[tuple[torch.device, list[slice]]] = []
    large: dict[torch.device, list[torch.Tensor]] = {}
    small: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    used: dict[torch.device, int] = {}
    for number, tensor in enumerate(tensors):
        flat = _raw(tensor)
        device = flat.device
        own: list[slice] = []
        nbytes = flat.numel() * flat.element_size()
        if nbytes >= _READ_IN_PLACE.get(device.type, _READ_IN_PLACE_ELSEWHERE):
            count = nbytes // BLOCK_BYTES
            part = flat[: count * BLOCK_BYTES // flat.element_size()]
            if part.storage_offset() * part.element_size() % 8:
                part = part.clone()
            large.setdefault(device, []).append(part.view(torch.int64).view(count, WORDS))
            own.append(slice(used.get(device, 0), used.get(device, 0) + count))
            used[device] = own[-1].stop
            flat = flat[part.numel() :]
        if flat.numel():
            small.setdefault(device, []).append((number, flat))
        used.setdefault(device, 0)
        rows.append((device, own))

    sums: dict[torch.device, torch.Tensor] = {}
    for device, start in used.items():
        parts = large.get(device, [])
        # Tails and small tensors lie behind the large ones; elements of one size are copied together.
        for size in sorted({flat.element_size() for _, flat in small.get(device, [])}):
            members = [(number, flat) for number, flat in small[device] if flat.element_size() == size]
            per_block = BLOCK_BYTES // size
            for number, flat in members:
                count = -(-flat.numel() // per_block)
                rows[number][1].append(slice(start, start + count))
                start += count
            parts.append(_pack([flat for _, flat in members], per_block).view(torch.int64).view(-1, WORDS))
        out = torch.empty((start, 2), dtype=torch.int64, device=device)
        start = 0
        for words in parts:
            _sum_blocks(words, out[start : start + len(words)])
            start += len(words)
        sums[device] = out
    return PendingSums(sums, rows)


def _pack(flats: list[torch.Tensor], per_block: int) -> torch.Tensor:
    """Copy flat tensors of one dtype and device together, each filled up with zeros to whole blocks."""
    first = flats[0]
    if first.device.type != "cpu":
        padding = torch.zeros(per_block, dtype=first.dtype, device=first.device)
        return torch.cat([piece for flat in flats for piece in (flat, padding[: -flat.numel() % per_block])])
    # On a CPU torch.cat starts its threads for each of many small pieces, and takes several times as long as this.
    packed = np.empty(sum(-(-flat.numel() // per_block) for flat in flats) * per_block, dtype=first.numpy().dtype)
    start = 0
    for flat in flats:
        end = start + flat.numel()
        packed[start:end] = flat.numpy()
        start = end + -flat.numel() % per_block
        packed[end:start] = 0
    return torch.from_numpy(packed)


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of ``tensor`` as a flat tensor of integers, in the order of its indices."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.element_size() == 16:
        tensor = torch.view_as_real(tensor)
    # contiguous() keeps the layout of size-1 dimensions, whose strides may be anything; reshape(-1) is then a view.
    return tensor.contiguous().reshape(-1).view(_RAW[tensor.element_size()])


def _sum_blocks(words: torch.Tensor, out: torch.Tensor) -> None:
    """Write the two sums of each row of ``words``, int64 of shape (blocks, 1024), into ``out``."""
    if words.device.type == "cpu":
        _sum_blocks_with_numpy(words.numpy(), out.numpy())
    else:
        _sum_blocks_with_torch(words, out)


def _sum_blocks_with_numpy(words: Sums, out: Sums) -> None:
    # einsum multiplies and adds in one pass, three times as fast as torch's separate operators on a CPU.
    unsigned, totals = words.view(np.uint64), out.view(np.uint64)
    (a0, b0), (a1, b1) = _coefficients()
    high = np.empty((min(_CPU_ROWS, len(words)), WORDS), dtype=np.int64)
    for start in range(0, len(words), _CPU_ROWS):
        block = slice(start, start + _CPU_ROWS)
        own, upper = unsigned[block], high[: len(words[block])]
        np.right_shift(words[block], 32, out=upper)
        wide = upper.view(np.uint64)
        totals[block, 0] = np.einsum("ij,j->i", own, a0) + np.einsum("ij,j->i", wide, b0)
        totals[block, 1] = np.einsum("ij,j->i", own, a1) + np.einsum("ij,j->i", wide, b1)


def _sum_blocks_with_torch(words: torch.Tensor, out: torch.Tensor) -> None:
    table = _coefficients_on(words.device)
    for start in range(0, len(words), _DEVICE_ROWS):
        own = words[start : start + _DEVICE_ROWS]
        high = own >> 32
        for lane in (0, 1):
            products = torch.addcmul(own * table[lane, 0], high, table[lane, 1])
            torch.sum(products, 1, out=out[start : start + _DEVICE_ROWS, lane])


@functools.cache
def _coefficients() -> npt.NDArray[np.uint64]:
    """Return the coefficients, (sum, half, word). A promise: pinned by golden digests in the tests.

    The sums are taken as ``word * a + (word >> 32) * b`` with an arithmetic shift, which is ``low * a + high *
    (2³² a + b)``: with a and b odd and independent, so are both coefficients.
    """
    stream = hashlib.shake_256(b"repro-callbacks fingerprint 1").digest(2 * 2 * WORDS * 8)
    return np.frombuffer(stream, dtype="<u8").reshape(2, 2, WORDS) | np.uint64(1)


@functools.cache
def _coefficients_on(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(_coefficients().view(np.int64)).to(device)
