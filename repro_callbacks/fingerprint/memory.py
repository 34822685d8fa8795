"""Which memory an operator reads that nothing has written yet: what it holds is chance, and no difference."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

_UNINITIALIZED: Final = frozenset(
    f"aten.{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)
"""Operators that return memory as it comes."""


class Memory:
    """Keeps account of memory that was handed out and not yet written.

    A view reads nothing: it stands for its shape and strides. Memory counts as written when as many bytes were written
    as it has.
    """

    def __init__(self) -> None:
        self._unwritten: dict[int, int] = {}  # address of a storage -> bytes that are still to be written

    def readable(self, operator: Any, values: Any) -> Any:
        """Return arguments of an operator with what it does not read, or what is chance, replaced by its layout."""

        def replaced(tensor: torch.Tensor) -> Any:
            return _layout(tensor) if operator.is_view or _address(tensor) in self._unwritten else tensor

        return tree_map_only(torch.Tensor, replaced, values)

    def written(self, operator: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Take account of what an operator has written, and return its output as :meth:`readable` does."""
        for tensor in _mutated(operator, args, kwargs):
            address = _address(tensor)
            if address in self._unwritten:
                self._unwritten[address] -= tensor.numel() * tensor.element_size()
                if self._unwritten[address] <= 0:
                    del self._unwritten[address]
        if operator.is_view:
            return self.readable(operator, output)
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if str(operator).rpartition(".")[0] in _UNINITIALIZED:
            for tensor in tensors:
                self._unwritten[_address(tensor)] = _size(tensor)
            return [_layout(tensor) for tensor in tensors]
        if not operator._schema.is_mutable:
            for tensor in tensors:  # new memory, at an address that may have been another's
                self._unwritten.pop(_address(tensor), None)
        return output


def _mutated(operator: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for number, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return found


def _layout(tensor: torch.Tensor) -> Any:
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return ["memory", str(tensor.dtype), list(tensor.shape), list(tensor.stride()) if strided else str(tensor.layout)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else -1


def _size(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.layout is torch.strided else 0
