"""The zoom: the first operator that differs between two settings, where it stands, and how much."""

import contextlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from repro_callbacks.fingerprint.operators import OperatorTrace, compare_operators, record_step, zoom
from repro_callbacks.fingerprint.ulp import ulps


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"stem": nn.Conv2d(3, 16, 3, padding=1), "norm": nn.BatchNorm2d(16)})
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16 * 64, 3)

    def forward(self, image):
        hidden = torch.relu(self.encoder["norm"](self.encoder["stem"](image)))
        return self.head(self.dropout(hidden).flatten(1))


def line_of(function, words):
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if words in line)


class Step:
    """One step from the same start, in a setting."""

    def __init__(self, net=Net, under=contextlib.nullcontext, before=lambda net, batch: None, lr=1e-3, seed=0):
        torch.manual_seed(0)
        self.net, self.under, self.before, self.seed = net(), under, before, seed
        self.start = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.lr = lr

    def __call__(self):
        self.net.load_state_dict(self.start)
        self.net.zero_grad()
        generator = torch.Generator().manual_seed(1)
        batch = torch.randn(4, 3, 8, 8, generator=generator)
        optimizer = torch.optim.Adam(self.net.parameters(), self.lr)
        self.before(self.net, batch)
        torch.manual_seed(self.seed)
        with self.under():
            self.net(batch).square().mean().backward()
            optimizer.step()

    def trace(self, keep=()):
        return record_step(self, self.net, keep)


def compare_steps(one, two):
    from repro_callbacks.fingerprint.operators import zoom_with

    return zoom_with(one.trace, two.trace)


def without_onednn():
    return torch.backends.mkldnn.flags(enabled=False)


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_equal_steps_agree():
    assert compare_steps(Step(), Step()) is None


def test_recording_changes_no_bits():
    plain, recorded = Step(), Step()
    plain()
    trace = recorded.trace()
    assert len(trace.calls) > 30
    for one, two in zip(plain.net.parameters(), recorded.net.parameters(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one.grad, two.grad)


def test_names_modules_and_lines():
    trace = Step().trace()
    forward = {call.name: call for call in trace.calls if call.phase == "forward"}
    backward = [call for call in trace.calls if call.phase == "backward"]
    assert forward["aten.convolution.default"].module == "encoder.stem"
    assert forward["aten.addmm.default"].module == "head"
    line = line_of(Net.forward, "torch.relu")
    assert forward["aten.relu.default"].source == f"fingerprint/test_operators.py:{line} in forward"
    of_convolution = next(call for call in backward if call.name == "aten.convolution_backward.default")
    assert of_convolution.module == "encoder.stem"
    assert of_convolution.source == forward["aten.convolution.default"].source
    assert {call.phase for call in trace.calls} == {"forward", "backward", "no grad"}


def test_another_kernel():
    found = compare_steps(Step(), Step(under=without_onednn))
    assert found.kind == "operator"
    assert found.a.name == "aten.convolution.default"
    assert found.a.module == "encoder.stem"
    assert found.distance.elements == 4 * 16 * 64
    assert 0 < found.distance.differing <= found.distance.elements
    assert found.distance.ulps >= 1
    assert found.repeats is True
    assert "units in the last place" in str(found)
    assert f"test_operators.py:{line_of(Net.forward, 'stem')} in forward" in str(found)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.0, 1.0, 1 << 18))

    def forward(self, image):
        return (self.weight * image.mean()).exp().sum()


def test_another_number_of_threads():
    found = compare_steps(Step(Wide, lambda: threads(1)), Step(Wide, lambda: threads(2)))
    assert found.kind == "operator"
    assert found.a.name == "aten.sum.default"
    assert found.a.source.endswith(f"test_operators.py:{line_of(Wide.forward, 'exp')} in forward")


ORDER = {"backwards": False}


@torch.library.custom_op("repro_callbacks_tests::total", mutates_args=())
def total(values: torch.Tensor) -> torch.Tensor:
    flat = values.flatten()
    ordered = flat.flip(0) if ORDER["backwards"] else flat
    return torch.tensor(ordered.numpy().cumsum()[-1])  # one after the other


def remember_shape(ctx, inputs, output):
    ctx.shape = inputs[0].shape


total.register_autograd(lambda ctx, gradient: gradient.expand(ctx.shape), setup_context=remember_shape)


@contextlib.contextmanager
def backwards():
    ORDER["backwards"] = True
    try:
        yield
    finally:
        ORDER["backwards"] = False


class Totals(Net):
    def forward(self, image):
        return total(super().forward(image) * torch.linspace(0, 1, 999).view(-1, 1, 1))


def test_an_operator_with_another_summation_order():
    found = compare_steps(Step(Totals), Step(Totals, backwards))
    assert found.kind == "operator"
    assert found.a.name == "repro_callbacks_tests.total.default"
    assert found.distance.elements == 1
    assert found.distance.ulps >= 1


def test_the_backward_pass():
    class OnlyBackward:
        def __enter__(self):
            self.handle = torch.nn.modules.module.register_module_forward_hook(self.off)

        def off(self, module, inputs, output):
            if isinstance(module, nn.Linear):
                torch.backends.mkldnn.set_flags(False)

        def __exit__(self, *error):
            self.handle.remove()
            torch.backends.mkldnn.set_flags(True)

    found = compare_steps(Step(), Step(under=OnlyBackward))
    assert found.kind == "operator"
    assert found.a.phase == "backward"
    assert found.a.name == "aten.convolution_backward.default"
    assert found.a.module == "encoder.stem"


def in_batch(bit):
    def change(net, batch):
        batch.numpy().view(np.int32)[1, 2, 3, 4] ^= bit  # behind torch's back

    return change


def in_parameter(bit):
    def change(net, batch):
        net.head.weight.detach().numpy().view(np.int32)[0, 0] ^= bit

    return change


@pytest.mark.parametrize(
    ("setting", "names", "module"),
    [
        (lambda bit: {"before": in_batch(bit)}, ["aten.convolution.default"], "encoder.stem"),
        (lambda bit: {"before": in_parameter(bit)}, ["aten.addmm.default"], "head"),
        (lambda bit: {"seed": bit}, ["aten.native_dropout.default", "aten.bernoulli_.float"], "dropout"),
        (lambda bit: {"lr": 1e-3 * (1 + bit)}, None, ""),
    ],
    ids=["batch", "parameter", "generator", "learning rate"],
)
def test_what_comes_from_outside(setting, names, module):
    found = compare_steps(Step(**setting(0)), Step(**setting(1)))
    assert found.kind == "input", str(found)
    assert names is None or found.a.name in names, str(found)
    assert found.a.module == module
    assert (found.a.phase == "no grad") == (names is None)
    assert "comes from outside" in str(found)


def test_another_program():
    class Gelu(Net):
        def forward(self, image):
            hidden = nn.functional.gelu(self.encoder["norm"](self.encoder["stem"](image)))
            return self.head(self.dropout(hidden).flatten(1))

    found = compare_steps(Step(), Step(Gelu))
    assert found.kind == "program"
    assert (found.a.name, found.b.name) == ("aten.relu.default", "aten.gelu.default")
    short = OperatorTrace(Step().trace().calls[:5])
    found = compare_operators(short, Step().trace())
    assert found.kind == "program"
    assert "nothing more" in str(found)


def test_an_operator_that_does_not_repeat():
    state = {"calls": 0}

    @torch.library.custom_op("repro_callbacks_tests::drifts", mutates_args=())
    def drifts(values: torch.Tensor) -> torch.Tensor:
        state["calls"] += 1
        return values + state["calls"]

    found = zoom(lambda: drifts(torch.zeros(3)), lambda: drifts(torch.zeros(3)))
    assert found.a.name == "repro_callbacks_tests.drifts.default"
    assert found.repeats is False
    assert "does not repeat" in str(found)


def test_memory_that_was_not_written_is_no_difference():
    def step():
        torch.empty(1000).view(-1)
        torch.empty_like(torch.ones(1000))
        return torch.ones(3) * 2

    assert zoom(step, step) is None


def test_a_trace_goes_to_a_file(tmp_path):
    one, two = Step().trace(keep=[0, 1]), Step(under=without_onednn).trace(keep=[0, 1])
    one.save(tmp_path / "one")
    read = OperatorTrace.load(tmp_path / "one")
    assert read.calls == one.calls
    first = compare_operators(one, two)
    again = compare_operators(read, two)
    assert first == again
    number = first.number
    read = OperatorTrace(read.calls, Step().trace([number]).kept)
    assert compare_operators(read, Step(under=without_onednn).trace([number])).distance.differing > 0


def test_hooks_are_gone_afterwards():
    hooks = torch.nn.modules.module
    before = dict(hooks._global_forward_hooks), dict(hooks._global_forward_pre_hooks)
    with pytest.raises(ZeroDivisionError):
        record_step(lambda: nn.Linear(2, 2)(torch.ones(1, 2)) / (1 // 0))
    assert (dict(hooks._global_forward_hooks), dict(hooks._global_forward_pre_hooks)) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_units_in_the_last_place(dtype):
    numbers = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 1.5, 3.0], dtype=dtype)
    up = torch.nextafter(numbers.float(), torch.tensor(9.0)).to(dtype) if dtype is torch.float32 else None
    if up is not None:
        assert ulps(numbers, up).tolist() == [1, 1, 2, 1, 1, 1, 1]
    assert ulps(numbers, numbers).tolist() == [0] * 7
    assert ulps(numbers[2:3], numbers[3:4]).tolist() == [1]
    raw = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert ulps(numbers[4:], (numbers[4:].view(raw) + 5).view(dtype)).tolist() == [5] * 3
    nan = torch.full((7,), float("nan"), dtype=dtype)
    assert ulps(numbers, nan).tolist() == [float("inf")] * 7
    assert ulps(nan, nan).tolist() == [0] * 7
    assert ulps(torch.tensor([3, -4]), torch.tensor([3, 4])).tolist() == [0, 8]


def test_the_file_is_named_from_its_folder():
    call = record_step(lambda: torch.ones(1)).calls[0]
    assert call.source.startswith(f"fingerprint/{Path(__file__).name}:")
