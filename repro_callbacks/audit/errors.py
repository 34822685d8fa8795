"""What torch's error about determinism means: which module it comes from, and what to use instead."""

from __future__ import annotations

import re
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from torch import nn

from repro_callbacks.audit.model import named
from repro_callbacks.audit.operator import Operator
from repro_callbacks.audit.operators import of_error, of_module
from repro_callbacks.flags import CUBLAS_ACCEPTED, CUBLAS_VARIABLE

_NAME: Final = re.compile(r"^\s*(.+?) does not have a deterministic implementation", re.MULTILINE)
_TORCH: Final = str(Path(torch.__file__).parent)
_MANY: Final = 8


def explain(error: RuntimeError, model: nn.Module) -> str | None:
    """Say which module an error about determinism comes from and what to use instead; ``None`` for another error.

    An error of a forward comes from the module whose frame is the innermost in the traceback. That of a backward has no
    such frame: the modules of the model that use the operator are named.

    Args:
        error: What torch raised, with its traceback.
        model: The model that was trained.

    Example:
        >>> model = nn.Sequential(nn.AvgPool3d(2))
        >>> text = explain(RuntimeError("avg_pool3d_backward_cuda does not have a deterministic implementation"), model)
        >>> print(text.splitlines()[0])
        avg_pool3d_backward_cuda is the backward of avg_pool3d, which is used by 0 (AvgPool3d).
    """
    message = str(error)
    found = _NAME.search(message)
    if found is None:
        return _cublas(error, model) if CUBLAS_VARIABLE in message else None
    name = found[1]
    row = of_error(name)
    if row is None:
        lines = [f"{name} is not in the table of repro_callbacks.audit.{_raised(error, model)}"]
    elif row.direction == "forward":
        lines = [f"{name} is the forward of {row.name}.{_raised(error, model)}"]
    else:
        lines = [f"{name} is the backward of {row.name}, {_users(row, model)}."]
    if row is not None:
        lines.append(f"Use instead: {row.instead}.")
    lines.append("To go on all the same, with results that may differ from run to run: deterministic='warn'.")
    return "\n".join(lines)


def _users(row: Operator, model: nn.Module) -> str:
    users = [
        named(path, module)
        for path, module in model.named_modules()
        if any(row is used for used, _ in of_module(module))
    ]
    if not users:
        return (
            "which no module of the model is known to use: it is called as a function, and "
            "repro_callbacks.audit.audit_model(model, example_inputs) names the module that calls it"
        )
    more = f" and {len(users) - _MANY} more" if len(users) > _MANY else ""
    return f"which is used by {', '.join(users[:_MANY])}{more}"


def _raised(error: BaseException, model: nn.Module) -> str:
    """Name the innermost module in the traceback, and the innermost line that is not torch's."""
    frames = _frames(error)
    paths = {id(module): path for path, module in model.named_modules()}
    owners = [frame.f_locals.get("self") for frame, _ in frames]
    module = next((owner for owner in reversed(owners) if isinstance(owner, nn.Module)), None)
    line = next(
        (
            f", at line {number} of {frame.f_code.co_filename}"
            for frame, number in reversed(frames)
            if not frame.f_code.co_filename.startswith(_TORCH)
        ),
        "",
    )
    if module is None:
        return f" It was raised outside of any module{line}." if line else ""
    where = named(paths[id(module)], module) if id(module) in paths else f"a {type(module).__name__} outside the model"
    return f" It was raised in {where}{line}."


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    frames = []
    step = error.__traceback__
    while step is not None:
        frames.append((step.tb_frame, step.tb_lineno))
        step = step.tb_next
    return frames


def _cublas(error: RuntimeError, model: nn.Module) -> str:
    values = " or ".join(f"{CUBLAS_VARIABLE}={value}" for value in CUBLAS_ACCEPTED)
    return (
        f"cuBLAS is repeatable only with {values} in the environment before CUDA starts."
        f"{_raised(error, model)}\nStart the program with it, or call set_determinism(seed, "
        "use_deterministic_algorithms=True) before anything uses CUDA."
    )
