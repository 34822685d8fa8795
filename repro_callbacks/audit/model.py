"""What in a model can't be deterministic: by the classes of its modules, and by the operators that it really calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro_callbacks import flags, generators
from repro_callbacks.audit.findings import Finding, Level
from repro_callbacks.audit.operator import Operator
from repro_callbacks.audit.operators import of_call, of_module


def audit_model(model: nn.Module, example_inputs: Any = None, device: str | torch.device = "cuda") -> list[Finding]:
    """Return what in a model is not deterministic by itself on a kind of device, with the path of each module.

    Without ``example_inputs`` it goes by the classes of the modules: what is called as a function is not seen, and
    where the inputs decide, the finding is a warning. With them the model is run once, forward, where it is, and the
    operators that it calls decide. Whether a backward follows is read off the inputs of each operator; what a custom
    ``autograd.Function`` does in its backward is not seen.

    Args:
        model: The model, losses among its modules included. Its weights, buffers and mode are left as they were.
        example_inputs: A tensor, a tuple or list of arguments, or a dictionary of keyword arguments.
        device: The kind of device that is asked about, ``"cuda"`` or ``"cpu"``; it need not be there.

    Raises:
        ValueError: If nothing is known of the device.

    Example:
        >>> audit_model(nn.Sequential(nn.Conv3d(1, 1, 3), nn.AvgPool3d(2)))[0].where
        '1 (AvgPool3d)'
        >>> audit_model(nn.Sequential(nn.Conv3d(1, 1, 3), nn.AvgPool3d(2)), device="cpu")
        []
    """
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cuda' or 'cpu', of which torch's documentation tells, not {str(device)!r}")
    modules = dict(model.named_modules())
    expected = {
        (path, row): sure for path, module in modules.items() for row, sure in of_module(module) if kind in row.devices
    }
    if example_inputs is not None:
        calls = _Calls()
        with _watched(model, modules, calls):
            _run(model, example_inputs)
        seen = {(path, row) for path, row in calls.operators if kind in row.devices}
        # A module that ran without its operator does not use it; one that did not run (a loss) keeps what is expected.
        kept = {place: sure for place, sure in expected.items() if place[0] not in calls.entered or not place[1].calls}
        expected = kept | dict.fromkeys(seen, True)
    order = {path: number for number, path in enumerate(modules)}
    places = sorted(expected, key=lambda place: order[place[0]])
    return [
        Finding(level_of(row, expected[path, row]), named(path, modules[path]), str(row), row.instead, row.source)
        for path, row in places
    ]


def level_of(row: Operator, sure: bool | None) -> Level:
    """Return how bad it is that a module uses an operator, or may use it."""
    if row.effect in ("replaced", "setting"):
        return "note"
    return "error" if sure else "warning"


def named(path: str, module: nn.Module) -> str:
    """Name a module by its path and class."""
    return f"{path or 'the model itself'} ({type(module).__name__})"


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator of the table that is called, with the module whose forward it is called in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.within = [""]
        self.entered: set[str] = set()
        self.operators: list[tuple[str, Operator]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if func.namespace == "aten":
            differentiable = torch.is_grad_enabled() and any(
                isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in tree_leaves((args, keywords))
            )
            for row in of_call(func.overloadpacket.__name__, func._overloadname, args, keywords):
                if row.direction == "forward" or differentiable:
                    self.operators.append((self.within[-1], row))
        return func(*args, **keywords)


@contextmanager
def _watched(model: nn.Module, modules: Mapping[str, nn.Module], calls: _Calls) -> Iterator[None]:
    """Tell ``calls`` which module runs, and leave the model, the generators and the switches as they were."""
    states = flags.snapshot()
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with ExitStack() as undo, generators.isolate():
        for path, module in modules.items():

            def enter(_module: nn.Module, _inputs: Any, path: str = path) -> None:
                calls.within.append(path)
                calls.entered.add(path)

            def leave(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
                calls.within.pop()

            undo.callback(module.register_forward_pre_hook(enter).remove)
            undo.callback(module.register_forward_hook(leave, always_call=True).remove)
        undo.callback(flags.restore, states, {"deterministic_algorithms"})
        flags.write({"deterministic_algorithms": False})  # else an operator that has no deterministic form would raise
        undo.enter_context(calls)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def _run(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        model(*inputs)
    else:
        model(inputs)
