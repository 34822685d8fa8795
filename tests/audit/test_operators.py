"""The table against torch itself: its rows are real operators, and what torch raises on the CPU is in it."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repro_callbacks import flags
from repro_callbacks.audit.operator import ANY
from repro_callbacks.audit.operators import OPERATORS, of_call, of_error, of_module

INDICES = torch.tensor([0, 0])


@pytest.fixture(autouse=True)
def _switches_are_left_as_they_were():
    states = flags.snapshot()
    yield
    flags.restore(states)


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
def test_every_row_names_operators_and_modules_that_exist(row):
    import monai.networks.blocks
    import monai.networks.layers
    import monai.networks.nets.vista3d

    homes = {
        "torch": [nn, nn.modules.conv, nn.modules.padding, nn.modules.rnn],
        "monai": [monai.networks.blocks, monai.networks.layers, monai.networks.nets.vista3d],
    }
    for call in row.calls:
        name, _, overload = call.partition(".")
        packet = getattr(torch.ops.aten, name)
        assert not overload or overload in packet.overloads()
    for module in row.modules:
        package, _, name = module.partition(".")
        assert any(hasattr(home, name) for home in homes[package]), module
    assert row.errors or row.effect != "raises" or row.when == "with accumulate=True"
    assert row.instead
    assert row.source


def test_every_operator_that_torch_documents_as_raising_is_in_the_table():
    documentation = torch.use_deterministic_algorithms.__doc__
    raising = documentation.split("operations will throw a")[1].split("In addition")[0]
    named = re.findall(r":(?:class|func):`torch\.(?:nn\.functional\.|nn\.|Tensor\.)?(\w+)`", raising)
    assert len(named) > 20
    known = " ".join(f"{row.name} {' '.join(row.modules)} {' '.join(row.calls)}" for row in OPERATORS).lower()
    covered = {"nllloss": "nll_loss", "reflectionpad": "reflection_pad"}
    missing = {
        name
        for name in named
        if (plain := name.lower()) not in known
        and re.sub(r"\dd$", "", plain) not in known
        and not any(plain.startswith(word) and other in known for word, other in covered.items())
    }
    # resize_ of a quantized tensor: an inference format, which no training meets
    assert missing == {"resize_"}


RAISE_ON_CPU = {
    "MaxUnpool1d": lambda: F.max_unpool1d(torch.ones(1, 1, 2), torch.tensor([[[0, 2]]]), 2),
    "MaxUnpool2d": lambda: F.max_unpool2d(torch.ones(1, 1, 1, 1), torch.tensor([[[[0]]]]), 2),
    "MaxUnpool3d": lambda: F.max_unpool3d(torch.ones(1, 1, 1, 1, 1), torch.tensor([[[[[0]]]]]), 2),
    "put_": lambda: torch.zeros(3).put_(INDICES, torch.ones(2)),
}
FINE_ON_CPU = {
    "put_ accumulating": lambda: torch.zeros(3).put_(INDICES, torch.ones(2), accumulate=True),
    "avg_pool3d": lambda: F.avg_pool3d(torch.ones(1, 1, 2, 2, 2, requires_grad=True), 2).sum().backward(),
    "cumsum": lambda: torch.ones(3).cumsum(0),
    "histc": lambda: torch.ones(3).histc(),
    "median": lambda: torch.ones(3).median(0),
    "cross_entropy": lambda: F.cross_entropy(torch.ones(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long)),
}


@pytest.mark.parametrize("case", RAISE_ON_CPU)
def test_what_torch_refuses_on_the_cpu_is_in_the_table_for_any_device(case):
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as caught:
        RAISE_ON_CPU[case]()
    name = str(caught.value).partition(" does not have")[0]
    row = of_error(name)
    assert row is not None
    assert row.devices == ANY
    assert row.direction == "forward"


@pytest.mark.parametrize("case", FINE_ON_CPU)
def test_what_torch_does_not_refuse_on_the_cpu_is_not_said_to_be_refused_there(case):
    torch.use_deterministic_algorithms(True)
    FINE_ON_CPU[case]()


def rows(module: nn.Module) -> list[tuple[str, bool | None]]:
    return [(row.effect, sure) for row, sure in of_module(module)]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.AvgPool3d(2), [("raises", True)]),
        (nn.AvgPool2d(2), []),
        (nn.AdaptiveAvgPool3d(1), []),
        (nn.AdaptiveAvgPool3d((1, 1, 1)), []),
        (nn.AdaptiveAvgPool3d((None, 1, 1)), [("raises", True)]),
        (nn.AdaptiveAvgPool2d(2), [("raises", True)]),
        (nn.AdaptiveMaxPool3d(2), [("silent", None)]),
        (nn.AdaptiveMaxPool3d(1), []),
        (nn.MaxUnpool1d(2), [("raises", True)]),
        (nn.MaxPool3d(2), [("replaced", True)]),
        (nn.Upsample(scale_factor=2, mode="nearest"), []),
        (nn.Upsample(scale_factor=2, mode="linear"), [("raises", True)]),
        (nn.Upsample(scale_factor=2, mode="bicubic"), [("raises", True)]),
        (nn.Upsample(scale_factor=2, mode="trilinear"), [("replaced", True)]),
        (nn.UpsamplingBilinear2d(scale_factor=2), [("replaced", True)]),
        (nn.ReflectionPad3d(1), [("raises", True)]),
        (nn.ReplicationPad3d(1), [("replaced", True)]),
        (nn.Conv3d(1, 1, 3), []),
        (nn.Conv3d(1, 1, 3, padding=1, padding_mode="reflect"), [("raises", True)]),
        (nn.Conv3d(1, 1, 3, padding=1, padding_mode="replicate"), [("replaced", True)]),
        (nn.CrossEntropyLoss(), [("raises", None)]),
        (nn.CrossEntropyLoss(reduction="none"), []),
        (nn.EmbeddingBag(3, 2, mode="max"), [("raises", True)]),
        (nn.EmbeddingBag(3, 2, mode="mean"), []),
        (nn.LSTM(2, 2), [("setting", True)]),
    ],
    ids=repr,
)
def test_what_the_class_and_settings_of_a_module_say(module, expected):
    assert rows(module) == expected


def test_a_subclass_counts_and_a_class_of_the_same_name_from_elsewhere_does_not():
    class Mine(nn.AvgPool3d):
        pass

    class AvgPool3d(nn.Module):
        pass

    assert rows(Mine(2)) == [("raises", True)]
    assert rows(AvgPool3d()) == []


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("cumsum", [torch.ones(3), 0], True),
        ("cumsum", [torch.ones(3, dtype=torch.complex64), 0], True),
        ("cumsum", [torch.arange(3), 0], False),
        ("histc", [torch.arange(3)], False),
        ("bincount", [INDICES], False),
        ("bincount", [INDICES, torch.ones(2)], True),
        ("nll_loss2d_forward", [None, None, None, 0, -100], False),
        ("nll_loss2d_forward", [None, None, None, 1, -100], True),
        ("_embedding_bag", [None, None, None, False, 2], True),
        ("_embedding_bag", [None, None, None, False, 1], False),
        ("adaptive_max_pool3d", [torch.ones(1, 6, 6, 6), [3, 2, 1]], False),
        ("adaptive_max_pool3d", [torch.ones(1, 6, 6, 6), [3, 4, 1]], True),
        ("scatter_reduce", [None, 0, None, None, "sum"], False),
        ("scatter_reduce", [None, 0, None, None, "prod"], True),
    ],
)
def test_the_arguments_of_a_call_count(name, arguments, found):
    assert bool(of_call(name, "default", arguments, {})) is found


def test_put_is_split_by_whether_it_accumulates():
    assert [row.devices for row in of_call("put_", "default", [None, None, None], {})] == [ANY]
    assert [row.devices for row in of_call("put_", "default", [None, None, None, True], {})] == [("cuda",)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "module",
    [
        nn.AvgPool3d(2),
        nn.AdaptiveAvgPool3d(2),
        nn.FractionalMaxPool3d(2, output_ratio=0.5),
        nn.ReflectionPad3d(1),
        nn.AdaptiveAvgPool3d(1),
        nn.MaxPool3d(2),
        nn.ReplicationPad3d(1),
        nn.Upsample(scale_factor=2, mode="trilinear"),
    ],
    ids=repr,
)
def test_on_a_device_torch_raises_for_what_the_table_says_it_does_and_for_nothing_else(module):
    flags.set_deterministic(True)
    x = torch.rand(1, 1, 8, 8, 8, device="cuda", requires_grad=True)
    expected = [row for row, _ in of_module(module) if row.effect == "raises"]
    if not expected:
        module(x).sum().backward()
        return
    with pytest.raises(RuntimeError) as caught:
        module(x).sum().backward()
    assert of_error(str(caught.value).partition(" does not have")[0]) in expected
