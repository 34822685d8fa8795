"""What in a model or pipeline can't be deterministic, why, and what to use instead."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from torch import nn

from repro_callbacks.audit.errors import explain
from repro_callbacks.audit.findings import Finding, Report
from repro_callbacks.audit.model import audit_model
from repro_callbacks.audit.pipeline import audit_pipeline

__all__ = ["Finding", "Report", "audit", "audit_model", "audit_pipeline", "explain"]


def audit(x: Any, example_inputs: Any = None, *, device: str = "cuda", samples: int = 2) -> Report:
    """Look for what can't be deterministic in a model, a dataset, a loader or a transform.

    Args:
        x: A module (losses and LightningModules too), a DataLoader, a dataset, or a transform.
        example_inputs: For a model: what to call it with, so that the operators that it calls are seen (see
            :func:`audit_model`).
        device: For a model: the kind of device that is asked about, ``"cuda"`` or ``"cpu"``; it need not be there.
        samples: For a dataset or loader: how many samples to draw twice (see :func:`audit_pipeline`).

    Returns:
        The findings, worst first; ``bool(report)`` is False if something can't be deterministic.

    Raises:
        TypeError: If it is none of these.
        ValueError: If ``device`` or ``samples`` is not allowed.

    Example:
        >>> report = audit(nn.Sequential(nn.Conv3d(1, 8, 3), nn.AvgPool3d(2)))
        >>> bool(report)
        False
        >>> print(report)  # doctest: +ELLIPSIS
        error: 1 (AvgPool3d): the backward of avg_pool3d has no deterministic form on CUDA: ...
    """
    if isinstance(x, nn.Module):
        return Report(audit_model(x, example_inputs, device))
    if isinstance(x, type) or not (hasattr(x, "__getitem__") or hasattr(x, "__iter__") or callable(x)):
        raise TypeError(f"audit needs a module, a DataLoader, a dataset or a transform, not {x!r}")
    if example_inputs is not None:
        raise TypeError(f"example_inputs are for a model, and {type(x).__name__} is none")
    return Report(audit_pipeline(x, samples))


class _CallableRoom(ModuleType):
    """This module, which ``from repro_callbacks import audit`` gives, called as the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
