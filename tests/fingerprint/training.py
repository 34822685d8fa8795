"""A small training that runs in a tenth of a second, and can be disturbed at any place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from repro_callbacks import Fingerprint

EPOCHS = 3
BATCHES = 6
BATCH = 4


class Data(Dataset):
    """Samples with a random transform on NumPy's generator: noise, then scale."""

    def __init__(self, count: int = BATCH * BATCHES, augment: bool = True) -> None:
        made = np.random.default_rng(0)
        self.images = made.standard_normal((count, 1, 6, 6)).astype(np.float32)
        self.labels = made.standard_normal((count, 1)).astype(np.float32)
        self.augment = augment
        self.epoch = 0
        self.change: Callable[[Any, int, int], Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def transform(self, image: np.ndarray) -> np.ndarray:
        return (image + 0.1 * np.random.standard_normal(image.shape)) * np.random.uniform(0.9, 1.1)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.transform(self.images[index]) if self.augment else self.images[index]
        sample = {
            "image": torch.from_numpy(np.asarray(image, np.float32)),
            "label": torch.from_numpy(self.labels[index]),
        }
        return sample if self.change is None else self.change(sample, self.epoch, index)


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(4 * 36, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.stem(image)))).flatten(1))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((self(batch["image"]) - batch["label"]) ** 2).mean()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)}


@dataclass
class Training:
    """What makes a training; a fault replaces some of it. The sampler and generator are made anew for each run."""

    seed: int | None = 7
    model: Callable[[], L.LightningModule] = Model
    data: Callable[[], Data] = Data
    validation: Callable[[], Data] | None = lambda: Data(BATCH * 2, augment=False)
    loader: dict[str, Any] = field(default_factory=dict)
    validation_loader: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    before: Sequence[L.Callback] = ()
    after: Sequence[L.Callback] = ()
    every: dict[str, int] = field(default_factory=dict)
    ckpt: Path | None = None
    prepare: Callable[[L.LightningModule], None] | None = None

    def run(self, path: Path, **changes: Any) -> L.Trainer:
        """Train, with the fingerprint in a folder."""
        self = replace(self, **changes)
        if self.seed is not None:
            L.seed_everything(self.seed, verbose=False)
        model = self.model()
        if self.prepare is not None:
            self.prepare(model)
        data = self.data()
        fingerprint = Fingerprint(path, every=self.every)
        settings = {
            "max_epochs": EPOCHS,
            "logger": False,
            "enable_checkpointing": False,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        } | self.trainer
        callbacks = [SetEpoch(data), *self.before, fingerprint, *self.after]
        trainer = L.Trainer(callbacks=callbacks, **settings)
        loader = {name: value() if name in ("sampler", "generator") else value for name, value in self.loader.items()}
        loaders = [DataLoader(data, **{"batch_size": BATCH, "shuffle": "sampler" not in loader} | loader)]
        if self.validation is not None:
            loaders.append(DataLoader(self.validation(), BATCH, **self.validation_loader))
        trainer.fit(model, *loaders, ckpt_path=self.ckpt, weights_only=False if self.ckpt else None)
        return trainer


class SetEpoch(L.Callback):
    def __init__(self, data: Data) -> None:
        self.data = data

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.data.epoch = trainer.current_epoch


class At(L.Callback):
    """Does something to the module or the trainer in a hook, at one step or at all of them."""

    def __init__(self, hook: str, do: Callable[..., Any], epoch: int | None = None, batch: int | None = None) -> None:
        def act(trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
            here = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
            if epoch is None or here == (epoch, batch):
                do(trainer, pl_module)

        setattr(self, hook, act)


def flip_bit(tensor: torch.Tensor, bit: int = 0, place: int = 0) -> None:
    """Flip one bit of a float32 tensor in place."""
    with torch.no_grad():
        tensor.view(-1).view(torch.int32)[place] ^= 1 << bit


def draw(which: str) -> Callable[..., None]:
    return {
        "torch": lambda *_: torch.rand(1),
        "numpy": lambda *_: np.random.rand(),
        "python": lambda *_: random.random(),
    }[which]
