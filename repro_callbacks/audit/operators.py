"""The operators that torch can't run deterministically, in one table: when, by whom they are used, what to use instead.

A row is one operator. ``effect`` tells what ``deterministic=True`` does to it: torch raises, torch takes another and
slower form, or torch does not know and the result varies in silence. The facts are those of torch 2.13.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

from torch import nn

from repro_callbacks.audit.operator import (
    ANY,
    DOCUMENTATION,
    Arguments,
    Keywords,
    Operator,
    argument,
    averages,
    depends,
    floating,
    interpolates,
    more_than_one,
    uneven,
)

FUNCTIONAL: Final = "PyTorch 2.13, torch/nn/functional.py"

OPERATORS: Final[tuple[Operator, ...]] = (
    Operator(
        "avg_pool3d",
        "backward",
        "raises",
        "a strided convolution or MaxPool3d; or, for windows that tile the volume, x.unflatten into windows and .mean "
        "over them",
        errors=("avg_pool3d_backward",),
        calls=("avg_pool3d",),
        modules=("torch.AvgPool3d",),
    ),
    Operator(
        "adaptive_avg_pool2d and adaptive_avg_pool3d",
        "backward",
        "raises",
        "output_size=1, or x.mean over the spatial dimensions; for more, a strided convolution",
        "to more than one element, also as interpolate(mode='area')",
        errors=("adaptive_avg_pool2d_backward", "adaptive_avg_pool3d_backward"),
        calls=("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
        modules=("torch.AdaptiveAvgPool2d", "torch.AdaptiveAvgPool3d"),
        applies=more_than_one,
        source=f"{DOCUMENTATION}; output 1 is a mean in ATen/native/AdaptiveAveragePooling.cpp",
    ),
    Operator(
        "adaptive_max_pool2d",
        "backward",
        "raises",
        "x.amax over the spatial dimensions for output_size=1, else MaxPool2d",
        errors=("adaptive_max_pool2d_backward",),
        calls=("adaptive_max_pool2d",),
        modules=("torch.AdaptiveMaxPool2d",),
    ),
    Operator(
        "adaptive_max_pool3d",
        "backward",
        "silent",
        "sizes that the output divides, x.amax over the spatial dimensions, or MaxPool3d",
        "where the output does not divide the input",
        calls=("adaptive_max_pool3d",),
        called=uneven,
        modules=("torch.AdaptiveMaxPool3d",),
        applies=lambda module: None if more_than_one(module) else False,
        source="PyTorch, ATen/native/cuda/AdaptiveMaxPooling3d.cu: atomicAdd without alertNotDeterministic",
    ),
    Operator(
        "fractional_max_pool2d and fractional_max_pool3d",
        "backward",
        "raises",
        "MaxPool2d or MaxPool3d",
        errors=("fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
        calls=("fractional_max_pool2d", "fractional_max_pool3d"),
        modules=("torch.FractionalMaxPool2d", "torch.FractionalMaxPool3d"),
    ),
    Operator(
        "max_unpool1d, max_unpool2d and max_unpool3d",
        "forward",
        "raises",
        "a transposed convolution, or Upsample(mode='nearest') and a convolution",
        devices=ANY,
        errors=("max_unpooling2d_forward", "max_unpooling3d_forward"),
        calls=("max_unpool2d", "max_unpool3d"),
        modules=("torch.MaxUnpool1d", "torch.MaxUnpool2d", "torch.MaxUnpool3d"),
    ),
    Operator(
        "interpolate(mode='linear')",
        "backward",
        "raises",
        "mode='nearest', or mode='bilinear' over a dimension of size 1 that is put in: torch has a deterministic form",
        "of a sequence (N, C, L)",
        errors=("upsample_linear1d_backward",),
        calls=("upsample_linear1d",),
        modules=("torch.Upsample",),
        applies=interpolates("linear"),
    ),
    Operator(
        "interpolate(mode='bicubic')",
        "backward",
        "raises",
        "mode='bilinear' without antialias, for which torch has a deterministic form, or mode='nearest'",
        errors=("upsample_bicubic2d_backward", "upsample_bicubic2d_aa_backward"),
        calls=("upsample_bicubic2d", "_upsample_bicubic2d_aa"),
        modules=("torch.Upsample",),
        applies=interpolates("bicubic"),
    ),
    Operator(
        "interpolate(mode='bilinear', antialias=True)",
        "backward",
        "raises",
        "antialias=False, for which torch has a deterministic form",
        errors=("upsample_bilinear2d_aa_backward",),
        calls=("_upsample_bilinear2d_aa",),
        source="PyTorch, ATen/native/cuda/UpSampleBilinear2d.cu",
    ),
    Operator(
        "interpolate(mode='bilinear') and interpolate(mode='trilinear')",
        "backward",
        "replaced",
        "nothing, if deterministic=True (or 'warn') is set before the forward, and outside TorchScript; a transposed "
        "convolution or mode='nearest' is faster",
        errors=("upsample_bilinear2d_backward", "upsample_trilinear3d_backward"),
        calls=("upsample_bilinear2d", "upsample_trilinear3d"),
        modules=("torch.Upsample",),
        applies=interpolates("bilinear", "trilinear"),
        source=FUNCTIONAL,
    ),
    Operator(
        "max_pool3d",
        "backward",
        "replaced",
        "nothing, if deterministic=True (or 'warn') is set before the forward, and outside TorchScript; a strided "
        "convolution is faster",
        errors=("max_pool3d_with_indices_backward",),
        calls=("max_pool3d_with_indices",),
        modules=("torch.MaxPool3d",),
        source=FUNCTIONAL,
    ),
    Operator(
        "replication padding",
        "backward",
        "replaced",
        "nothing, if deterministic=True (or 'warn') is set before the forward, and outside TorchScript; padding with "
        "zeros is faster",
        errors=("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward"),
        calls=("replication_pad1d", "replication_pad2d", "replication_pad3d"),
        modules=("torch._ReplicationPadNd", "torch._ConvNd"),
        applies=lambda module: getattr(module, "padding_mode", "replicate") == "replicate",
        source=FUNCTIONAL,
    ),
    Operator(
        "reflection padding",
        "backward",
        "raises",
        "padding with 'replicate', for which torch has a deterministic form, with 'circular' or with zeros",
        errors=("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
        calls=("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
        modules=("torch._ReflectionPadNd", "torch._ConvNd"),
        applies=lambda module: getattr(module, "padding_mode", "reflect") == "reflect",
    ),
    Operator(
        "nll_loss and cross_entropy over pixels or voxels",
        "forward",
        "raises",
        "a one-hot target of the predictions' shape, as floating point (in MONAI: one-hot labels and "
        "to_onehot_y=False); or reduction='none' and .mean() afterwards",
        "with class indices as target, and reduction 'mean' or 'sum'",
        errors=("nll_loss2d_forward",),
        calls=("nll_loss2d_forward",),
        called=lambda arguments, keywords: argument(3, "reduction", 1)(arguments, keywords) != 0,
        modules=("torch.NLLLoss", "torch.CrossEntropyLoss"),
        applies=averages,
        source=f"{DOCUMENTATION}; ATen/native/cuda/NLLLoss2d.cu",
    ),
    Operator(
        "ctc_loss",
        "backward",
        "raises",
        "the loss on the CPU: ctc_loss(log_probs.cpu(), ...)",
        errors=("ctc_loss_backward",),
        calls=("_ctc_loss",),
        modules=("torch.CTCLoss",),
    ),
    Operator(
        "embedding_bag(mode='max')",
        "backward",
        "raises",
        "Embedding and .amax over the bag",
        errors=("embedding_bag_backward_cuda_max",),
        calls=("_embedding_bag",),
        called=lambda arguments, keywords: argument(4, "mode", 0)(arguments, keywords) == 2,
        modules=("torch.EmbeddingBag",),
        applies=lambda module: getattr(module, "mode", None) == "max",
    ),
    Operator(
        "grid_sample",
        "backward",
        "raises",
        "no drop-in: give the warp to the CPU, or take deterministic='warn' and measure how far runs part; without "
        "gradients (augmentation) it is deterministic",
        "with a gradient in the image or the grid",
        errors=("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
        calls=("grid_sampler_2d", "grid_sampler_3d"),
        modules=("monai.Warp", "monai.AffineTransform"),
    ),
    Operator(
        "histc",
        "forward",
        "raises",
        "torch.bucketize and torch.bincount without weights, or the CPU",
        "of floating-point numbers",
        errors=("_histc_cuda",),
        calls=("histc",),
        called=floating,
        modules=("monai.VectorQuantizer",),
    ),
    Operator(
        "bincount",
        "forward",
        "raises",
        "zeros.index_add(0, indices, weights), which is deterministic under deterministic=True",
        "with weights",
        errors=("_bincount_cuda",),
        calls=("bincount",),
        called=lambda arguments, keywords: argument(1, "weights")(arguments, keywords) is not None,
    ),
    Operator(
        "median",
        "forward",
        "raises",
        "x.sort(dim) and the element in the middle; or median() without a dimension",
        "with indices, which median(dim) returns",
        errors=("median CUDA with indices output",),
        calls=("median.dim", "nanmedian.dim"),
        modules=("monai.MedianFilter",),
        applies=depends,
    ),
    Operator(
        "cumsum",
        "forward",
        "raises",
        "a product with a triangular matrix of ones; whole numbers; or the CPU",
        "of floating-point or complex numbers",
        errors=("cumsum_cuda",),
        calls=("cumsum",),
        called=floating,
        modules=("monai.PositionEmbeddingRandom",),
    ),
    Operator(
        "put_",
        "forward",
        "raises",
        "index_put_, which is deterministic under deterministic=True",
        "with accumulate=False",
        devices=ANY,
        errors=("put_",),
        calls=("put_", "put"),
        called=lambda arguments, keywords: not argument(3, "accumulate", False)(arguments, keywords),
    ),
    Operator(
        "put_",
        "forward",
        "raises",
        "index_put_(accumulate=True), which is deterministic under deterministic=True",
        "with accumulate=True",
        calls=("put_", "put"),
        called=lambda arguments, keywords: bool(argument(3, "accumulate", False)(arguments, keywords)),
    ),
    Operator(
        "scatter_reduce(reduce='prod')",
        "forward",
        "raises",
        "the sum of logarithms with scatter_add_, or the CPU",
        errors=("scatter_reduce", "scatter_reduce_cuda_prod"),
        calls=("scatter_reduce", "scatter_reduce_"),
        called=lambda arguments, keywords: argument(4, "reduce")(arguments, keywords) == "prod",
    ),
    Operator(
        "scaled_dot_product_attention",
        "backward",
        "setting",
        "deterministic=True; with 'warn', sdpa_kernel([SDPBackend.MATH]) of torch.nn.attention",
        "with deterministic='warn' or False, in its memory-efficient form",
        errors=("mem_efficient_attention_backward",),
        calls=(
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
        ),
        modules=("torch.MultiheadAttention",),
        source="pytorch/pytorch, pull requests 91979 and 101847",
    ),
    Operator(
        "RNN, LSTM and GRU of cuDNN",
        "forward",
        "setting",
        "deterministic=True, which sets CUBLAS_WORKSPACE_CONFIG",
        "without CUBLAS_WORKSPACE_CONFIG, on some versions of cuDNN and CUDA",
        modules=("torch.RNNBase",),
        source="PyTorch 2.13, torch.nn.LSTM",
    ),
)

BY_CALL: Final[dict[str, list[Operator]]] = {
    name: [row for row in OPERATORS if name in row.calls] for name in chain.from_iterable(r.calls for r in OPERATORS)
}
BY_MODULE: Final[dict[str, list[Operator]]] = {
    name: [row for row in OPERATORS if name in row.modules]
    for name in chain.from_iterable(r.modules for r in OPERATORS)
}


def of_module(module: nn.Module) -> list[tuple[Operator, bool | None]]:
    """Return the operators that a module of this class uses, and whether it does: ``None`` if its inputs decide.

    Example:
        >>> [(row.name, sure) for row, sure in of_module(nn.AvgPool3d(2))]
        [('avg_pool3d', True)]
        >>> of_module(nn.AdaptiveAvgPool3d(1))
        []
    """
    rows: list[tuple[Operator, bool | None]] = []
    for cls in type(module).__mro__:
        for row in BY_MODULE.get(f"{cls.__module__.partition('.')[0]}.{cls.__name__}", []):
            sure = row.applies(module)
            if sure is not False:
                rows.append((row, sure))
    return rows


def of_call(name: str, overload: str, arguments: Arguments, keywords: Keywords) -> list[Operator]:
    """Return the operators that a call of ``torch.ops.aten.<name>.<overload>`` is.

    Example:
        >>> import torch
        >>> [row.name for row in of_call("cumsum", "default", [torch.ones(3), 0], {})]
        ['cumsum']
        >>> of_call("cumsum", "default", [torch.arange(3), 0], {})
        []
    """
    rows = [*BY_CALL.get(name, []), *BY_CALL.get(f"{name}.{overload}", [])]
    return [row for row in rows if row.called(arguments, keywords)]


def of_error(name: str) -> Operator | None:
    """Return the operator that torch's error names.

    Example:
        >>> of_error("avg_pool3d_backward_cuda").name
        'avg_pool3d'
        >>> of_error("unheard_of_cuda") is None
        True
    """
    return next((row for row in OPERATORS if name.startswith(row.errors)), None) if name else None
