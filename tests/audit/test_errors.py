"""torch's error about determinism, with the module that it comes from and what to use instead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repro_callbacks import flags
from repro_callbacks.audit import explain


@pytest.fixture(autouse=True)
def _deterministic():
    states = flags.snapshot()
    torch.use_deterministic_algorithms(True)
    yield
    flags.restore(states)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.MaxUnpool2d(2)

    def forward(self, x):
        return self.up(x, torch.zeros_like(x, dtype=torch.long))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.decoder = nn.Sequential(nn.Identity(), Decoder())

    def forward(self, x):
        return self.decoder(self.conv(x))


def raised(run) -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        run()
    return caught.value


def refused(name: str) -> RuntimeError:
    """The error that torch raises on a device that is not here, in its words."""
    return RuntimeError(
        f"{name} does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'. "
        "You can turn off determinism just for this operation, ..."
    )


def test_a_forward_is_traced_to_the_module_that_raised_and_to_the_line_that_called_it():
    model = Net()
    text = explain(raised(lambda: model(torch.rand(1, 1, 2, 2))), model)
    first, second, third = text.splitlines()
    assert first.startswith("max_unpooling2d_forward_out is the forward of max_unpool1d, max_unpool2d and ")
    assert "raised in decoder.1.up (MaxUnpool2d), at line 2" in first
    assert first.endswith("test_errors.py.")
    assert second.startswith("Use instead: a transposed convolution")
    assert "deterministic='warn'" in third


def test_a_function_is_traced_to_the_module_that_called_it():
    class Functional(nn.Module):
        def forward(self, x):
            return F.max_unpool2d(x, torch.zeros_like(x, dtype=torch.long), 2)

    model = nn.Sequential(nn.Identity(), Functional())
    assert "raised in 1 (Functional)" in explain(raised(lambda: model(torch.rand(1, 1, 2, 2))), model)


def test_a_module_outside_the_model_is_named_by_its_class():
    text = explain(raised(lambda: Decoder()(torch.rand(1, 1, 2, 2))), nn.Identity())
    assert "raised in a MaxUnpool2d outside the model" in text


def test_a_call_outside_of_any_module_says_so():
    text = explain(raised(lambda: torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))), nn.Identity())
    assert text.startswith("put_ is the forward of put_. It was raised outside of any module, at line")


def test_a_backward_names_the_modules_that_use_the_operator():
    model = nn.Sequential(nn.AvgPool3d(2), nn.Sequential(nn.Conv3d(1, 1, 1), nn.AvgPool3d(2)))
    text = explain(refused("avg_pool3d_backward_cuda"), model)
    assert "backward of avg_pool3d, which is used by 0 (AvgPool3d), 1.1 (AvgPool3d)." in text


def test_a_backward_that_no_module_is_known_to_use_says_how_to_find_it():
    text = explain(refused("grid_sampler_3d_backward_cuda"), nn.Conv3d(1, 1, 1))
    assert "it is called as a function" in text
    assert "audit_model(model, example_inputs)" in text


def test_many_users_are_counted():
    model = nn.Sequential(*[nn.AvgPool3d(1) for _ in range(20)])
    assert "7 (AvgPool3d) and 12 more." in explain(refused("avg_pool3d_backward_cuda"), model)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("adaptive_avg_pool2d_backward_cuda", "adaptive_avg_pool2d"),
        ("adaptive_max_pool2d_backward_cuda", "adaptive_max_pool2d"),
        ("fractional_max_pool3d_backward_cuda", "fractional_max_pool2d"),
        ("upsample_linear1d_backward_out_cuda", "mode='linear'"),
        ("upsample_bicubic2d_backward_out_cuda", "mode='bicubic'"),
        ("upsample_bilinear2d_aa_backward_out_cuda", "antialias"),
        ("upsample_trilinear3d_backward_out_cuda", "mode='trilinear'"),
        ("max_pool3d_with_indices_backward_cuda", "max_pool3d"),
        ("reflection_pad1d_backward_out_cuda", "reflection padding"),
        ("replication_pad3d_backward_cuda", "replication padding"),
        ("nll_loss2d_forward_out_cuda_template", "cross_entropy"),
        ("ctc_loss_backward_gpu", "ctc_loss"),
        ("embedding_bag_backward_cuda_max", "embedding_bag"),
        ("grid_sampler_2d_backward_cuda", "grid_sample"),
        ("_histc_cuda with floating point input", "histc"),
        ("_bincount_cuda", "bincount"),
        ("median CUDA with indices output", "median"),
        ("cumsum_cuda_kernel", "cumsum"),
    ],
)
def test_every_name_that_torch_uses_on_a_device_is_known(name, operator):
    text = explain(refused(name), nn.Identity())
    assert operator in text.splitlines()[0]
    assert "Use instead: " in text


def test_an_operator_that_is_not_in_the_table_is_said_to_be_unknown():
    text = explain(refused("unheard_of_cuda"), nn.Identity())
    assert text.startswith("unheard_of_cuda is not in the table")
    assert "Use instead" not in text


def test_the_error_of_cublas_names_the_variable():
    error = RuntimeError(
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ..., but this "
        "operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2. To enable deterministic "
        "behavior in this case, you must set an environment variable before running your PyTorch application: "
        "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
    )
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8" in explain(error, nn.Identity())


def test_another_error_is_not_explained():
    assert explain(RuntimeError("the sizes of tensors must match"), nn.Identity()) is None
