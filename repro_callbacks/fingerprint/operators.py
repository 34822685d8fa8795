"""One step, operator by operator: the first whose inputs agree and whose output differs between two settings.

torch's dispatcher shows each operator as it runs, forward, backward and in the optimizer. Recorded are its name, the
module and the source line that called it, and digests of inputs and outputs. In the backward pass the module and the
line are those of the forward operator that it belongs to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro_callbacks.fingerprint.digest import digest_tree
from repro_callbacks.fingerprint.memory import Memory
from repro_callbacks.fingerprint.state import generator_digests
from repro_callbacks.fingerprint.ulp import Distance, measure

_FRAMEWORKS: Final = tuple(
    f"{os.sep}{name}{os.sep}"
    for name in ("torch", "lightning", "lightning_fabric", "pytorch_lightning", "repro_callbacks")
)


@dataclass(frozen=True)
class OperatorCall:
    """One operator that ran.

    Attributes:
        name: As the dispatcher calls it: ``aten.convolution.default``.
        module: The path of the module that called it, from the root that was given; empty outside of modules.
        source: The file, line and function that called it: the first outside of torch and Lightning.
        phase: ``forward``, ``backward``, or ``no grad`` (the optimizer, metrics).
        inputs: A digest of its arguments; for one that draws random numbers, of the generators too.
        outputs: A digest of what it returned.
    """

    name: str
    module: str
    source: str
    phase: str
    inputs: str
    outputs: str

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.name} ({self.phase}{where}, {self.source})"


@dataclass
class OperatorTrace:
    """All operators of a step, in the order in which they ran.

    Attributes:
        kept: For some calls, by number, the tensors that they returned.
    """

    calls: list[OperatorCall] = field(default_factory=list)
    kept: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace, for comparison with one of another machine."""
        torch.save({"calls": [astuple(call) for call in self.calls], "kept": self.kept}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OperatorTrace:
        """Read what :meth:`save` wrote."""
        read = torch.load(path, weights_only=True)
        return cls([OperatorCall(*call) for call in read["calls"]], read["kept"])


def record_step(step: Callable[[], Any], module: nn.Module | None = None, keep: Collection[int] = ()) -> OperatorTrace:
    """Run a step and record every operator of it. It computes the same bits as without, in many times the time.

    Args:
        step: Runs the step: forward, backward, optimizer.
        module: The root whose submodules are named.
        keep: Numbers of calls whose outputs are kept.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> trace = record_step(lambda: layer(torch.ones(3, 2)).sum().backward(), layer)
        >>> [call.name for call in trace.calls if call.phase == "forward"][-3:]
        ['aten.addmm.default', 'aten.sum.default', 'aten.ones_like.default']
    """
    recorder = OperatorRecorder(module, keep)
    with recorder:
        step()
    return recorder.trace


class OperatorRecorder:
    """Records operators between entering and leaving; see :func:`record_step`."""

    def __init__(self, module: nn.Module | None = None, keep: Collection[int] = ()) -> None:
        self.trace = OperatorTrace()
        self._names = {} if module is None else {id(own): name for name, own in module.named_modules()}
        self._stack: list[str] = []
        self._memory = Memory()
        self._keep = frozenset(keep)
        self._mode = _Mode(self)
        self._hooks: list[Any] = []
        self._forward_of: dict[int, OperatorCall] = {}

    def __enter__(self) -> OperatorRecorder:
        hooks = nn.modules.module
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _enter_module(self, module: nn.Module, *_: Any) -> None:
        self._stack.append(self._names.get(id(module), type(module).__name__))

    def _leave_module(self, *_: Any) -> None:
        self._stack.pop()

    def call(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator and record it."""
        name = str(operator)
        inputs = digest_tree([self._memory.arguments(operator, args, kwargs), _generators(operator, args, kwargs)])
        # The node of a forward operator is made right before it runs, and takes the next number.
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        node = torch._C._current_autograd_node()
        output = operator(*args, **kwargs)
        outputs = digest_tree(self._memory.written(operator, args, kwargs, output))
        if node is not None:
            forward = self._forward_of.get(node._sequence_nr())
            module, source = (forward.module, forward.source) if forward else ("", f"autograd node {node.name()}")
            phase = "backward"
        else:
            module, source = self._stack[-1] if self._stack else "", _source()
            phase = "forward" if torch.is_grad_enabled() else "no grad"
        call = OperatorCall(name, module, source, phase, inputs, outputs)
        if phase == "forward":
            self._forward_of.setdefault(number, call)
        if len(self.trace.calls) in self._keep:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
            self.trace.kept[len(self.trace.calls)] = [tensor.detach().clone() for tensor in tensors]
        self.trace.calls.append(call)
        return output


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, recorder: OperatorRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._recorder.call(func, args, kwargs or {})


def _generators(operator: Any, args: Any, kwargs: Any) -> Any:
    """Return the state of what an operator draws from: the generator that it is given, else torch's own."""
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return None
    given = next((own for own in tree_leaves((args, kwargs)) if isinstance(own, torch.Generator)), None)
    if given is not None:
        return given.get_state()
    return {name: state for name, state in generator_digests().items() if name not in ("python", "numpy")}


def _source() -> str:
    """Return the innermost line that is not a framework's."""
    frame = sys._getframe(2)
    innermost = None
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith("<") and not any(name in file for name in _FRAMEWORKS):
            return f"{_short(file)}:{frame.f_lineno} in {frame.f_code.co_name}"
        if innermost is None and f"{os.sep}repro_callbacks{os.sep}" not in file:
            innermost = f"{_short(file)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return innermost or "unknown"


def _short(file: str) -> str:
    path = Path(file)
    parts = path.parts
    if "site-packages" in parts:
        return str(Path(*parts[len(parts) - parts[::-1].index("site-packages") :]))
    return str(Path(*parts[-2:]))


@dataclass(frozen=True)
class OperatorDifference:
    """The first operator in which two traces differ.

    Attributes:
        kind: ``operator``: its inputs agree and its output differs. ``input``: an input differs that no operator before
            it made, so it came from outside: a batch, a parameter, a generator, code that is not torch's.
            ``program``: another operator ran, or none.
        number: Its place in the traces, from 0.
        a, b: The calls; None behind a trace's end.
        distance: How far its outputs are apart; None where they were not kept.
        repeats: Whether it gave the same bits again in its own setting; None where it ran once.
    """

    kind: str
    number: int
    a: OperatorCall | None
    b: OperatorCall | None
    distance: Distance | None = None
    repeats: bool | None = None

    @property
    def sentence(self) -> str:
        """The difference in words."""
        if self.kind == "program":
            ours, theirs = (str(call) if call is not None else "nothing more" for call in (self.a, self.b))
            return f"Operator {self.number}: A runs {ours} and B runs {theirs}; all operators before agree."
        if self.kind == "input":
            return (
                f"Operator {self.number}, {self.a}: its inputs differ, while all outputs before agree: "
                "the difference comes from outside (a batch, a parameter, a generator, code that is not torch's)."
            )
        told = f"Operator {self.number}, {self.a}: its inputs agree and its output differs"
        if self.distance is not None:
            one = self.distance
            told += f", in {one.differing} of {one.elements} elements, by at most {one.ulps:g} units in the last place"
        if self.repeats is False:
            told += "; it does not repeat its own bits in one setting"
        return f"{told}."

    def __str__(self) -> str:
        return self.sentence


def compare_operators(a: OperatorTrace, b: OperatorTrace) -> OperatorDifference | None:
    """Return the first operator in which two traces differ; None if they agree.

    Example:
        >>> x = torch.linspace(0, 1, 1000)
        >>> trace = record_step(lambda: x.sum())
        >>> compare_operators(trace, record_step(lambda: x.sum())) is None
        True
        >>> compare_operators(trace, record_step(lambda: x.mean())).kind
        'program'
    """
    for number in range(max(len(a.calls), len(b.calls))):
        one = a.calls[number] if number < len(a.calls) else None
        two = b.calls[number] if number < len(b.calls) else None
        if one is None or two is None or one.name != two.name:
            return OperatorDifference("program", number, one, two)
        if one.inputs != two.inputs:
            return OperatorDifference("input", number, one, two)
        if one.outputs != two.outputs:
            kept = number in a.kept and number in b.kept
            distance = measure(a.kept[number], b.kept[number]) if kept else None
            return OperatorDifference("operator", number, one, two, distance)
    return None


def zoom(
    run_a: Callable[[], Any], run_b: Callable[[], Any], module: nn.Module | None = None
) -> OperatorDifference | None:
    """Run one step in two settings, and name the first operator in which they differ.

    Each is run twice: to find the operator, and to keep what it returns.

    Args:
        run_a: Takes its setting, makes the same start (weights, batch, generators), and runs the step.
        run_b: The same in the other setting.
        module: The root whose submodules are named, if both train the same object.

    Example:
        >>> x = torch.linspace(0, 1, 4096).reshape(64, 64)
        >>> def step(dtype):
        ...     return lambda: torch.mm(x.to(dtype).float(), x)
        >>> print(zoom(step(torch.float32), step(torch.float32)))
        None
        >>> zoom(step(torch.float32), step(torch.bfloat16)).kind
        'program'
    """
    return zoom_with(lambda keep: record_step(run_a, module, keep), lambda keep: record_step(run_b, module, keep))


def zoom_with(
    trace_a: Callable[[Collection[int]], OperatorTrace], trace_b: Callable[[Collection[int]], OperatorTrace]
) -> OperatorDifference | None:
    """Do what :func:`zoom` does, given two functions that record a step and keep the outputs of some calls."""
    a, b = trace_a(()), trace_b(())
    found = compare_operators(a, b)
    if found is None or found.kind != "operator":
        return found
    number = found.number
    again = trace_a((number,)), trace_b((number,))
    repeats = all(
        len(new.calls) > number and new.calls[number].outputs == old.calls[number].outputs
        for new, old in zip(again, (a, b), strict=True)
    )
    ours, theirs = (trace.kept.get(number, []) for trace in again)
    return OperatorDifference("operator", number, found.a, found.b, measure(ours, theirs), repeats)
