"""The cost of ``Fingerprint`` in a training step of a small 3D UNet: ``python -m benchmarks.fingerprint_step``.

One fit, in which the steps take turns, in another order each round: plain, with the fingerprint in several settings,
with SHA-256 of the batch, the gradients and the parameters, and with torch's ``DebugMode`` and its tensor hashes. Each
step is timed from the start of its batch to its end; medians of the steps, and of the ratios to the plain step of the
same round. The bar: at most 1.02 with batch, loss and gradients at each step and the parameters at every 50th, which is
the ratio without the parameters plus a 50th of what they add.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import random
import statistics
import tempfile
import time
import warnings
from typing import Any

import lightning.pytorch as L
import torch
from monai.networks.nets import UNet
from torch.utils._debug_mode import DebugMode
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import machine
from repro_callbacks import Fingerprint

BAR = 1.02
EACH_STEP = {"parameters": 0, "optimizer": 0}
WITH_PARAMETERS = {"parameters": 1, "optimizer": 0}
ALL = {"parameters": 1, "optimizer": 1}


class Segmenter(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(3, 1, 1, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        image, label = batch
        return torch.nn.functional.binary_cross_entropy_with_logits(self.net(image), label)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-4)


class Hashes(L.Callback):
    """SHA-256 of everything: what a careful person writes by hand."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._hash(batch)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._hash([own.grad for own in pl_module.parameters() if own.grad is not None])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._hash(list(pl_module.parameters()))

    def _hash(self, tensors: Any) -> None:
        for tensor in tensors:
            hashlib.sha256(tensor.detach().cpu().contiguous().numpy()).hexdigest()


class Debug(L.Callback):
    """torch's DebugMode, which hashes the inputs and outputs of every operator."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.stack = contextlib.ExitStack()
        self.mode = self.stack.enter_context(DebugMode())
        self.stack.enter_context(DebugMode.log_tensor_hashes(hash_inputs=True))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.stack.close()


class InTurn(L.Callback):
    """Gives each step to one of several callbacks, and times it."""

    def __init__(self, ways: dict[str, L.Callback | None]) -> None:
        self.ways = ways
        self.seconds: dict[str, list[float]] = {name: [] for name in ways}

    def _now(self) -> Any:
        return self.ways[self.name]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        round_, turn = divmod(batch_idx, len(self.ways))
        # Another order in each round, or whoever comes after DebugMode's step would always find its memory in disorder.
        self.name = random.Random(round_).sample(list(self.ways), len(self.ways))[turn]
        for name, way in self.ways.items():
            if isinstance(way, Fingerprint) and way._recorder is not None and name != self.name:
                way._recorder._line = None  # so that the look at training_step sees no step
        self.begin = time.perf_counter()
        if self._now() is not None:
            self._now().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        if self._now() is not None:
            self._now().on_before_backward(trainer, pl_module, loss)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._now() is not None:
            self._now().on_after_backward(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._now() is not None:
            self._now().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if next(pl_module.parameters()).device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[self.name].append(time.perf_counter() - self.begin)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for way in self.ways.values():
            if way is not None:
                way.on_train_start(trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for way in self.ways.values():
            if way is not None:
                way.teardown(trainer, pl_module, stage)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=128, help="of the volumes; the step at 128 takes about a second")
    arguments, _ = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, L.Callback | None] = {
            "plain": None,
            "batch, loss, gradients": Fingerprint(f"{folder}/a", every=EACH_STEP),
            "... and parameters": Fingerprint(f"{folder}/b", every=WITH_PARAMETERS),
            "... and optimizer": Fingerprint(f"{folder}/c", every=ALL),
            "SHA-256 of everything": Hashes(),
            "DebugMode with hashes": Debug(),
        }
        turns = InTurn(ways)
        size = arguments.size
        count = len(ways) * (arguments.rounds + 1) * 2
        images = torch.rand(count, 1, size, size, size)
        trainer = L.Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[turns],
            default_root_dir=folder,
        )
        trainer.fit(Segmenter(), DataLoader(TensorDataset(images, (images > 0.5).float()), 2))
    seconds = {name: values[1:] for name, values in turns.seconds.items()}
    print(f"fingerprint in a step, UNet at {size}^3: {machine()}")
    print(f"{'':<28}{'step':>12}{'ratio':>10}")
    ratios = {}
    for name, values in seconds.items():
        pairs = zip(values, seconds["plain"], strict=False)
        ratios[name] = statistics.median(own / plain for own, plain in pairs)
        print(f"{name:<28}{statistics.median(values) * 1e3:>9.1f} ms{ratios[name]:>10.3f}")
    base, full = ratios["batch, loss, gradients"], ratios["... and parameters"]
    amortised = base + max(0.0, full - base) / 50
    print(f"parameters at every 50th step: {amortised:.4f} (bar: {BAR})")


if __name__ == "__main__":
    main()
