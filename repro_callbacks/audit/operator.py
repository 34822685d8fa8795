"""What is known of one operator that torch can't run deterministically, and the conditions that rows are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from torch import nn

DOCUMENTATION: Final = "PyTorch 2.13, torch.use_deterministic_algorithms"

Arguments: TypeAlias = "Sequence[Any]"
Keywords: TypeAlias = "Mapping[str, Any]"

CUDA: Final = ("cuda",)
ANY: Final = ("cpu", "cuda")


def always(module: nn.Module) -> bool | None:
    """Whatever the module: it uses the operator."""
    return True


def depends(module: nn.Module) -> bool | None:
    """The inputs of the module decide."""
    return None


def _called(arguments: Arguments, keywords: Keywords) -> bool:
    """Whatever the arguments: it is the operator."""
    return True


@dataclass(frozen=True)
class Operator:
    """One operator that is not deterministic by itself.

    Attributes:
        name: What people call it.
        direction: Whether it is its forward or its backward that is not deterministic.
        effect: What torch does under ``deterministic=True``: ``"raises"``; ``"replaced"``, it takes a slower form;
            ``"silent"``, nothing, the result varies; ``"setting"``, it is deterministic with the setting in ``when``.
        when: The condition, in words; empty if there is none.
        instead: What to use instead.
        devices: The kinds of device on which it is not deterministic.
        errors: How the name in torch's error begins.
        calls: Its forward, as names of ``torch.ops.aten``.
        called: Whether such a call with these arguments is one of those that are meant.
        modules: The classes that use it, as top package and class name; subclasses count.
        applies: Whether a module of such a class does use it; ``None`` if that depends on its inputs.
        source: Where that is known from.
    """

    name: str
    direction: Literal["forward", "backward"]
    effect: Literal["raises", "replaced", "silent", "setting"]
    instead: str
    when: str = ""
    devices: tuple[str, ...] = CUDA
    errors: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    called: Callable[[Arguments, Keywords], bool] = _called
    modules: tuple[str, ...] = ()
    applies: Callable[[nn.Module], bool | None] = always
    source: str = DOCUMENTATION

    def __str__(self) -> str:
        """Say what is not deterministic, without the remedy."""
        devices = "on any device" if self.devices == ANY else f"on {' and '.join(self.devices).upper()}"
        what = f"{self.direction} of {self.name}" + (f" ({self.when})" if self.when else "")
        return {
            "raises": f"the {what} has no deterministic form {devices}: torch raises under deterministic=True",
            "replaced": f"the {what} is deterministic {devices} only under deterministic=True, in a slower form",
            "silent": f"the {what} adds up in an order that varies {devices}, and torch does not raise",
            "setting": f"the {what} is not always deterministic {devices}",
        }[self.effect]


def argument(position: int, name: str, default: Any = None) -> Callable[[Arguments, Keywords], Any]:
    """Return a function that finds an argument, given by position or by name."""

    def get(arguments: Arguments, keywords: Keywords) -> Any:
        return arguments[position] if len(arguments) > position else keywords.get(name, default)

    return get


def more_than_one(module: Any) -> bool:
    """Say whether an adaptive pool's output has more than one element: to one, torch averages without atomics."""
    size = module.output_size
    return any(value != 1 for value in (size if isinstance(size, tuple | list) else (size,)))


def uneven(arguments: Arguments, keywords: Keywords) -> bool:
    """Say whether an adaptive pool's output does not divide its input."""
    given, wanted = arguments[0].shape[-3:], arguments[1]
    return any(size % output for size, output in zip(given, wanted, strict=True))


def interpolates(*modes: str) -> Callable[[Any], bool]:
    """Return whether an Upsample has one of these modes."""
    return lambda module: module.mode in modes


def floating(arguments: Arguments, keywords: Keywords) -> bool:
    """Say whether the first argument is of floating-point or complex numbers."""
    return bool(arguments[0].is_floating_point() or arguments[0].is_complex())


def averages(module: Any) -> bool | None:
    """Say whether a loss averages or adds up over class indices; that they are spatial shows only in its input."""
    return False if getattr(module, "reduction", "mean") == "none" else None
