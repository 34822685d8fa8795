"""What the state of a training is made of, besides tensors in a module: generators, optimizers, schedule, a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from repro_callbacks import generators
from repro_callbacks.fingerprint.digest import digest_tree, hash_bytes

GENERATOR_DIGITS: Final = 12
"""Hexadecimal digits of the digest of one generator's state."""


def generator_digests() -> dict[str, str]:
    """Return a digest of the state of each process-wide generator; nothing is drawn."""
    states = generators.snapshot()
    version, words, gauss = states.python
    numpy = states.numpy
    found = {
        "python": hash_bytes(np.array(words, dtype="<u4").tobytes(), repr((version, gauss)).encode()),
        "numpy": digest_tree(
            {"generator": numpy["bit_generator"], "state": numpy["state"], "gauss": numpy.get("gauss")}
        ),
        "torch": hash_bytes(states.torch.numpy().tobytes()),
    }
    for name, values in states.accelerators.items():
        found |= {f"{name}:{number}": hash_bytes(value.cpu().numpy().tobytes()) for number, value in enumerate(values)}
    return {name: value[:GENERATOR_DIGITS] for name, value in found.items()}


def schedule(optimizers: Sequence[Any], schedulers: Sequence[Any]) -> dict[str, Any]:
    """Return what an optimizer is told: its settings, the learning rate among them, and the state of the schedulers."""
    groups = [
        [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        for optimizer in optimizers
    ]
    return {"groups": groups, "schedulers": [scheduler.state_dict() for scheduler in schedulers]}


def optimizer_states(optimizers: Sequence[Any]) -> list[list[Any]]:
    """Return what optimizers remember of each parameter, in the order of their parameters."""
    return [
        [dict(optimizer.state.get(parameter, {})) for group in optimizer.param_groups for parameter in group["params"]]
        for optimizer in optimizers
    ]


def on_accelerator(module: nn.Module) -> bool:
    """Say whether a module computes elsewhere than on the CPU, so that its digests are not there at once."""
    return any(parameter.device.type not in ("cpu", "meta") for parameter in module.parameters())


def describe(tensor: torch.Tensor) -> str:
    """Return dtype and shape: ``float32[2, 3]``."""
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        return "uninitialized"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


class HostValue:
    """The value of a loss for people, copied without waiting; None where it isn't one number."""

    def __init__(self, value: Any) -> None:
        self._value: Any = None
        self._event: torch.cuda.Event | None = None
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            self._value = value
            if value.device.type == "cuda":
                self._value = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
                self._value.copy_(value, non_blocking=True)
                self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._event.record()
        elif isinstance(value, int | float):
            self._value = torch.tensor(float(value), dtype=torch.float64)

    def result(self) -> float | str | None:
        """Return the value, waiting for the device if need be; as a string where JSON has no number for it."""
        if self._event is not None:
            self._event.synchronize()
        value = None if self._value is None else float(self._value)
        return value if value is None or math.isfinite(value) else str(value)
