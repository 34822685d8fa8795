"""What an audit of a model finds, on real networks of torch, MONAI and Lightning, and that it leaves them alone."""

from __future__ import annotations

import lightning
import monai.losses
import monai.networks.nets
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repro_callbacks import flags
from repro_callbacks.audit import audit, audit_model
from repro_callbacks.fingerprint import digest_state


def found(findings, *levels):
    return [(finding.where, finding.level) for finding in findings if not levels or finding.level in levels]


class Functional(nn.Module):
    """Calls everything as a function, so that no class tells."""

    def __init__(self, what):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv3d(1, 2, 1), Calls(what))

    def forward(self, x):
        return self.inner(x)


class Calls(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


VOLUME = torch.rand(1, 1, 4, 4, 4)

FUNCTIONS = {
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), "error"),
    "interpolate area": (lambda x: F.interpolate(x, size=(3, 3, 3), mode="area"), "error"),
    "interpolate trilinear": (lambda x: F.interpolate(x, size=(3, 3, 3), mode="trilinear"), "note"),
    "grid_sample": (lambda x: F.grid_sample(x, torch.zeros(1, 2, 2, 2, 3), align_corners=False), "error"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect"), "error"),
    "cross_entropy": (lambda x: F.cross_entropy(x, torch.zeros(1, 4, 4, 4, dtype=torch.long)), "error"),
    "cumsum": (lambda x: x.cumsum(0), "error"),
    "median": (lambda x: x.median(0).values, "error"),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, 3), "error"),
}
FINE = {
    "one-hot cross_entropy": lambda x: F.cross_entropy(x, torch.rand(1, 2, 4, 4, 4)),
    "cross_entropy without reduction": lambda x: F.cross_entropy(
        x, torch.zeros(1, 4, 4, 4, dtype=torch.long), reduction="none"
    ),
    "adaptive to one": lambda x: F.adaptive_avg_pool3d(x, 1),
    "median of all": lambda x: x.median(),
    "whole numbers": lambda x: (x > 0).long().cumsum(0),
    "without gradient": lambda x: F.avg_pool3d(x.detach(), 2),
    "even": lambda x: F.adaptive_max_pool3d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_what_is_called_as_a_function_is_seen_with_inputs_and_named_by_the_module_that_calls_it(case):
    function, level = FUNCTIONS[case]
    model = Functional(function)
    assert audit_model(model) == []
    assert found(audit_model(model, VOLUME)) == [("inner.1 (Calls)", level)]
    assert found(audit_model(model, VOLUME, device="cpu")) == []


@pytest.mark.parametrize("case", FINE)
def test_what_is_deterministic_is_not_found(case):
    assert audit_model(Functional(FINE[case]), VOLUME) == []


def test_no_gradient_flows_where_nothing_requires_one():
    model = nn.Sequential(nn.AvgPool3d(2), nn.Conv3d(1, 1, 1))
    assert found(audit_model(model)) == [("0 (AvgPool3d)", "error")]
    assert found(audit_model(model, VOLUME)) == []
    with torch.no_grad():
        assert audit_model(Functional(lambda x: F.avg_pool3d(x, 2)), VOLUME) == []


def test_inputs_decide_what_a_class_leaves_open():
    model = nn.Sequential(nn.Conv3d(1, 1, 1), nn.AdaptiveMaxPool3d(2))
    assert found(audit_model(model)) == [("1 (AdaptiveMaxPool3d)", "warning")]
    assert found(audit_model(model, VOLUME)) == []
    assert found(audit_model(model, torch.rand(1, 1, 5, 5, 5))) == [("1 (AdaptiveMaxPool3d)", "error")]


def test_a_module_that_does_not_run_keeps_what_its_class_says():
    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Conv3d(1, 2, 1)
            self.loss = monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)

        def forward(self, x):
            return self.net(x)

    expected = [("loss.cross_entropy (CrossEntropyLoss)", "warning")]
    assert found(audit_model(Net())) == found(audit_model(Net(), VOLUME)) == expected


def test_networks_of_monai():
    densenet = audit_model(monai.networks.nets.DenseNet121(3, 1, 2))
    assert {where.split(" ")[1] for where, _ in found(densenet, "error")} == {"(AvgPool3d)"}
    assert len(found(densenet, "error")) == 3
    image = torch.rand(1, 1, 32, 32, 32)
    voxelmorph = audit_model(monai.networks.nets.VoxelMorph(), (image, image))
    assert {where.split(" ")[1] for where, _ in found(voxelmorph, "error")} == {"(Warp)"}
    assert audit_model(monai.networks.nets.UNet(3, 1, 2, (4, 8), (2,)), {"x": image}) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_max_unpool_is_found_for_any_device(device):
    assert found(audit_model(nn.MaxUnpool2d(2), device=device)) == [("the model itself (MaxUnpool2d)", "error")]


def test_a_device_of_which_nothing_is_known_is_refused():
    with pytest.raises(ValueError, match=r"device must be 'cuda' or 'cpu', of which .* tells, not 'mps'"):
        audit_model(nn.Identity(), device="mps")


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(1)
        self.drop = nn.Dropout(0.5)
        self.unpool = nn.MaxUnpool3d(2)

    def forward(self, x, fail=False):
        y = self.drop(self.norm(x))
        if fail:
            raise KeyError("mine")
        return self.unpool(y, torch.zeros_like(y, dtype=torch.long))


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_the_generators_and_the_switches_are_left_as_they_were(fail):
    model = Stateful()
    states = flags.snapshot()
    torch.use_deterministic_algorithms(True)  # MaxUnpool would raise; it is found all the same
    try:
        before = digest_state(model), torch.get_rng_state().tolist(), flags.read(), model.training
        if fail:
            with pytest.raises(KeyError, match="mine"):
                audit_model(model, (VOLUME, True))
        else:
            assert found(audit_model(model, VOLUME)) == [("unpool (MaxUnpool3d)", "error")]
        after = digest_state(model), torch.get_rng_state().tolist(), flags.read(), model.training
        assert all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after, strict=True)
        )
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        flags.restore(states)


def test_running_the_model_by_hand_does_change_it():
    model = Stateful()
    before = digest_state(model)
    model(VOLUME)
    assert digest_state(model) != before


def test_a_report_is_worst_first_says_so_and_is_json():
    import json

    model = nn.Sequential(nn.MaxPool3d(2), nn.AdaptiveMaxPool3d(2), nn.AvgPool3d(2), nn.Conv3d(1, 1, 1))
    report = audit(model)
    assert [finding.level for finding in report] == ["error", "warning", "note"]
    assert not report
    assert "error: 2 (AvgPool3d): the backward of avg_pool3d has no deterministic form on CUDA" in str(report)
    assert "instead: a strided convolution" in str(report)
    assert [row["where"] for row in json.loads(report.to_json())] == [finding.where for finding in report]
    notes = audit(nn.MaxPool3d(2))
    assert len(notes) == 1
    assert notes
    assert audit(nn.Identity())
    assert str(audit(nn.Identity())) == "nothing found that is known not to be deterministic"
