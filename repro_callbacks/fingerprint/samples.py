"""One pass over a batch: its digest, and one of each sample in it, so that another order is told from other content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from repro_callbacks.fingerprint.blocks import BLOCK_BYTES, PendingSums, Sums, block_sums
from repro_callbacks.fingerprint.digest import PendingDigests, dense_parts, hash_bytes, start_digests, write

SAMPLE_DIGITS: Final = 12
"""Hexadecimal digits of a sample's digest: 48 bits, so that of a million samples two agree by chance 1 time in 500."""

_PADDED_UP_TO: Final = 1 << 18  # bytes of a sample; copying more than this to fill its last block would cost


@dataclass(frozen=True)
class BatchDigest:
    """The digest of a batch, and of each of its samples where they can be told apart."""

    whole: str
    samples: tuple[str, ...] | None


@dataclass
class _Parts:
    """A batch taken apart: what its samples share, and the share of each."""

    structure: list[bytes] = field(default_factory=list)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    tensors: list[torch.Tensor] = field(default_factory=list)
    # For each part that is split over the samples: the places of its tensors, one for each sample or one for all.
    rows: list[list[int]] = field(default_factory=list)
    items: list[list[bytes]] = field(default_factory=list)


class PendingBatch:
    """The digest of a batch that a device may still be computing."""

    def __init__(self, count: int | None, parts: _Parts, sums: PendingSums, shared: PendingDigests) -> None:
        self._count, self._parts, self._sums, self._shared = count, parts, sums, shared

    def result(self) -> BatchDigest:
        """Return the digests, waiting for the devices if need be."""
        sums = self._sums.result()
        shared = "".join(self._shared.result().values()).encode()
        structure = b"".join(self._parts.structure)
        if self._count is None:
            return BatchDigest(hash_bytes(structure, shared), None)
        each = [self._share(number, sums) for number in range(self._count)]
        whole = hash_bytes(structure, shared, *(sample.encode() for sample in each))
        return BatchDigest(whole, tuple(sample[:SAMPLE_DIGITS] for sample in each))

    def _share(self, number: int, sums: list[Sums]) -> str:
        assert self._count is not None
        own = []
        for places in self._parts.rows:
            if len(places) == self._count and self._count > 1:
                rows = sums[places[number]]
            else:
                height = len(sums[places[0]]) // self._count
                rows = sums[places[0]][number * height : (number + 1) * height]
            own.append(rows.tobytes())
        return hash_bytes(*own, *(items[number] for items in self._parts.items))


def start_batch(batch: Any) -> PendingBatch:
    """Start the digest of a batch and of its samples, without waiting for a device.

    Samples are told apart along the first dimension of the batch's tensors, or as the elements of its lists.

    Args:
        batch: As a collate function makes it (see :func:`~repro_callbacks.fingerprint.digest.digest_tree`).

    Example:
        >>> a = start_batch({"image": torch.tensor([[1.0], [2.0]]), "name": ["x", "y"]}).result()
        >>> b = start_batch({"image": torch.tensor([[2.0], [1.0]]), "name": ["y", "x"]}).result()
        >>> a.whole == b.whole, sorted(a.samples) == sorted(b.samples)
        (False, True)
    """
    parts = _Parts()
    count = _count(batch)
    if count is None:
        parts.structure.extend(write(batch, parts.shared))
    elif _is_list_of_samples(batch):
        parts.structure.append(b"samples")
        _split_list(batch, parts)
    else:
        _split(batch, count, parts)
    return PendingBatch(count, parts, block_sums(parts.tensors), start_digests(parts.shared))


def _count(batch: Any) -> int | None:
    """Return the number of samples, or None where they can't be told apart."""
    if _is_list_of_samples(batch):
        return len(batch)
    if isinstance(batch, torch.Tensor):
        dense = batch.layout is torch.strided and not batch.is_nested and batch.dim() > 0
        return int(batch.shape[0]) or None if dense else None
    members = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for count in map(_count, members) if count is not None), None)


def _is_list_of_samples(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and len(batch) > 0 and all(isinstance(sample, Mapping) for sample in batch)


def _split_list(samples: Any, parts: _Parts) -> None:
    """Take a list of samples apart: each a tree of its own."""
    items, places = [], []
    for sample in samples:
        tensors: dict[str, torch.Tensor] = {}
        items.append(b"".join(write(sample, tensors)))
        found = [dense_parts(tensor) for tensor in tensors.values()]
        items[-1] += "".join(header for header, _ in found).encode()
        places.append([len(parts.tensors) + i for i in range(sum(len(dense) for _, dense in found))])
        parts.tensors += [tensor for _, dense in found for tensor in dense]
    parts.items.append(items)
    # Samples of one list may hold different numbers of tensors; a sample that lacks one refers to an empty one.
    empty = len(parts.tensors)
    parts.tensors.append(torch.empty(0))
    for i in range(max(map(len, places), default=0)):
        parts.rows.append([own[i] if i < len(own) else empty for own in places])


def _split(value: Any, count: int, parts: _Parts) -> None:
    """Take a batch of ``count`` samples apart, along the first dimension of its tensors."""
    if isinstance(value, torch.Tensor):
        header, dense = dense_parts(value)
        if len(dense) == 1 and dense[0].dim() > 0 and dense[0].shape[0] == count and not value.is_quantized:
            parts.structure.append(b"R" + header.encode())
            _split_tensor(dense[0], count, parts)
        else:
            parts.structure.extend(write(value, parts.shared))
    elif isinstance(value, Mapping):
        parts.structure.append(b"d%d:" % len(value))
        written = {key: b"".join(write(key, {})) for key in value}
        for key in sorted(written, key=written.__getitem__):
            parts.structure.append(written[key])
            _split(value[key], count, parts)
    elif isinstance(value, list | tuple):
        plain = not any(isinstance(member, torch.Tensor | Mapping | list | tuple) for member in value)
        if len(value) == count and plain:
            parts.structure.append(b"I")
            parts.items.append([b"".join(write(member, {})) for member in value])
        else:
            parts.structure.append(b"l%d:" % len(value))
            for member in value:
                _split(member, count, parts)
    else:
        parts.structure.extend(write(value, parts.shared))


def _split_tensor(tensor: torch.Tensor, count: int, parts: _Parts) -> None:
    raw = tensor.detach()
    row_bytes = raw.numel() * raw.element_size() // count
    start = len(parts.tensors)
    if row_bytes % BLOCK_BYTES == 0:
        parts.tensors.append(raw)
        parts.rows.append([start])
    elif row_bytes <= _PADDED_UP_TO:
        rows = raw.contiguous().view(torch.uint8) if raw.dim() > 1 else raw.unsqueeze(1).contiguous().view(torch.uint8)
        rows = rows.reshape(count, row_bytes)
        parts.tensors.append(torch.nn.functional.pad(rows, (0, -row_bytes % BLOCK_BYTES)))
        parts.rows.append([start])
    else:
        parts.tensors += raw.unbind()
        parts.rows.append(list(range(start, start + count)))
