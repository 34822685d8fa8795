"""A training of a fraction of a second, on data that draws from what a worker, a dataset and a transform hold."""

from __future__ import annotations

import importlib
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandGaussianNoised, RandScaleIntensityd
from torch.utils.data import DataLoader, Dataset

from repro_callbacks.fingerprint.digest import digest_tree

SAMPLES, BATCH, STEPS = 8, 2, 4


class Noise(Dataset[Any]):
    """Vectors with noise of MONAI's transforms, of a generator of its own and of the process-wide ones."""

    def __init__(self, size: int = SAMPLES) -> None:
        self.size = size
        self.rng = np.random.default_rng()
        self.transform = Compose(
            [RandScaleIntensityd("x", factors=0.5, prob=0.5), RandGaussianNoised("x", prob=0.9, std=0.1)]
        )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        moved = self.transform({"x": torch.full((1, 4), index / self.size)})["x"].as_subclass(torch.Tensor)
        return moved[0] + 0.1 * torch.rand(4) + float(self.rng.random() + random.random() + np.random.rand())


def loader(size: int = SAMPLES, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(Noise(size), **{"batch_size": BATCH, "shuffle": True, **kwargs})


def namespace(name: str = "lightning.pytorch") -> ModuleType:
    return importlib.import_module(name)


def net(name: str = "lightning.pytorch", *, late: bool = False, **methods: Any) -> Any:
    """Make a module that notes the batches of every stage; ``late``: its layers are made in the run."""

    class Net(namespace(name).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = None if late else make_layers()
            self.seen: list[tuple[str, int, str]] = []

        def configure_model(self) -> None:
            if self.layers is None:
                self.layers = make_layers()

        def note(self, stage: str, batch: Any) -> None:
            self.seen.append((stage, self.current_epoch, digest_tree(batch)))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.note("train", batch)
            return self.layers(next(iter(batch.values())) if isinstance(batch, dict) else batch).square().mean()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.note(f"validate {dataloader_idx}", batch)
            self.log("val_loss", self.layers(batch).square().mean() * (1 + torch.rand(())))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.note("test", batch)
            self.log("test_loss", self.layers(batch).square().mean())

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("predict", batch)
            return self.layers(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    for method, function in methods.items():
        setattr(Net, method, function)
    return Net()


def make_layers() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))


def trainer(*callbacks: Any, name: str = "lightning.pytorch", **kwargs: Any) -> Any:
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults = {"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return namespace(name).Trainer(callbacks=list(callbacks), **{**defaults, **silent, **kwargs})


def probe(name: str = "lightning.pytorch", **hooks: Any) -> Any:
    """Make a callback of functions of a trainer and a module."""

    def hook(function: Any) -> Any:
        return lambda self, trainer, module, *args, **kwargs: function(trainer, module)

    return type("Probe", (namespace(name).Callback,), {key: hook(value) for key, value in hooks.items()})()


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collect what is warned of in the block, and let none of it through."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found.extend(str(warning.message) for warning in caught)


@contextmanager
def interruptible() -> Iterator[None]:
    """Put the handler of Ctrl-C back, which Lightning ignores once it has seen one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
