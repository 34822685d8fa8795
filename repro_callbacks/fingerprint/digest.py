"""Digests of tensors, batches and modules: 128 bits that change with one bit, one position, a shape or a dtype.

A tensor's digest is the BLAKE2b of its dtype, its shape and its block sums (see :mod:`.blocks`). It reads bits, not
values: ``-0.0`` differs from ``0.0``, and one NaN from another. It is the same for any strides, on every device, with
any number of threads and in every version; golden values in ``tests/fingerprint/test_digest.py`` pin it. Only the block
sums, 16 bytes for each 8 KiB, leave an accelerator. Nothing is drawn from any generator and nothing is changed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from repro_callbacks.fingerprint.blocks import PendingSums, block_sums

DIGEST_BYTES: Final = 16
_PERSON: Final = b"repro-callbacks1"


class PendingDigests:
    """Digests that a device may still be computing; :meth:`result` waits for them."""

    def __init__(self, named: Sequence[tuple[str, str, list[int]]], sums: PendingSums) -> None:
        self._named = named
        self._sums = sums

    def result(self) -> dict[str, str]:
        """Return name to digest, 32 hexadecimal digits each."""
        sums = self._sums.result()
        return {
            name: hash_bytes(header.encode(), *(sums[part].tobytes() for part in parts))
            for name, header, parts in self._named
        }


def start_digests(tensors: Mapping[str, torch.Tensor]) -> PendingDigests:
    """Start the digests of many tensors at once, without waiting for a device.

    The tensors may be changed afterwards: on a device's stream, the digest is computed before what is queued behind it.
    """
    parts: list[torch.Tensor] = []
    named: list[tuple[str, str, list[int]]] = []
    for name, tensor in tensors.items():
        header, dense = dense_parts(tensor)
        named.append((name, header, list(range(len(parts), len(parts) + len(dense)))))
        parts += dense
    return PendingDigests(named, block_sums(parts))


def digest_many(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the digest of each tensor; one pass and one wait for them all.

    Args:
        tensors: Name to tensor: any shapes, dtypes and devices, sparse ones too.

    Example:
        >>> two = digest_many({"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([1.0, 0.0])})
        >>> two["a"] == two["b"]
        False
    """
    return start_digests(tensors).result()


def digest(tensor: torch.Tensor) -> str:
    """Return the digest of a tensor, 32 hexadecimal digits.

    Example:
        >>> digest(torch.arange(3))
        '231583b3e68cbc3c958084382ebf6d5f'
        >>> digest(torch.tensor([0.0])) == digest(torch.tensor([-0.0]))
        False
    """
    return digest_many({"": tensor})[""]


def digest_state(module: nn.Module) -> str:
    """Return one digest of a module's parameters and buffers, with their names.

    Buffers that are not kept in a checkpoint count too, as they take part in the forward pass. A parameter that a lazy
    module has not made yet counts by its name.

    Args:
        module: On any device; nothing is moved or changed.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = digest_state(layer)
        >>> with torch.no_grad():
        ...     _ = layer.bias[0].add_(1e-6)
        >>> digest_state(layer) == before
        False
    """
    return combine(digest_many(named_state(module)))


def named_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return name to tensor of a module's parameters and buffers; one that is shared appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def combine(digests: Mapping[str, str]) -> str:
    """Return one digest of named digests; the order in which they are given does not count."""
    return hash_bytes(*(f"{len(name)}:{name}={value}\n".encode() for name, value in sorted(digests.items())))


def digest_tree(batch: Any) -> str:
    """Return one digest of nested data: what a batch, an optimizer's state or a sample is made of.

    Args:
        batch: Mappings, sequences, sets, dataclasses and plain objects of tensors, NumPy arrays, numbers, strings,
            bytes and None. Of a tensor subclass that carries more, such as MONAI's MetaTensor, the data counts.
            The order of a mapping's keys does not count. Of a function, a class or a module the name counts.

    Example:
        >>> digest_tree({"image": torch.zeros(2), "label": 1}) == digest_tree({"label": 1, "image": torch.zeros(2)})
        True
        >>> digest_tree([1, 2]) == digest_tree((1, 2))
        False
    """
    return start_tree(batch).result()


class PendingTree:
    """The digest of nested data that a device may still be computing."""

    def __init__(self, structure: bytes, tensors: PendingDigests) -> None:
        self._structure = structure
        self._tensors = tensors

    def result(self) -> str:
        """Return the digest, 32 hexadecimal digits, waiting for the devices if need be."""
        return hash_bytes(self._structure, *(value.encode() for value in self._tensors.result().values()))


def start_tree(batch: Any) -> PendingTree:
    """Start the digest of nested data (see :func:`digest_tree`), without waiting for a device."""
    tensors: dict[str, torch.Tensor] = {}
    structure = b"".join(write(batch, tensors))
    return PendingTree(structure, start_digests(tensors))


def hash_bytes(*parts: bytes) -> str:
    """Return the digest of bytes, 32 hexadecimal digits."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES, person=_PERSON)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def dense_parts(tensor: torch.Tensor) -> tuple[str, list[torch.Tensor]]:
    """Return what tells a tensor's kind apart, and the dense tensors that hold its bits."""
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        return "uninitialized", []
    if hasattr(tensor, "to_local"):  # a DTensor: each rank sees its own shard
        tensor = tensor.to_local()
    if tensor.is_nested:
        found = [dense_parts(part) for part in tensor.unbind()]
        return f"nested {[header for header, _ in found]}", [dense for _, part in found for dense in part]
    if type(tensor) is not torch.Tensor:
        tensor = tensor.detach().as_subclass(torch.Tensor)
    header = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    if tensor.device.type == "meta":
        return f"meta {header}", []
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.detach()
        return f"sparse {header} {tensor._nnz()}", [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return f"{tensor.layout} {header}", [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return f"{tensor.layout} {header}", [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        return f"{header} {tensor.qscheme()} {tensor.q_scale()!r} {tensor.q_zero_point()}", [tensor.int_repr()]
    return header, [tensor]


def write(value: Any, tensors: dict[str, torch.Tensor], above: tuple[int, ...] = ()) -> Iterator[bytes]:
    """Write nested data as tagged, length-prefixed bytes, and put its tensors aside in the order they are met.

    Args:
        value: Nested data (see :func:`digest_tree`).
        tensors: Takes the tensors.
        above: The identities of the containers that ``value`` lies in.
    """
    if isinstance(value, torch.Tensor):
        tensors[str(len(tensors))] = value
        yield b"T"
    elif isinstance(value, np.ndarray | np.generic):
        yield from _write_array(np.asarray(value), tensors, above)
    elif value is None or isinstance(value, bool):
        yield _field(b"c", str(value).encode())
    elif isinstance(value, int):
        yield _field(b"i", b"%d" % value)
    elif isinstance(value, float):
        yield _field(b"f", struct.pack("<d", value))
    elif isinstance(value, complex):
        yield _field(b"z", struct.pack("<2d", value.real, value.imag))
    elif isinstance(value, str):
        yield _field(b"s", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes | bytearray):
        yield _field(b"b", bytes(value))
    elif isinstance(value, PurePath | torch.dtype | torch.device):
        yield _field(b"p", str(value).encode("utf-8", "surrogatepass"))
    elif id(value) in above:
        yield _field(b"^", b"%d" % (len(above) - above.index(id(value))))
    else:
        yield from _write_container(value, tensors, (*above, id(value)))


def _write_container(value: Any, tensors: dict[str, torch.Tensor], above: tuple[int, ...]) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        yield _field(b"d", b"%d" % len(value))
        written = {key: b"".join(write(key, {}, above)) for key in value}
        for key in sorted(written, key=written.__getitem__):
            yield written[key]
            yield from write(value[key], tensors, above)
    elif isinstance(value, Set):
        yield _field(b"e", b"".join(sorted(b"".join(write(member, {}, above)) for member in value)))
    elif isinstance(value, Sequence):
        tag = b"t" if isinstance(value, tuple) else b"l"
        yield _field(tag, b"%d" % len(value))
        for member in value:
            yield from write(member, tensors, above)
    else:
        name = getattr(value, "__qualname__", None)  # of a function or a class
        yield _field(b"o", (f"{value.__module__}.{name}" if name else type(value).__qualname__).encode())
        if is_dataclass(value) and not isinstance(value, type):
            yield from write({field.name: getattr(value, field.name, None) for field in fields(value)}, tensors, above)
        elif name is None and not isinstance(value, nn.Module) and hasattr(value, "__dict__"):
            yield from write(vars(value), tensors, above)


def _write_array(
    array: np.ndarray[Any, Any], tensors: dict[str, torch.Tensor], above: tuple[int, ...]
) -> Iterator[bytes]:
    if array.dtype.hasobject:
        yield _field(b"O", str(array.shape).encode())
        for member in array.ravel().tolist():
            yield from write(member, tensors, above)
    else:
        yield _field(b"a", f"{array.dtype.str}{array.shape}".encode())
        yield _field(b"b", np.ascontiguousarray(array).tobytes())


def _field(tag: bytes, payload: bytes) -> bytes:
    return b"%b%d:%b" % (tag, len(payload), payload)
