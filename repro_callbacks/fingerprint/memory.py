"""Which memory an operator reads that nothing has written yet: what it holds is chance, and no difference."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map_only

_UNINITIALIZED: Final = frozenset(
    f"aten.{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
)
"""Operators that return memory as it comes."""
_OVERWRITING: Final = frozenset({"aten.copy_", "aten.fill_", "aten.zero_"})
"""Operators that write all of their first argument and read nothing of it."""
_POINTING: Final = "aten.set_"
"""Lets a tensor stand for other memory, as ``deepcopy`` does before it fills that; reads and writes nothing."""


class Memory:
    """Keeps account of memory that was handed out and not yet written.

    A view reads nothing: it stands for its shape and strides. Memory counts as written when as many bytes were written
    as it has.
    """

    def __init__(self) -> None:
        # Name of a storage -> bytes that are still to be written. A name is not given to another storage while there
        # is a weak reference to it, though its memory is.
        self._unwritten: dict[int, int] = {}
        self._references: list[StorageWeakRef] = []

    def readable(self, operator: Any, values: Any) -> Any:
        """Return arguments of an operator with what it does not read, or what is chance, replaced by its layout."""

        def replaced(tensor: torch.Tensor) -> Any:
            return _layout(tensor) if operator.is_view or _name(tensor) in self._unwritten else tensor

        return tree_map_only(torch.Tensor, replaced, values)

    def arguments(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """Return the arguments of an operator as :meth:`readable` does."""
        name = _packet(operator)
        if name == _POINTING:
            return _layout(args[0])
        if name in _OVERWRITING:
            args = [_layout(args[0]), *args[1:]]
        return self.readable(operator, (args, kwargs))

    def written(self, operator: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Take account of what an operator has written, and return its output as :meth:`readable` does."""
        if _packet(operator) == _POINTING:
            return _layout(output)
        for tensor in _mutated(operator, args, kwargs):
            name = _name(tensor)
            if name in self._unwritten:
                self._unwritten[name] -= tensor.numel() * tensor.element_size()
                if self._unwritten[name] <= 0:
                    del self._unwritten[name]
        if operator.is_view:
            return self.readable(operator, output)
        if _packet(operator) in _UNINITIALIZED:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
            for tensor in tensors:
                if tensor.layout is torch.strided:
                    self._unwritten[_name(tensor)] = tensor.untyped_storage().nbytes()
                    self._references.append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
            return [_layout(tensor) for tensor in tensors]
        return output


def _packet(operator: Any) -> str:
    """Return an operator's name without its overload."""
    return str(operator).rpartition(".")[0]


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


def _name(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else -1
