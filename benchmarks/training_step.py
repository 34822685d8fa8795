"""The cost of ``Determinism`` in a training step: ``python -m benchmarks.training_step``.

Beside bare Lightning in one process: a model of almost no work, and a small 3D UNet.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from monai.networks.nets import UNet
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import machine, paired, row
from repro_callbacks import Determinism


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Segmenter(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(3, 1, 3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)


class Clock(L.Callback):
    """Times the steps alone: from the first batch to the last."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self.begin = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.begin


def train(make: Any, data: torch.Tensor, determinism: bool) -> float:
    """Train one epoch and return the seconds from its first step to its last."""
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([Determinism(0, deterministic=False, log=False)] if determinism else []), clock],
        default_root_dir=tempfile.gettempdir(),
    )
    torch.manual_seed(0)
    trainer.fit(make(), DataLoader(TensorDataset(data), batch_size=1, shuffle=True))
    return clock.seconds


def measure(name: str, make: Any, data: torch.Tensor, rounds: int, bar: str) -> None:
    """Print what a step costs with the callback and without: medians, and those of each pair's difference and ratio."""
    times: dict[bool, list[float]] = {True: [], False: []}
    paired(
        lambda: times[True].append(train(make, data, True) / len(data)),
        lambda: times[False].append(train(make, data, False) / len(data)),
        rounds,
    )
    ours, plain = times[True][1:], times[False][1:]  # the first is a warm-up
    more = statistics.median(one - other for one, other in zip(ours, plain, strict=True))
    ratio = statistics.median(one / other for one, other in zip(ours, plain, strict=True))
    verdict = f"{more * 1e6:+.0f} us, ratio {ratio:.4f} (bar: {bar})"
    row(name, f"{statistics.median(ours) * 1e6:.0f} us", f"{statistics.median(plain) * 1e6:.0f} us", verdict)


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)  # what Lightning says at the start and the end of each training
    print(f"training step: {machine()}")
    row("", "Determinism", "bare", "")
    measure("a model of almost no work", Tiny, torch.rand(500, 4), 31, "100 us")
    measure("a small 3D UNet, 48^3", Segmenter, torch.rand(30, 1, 48, 48, 48), 7, "1.01")


if __name__ == "__main__":
    main()
