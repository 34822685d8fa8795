"""One small training that draws from every kind of generator there is, and what its run is compared by."""

from __future__ import annotations

import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from monai.transforms import Compose, OneOf, RandFlipd, RandGaussianNoised, RandScaleIntensityd, RandZoomd
from torch import nn
from torch.utils.data import DataLoader, Dataset

from repro_callbacks import Determinism, set_determinism
from repro_callbacks.fingerprint.digest import digest_state, digest_tree

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
SEED = 3407
SAMPLES, BATCH = 22, 4
STEPS_PER_EPOCH = 6


class Images(Dataset[Any]):
    """Small images, transformed by MONAI's transforms, the process-wide generators and one of its own."""

    def __init__(self, size: int = SAMPLES) -> None:
        self.images = torch.linspace(0, 1, size * 64).reshape(size, 1, 8, 8)
        self.rng = np.random.default_rng()
        self.transform = Compose(
            [
                RandFlipd("image", prob=0.5, spatial_axis=0),
                OneOf([RandGaussianNoised("image", prob=1.0), RandScaleIntensityd("image", factors=0.5, prob=1.0)]),
                RandZoomd("image", prob=0.3, min_zoom=0.8, max_zoom=1.2),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.as_tensor(self.transform({"image": self.images[index].clone()})["image"])
        drawn = [self.rng.random(), random.random(), np.random.rand(), torch.rand(1).item()]
        return {"image": image.as_subclass(torch.Tensor), "drawn": torch.tensor(drawn), "index": index}


class Net(L.LightningModule):
    """A net with dropout, noise in the step and on the device, and a record of the batches it has seen."""

    def __init__(self, optimizer: Callable[[Net], Any] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))
        self.make_optimizer = optimizer
        self.seen: list[tuple[int, int, str]] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if "image" in batch and self.trainer.training:
            batch = {**batch, "image": batch["image"] + 0.01 * torch.rand_like(batch["image"])}
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.trainer.current_epoch, batch_idx, digest_tree(batch)))
        return self.loss(batch) * (1 + 0.1 * random.random() + 0.1 * np.random.rand())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def loss(self, batch: Any) -> torch.Tensor:
        return (self.net(batch["image"]).squeeze(1) - batch["drawn"].float().mean(1)).square().mean()

    def configure_optimizers(self) -> Any:
        if self.make_optimizer is not None:
            return self.make_optimizer(self)
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=max(2, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Draws(L.Callback):
    """Draws from every process-wide generator wherever a callback can."""


def _draw(*_: Any, **__: Any) -> None:
    random.random(), np.random.rand(), torch.rand(1)


_HOOKS = [
    *("setup", "on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_epoch_start"),
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end", "on_validation_start"),
    *("on_validation_batch_start", "on_validation_end", "on_save_checkpoint"),
]
for _hook in _HOOKS:
    setattr(Draws, _hook, _draw)


@dataclass
class Outcome:
    """What two runs are compared by: the batches in the order seen, the weights, optimizer and scheduler states."""

    seen: list[tuple[int, int, str]]
    state: str
    weights: str
    checkpoints: list[Path] = field(default_factory=list)


def optimizer_states(trainer: L.Trainer) -> Any:
    return [
        [optimizer.state_dict()["state"], [group["lr"] for group in optimizer.param_groups]]
        for optimizer in trainer.optimizers
    ]


def run(
    *,
    loader: Callable[..., Any] | None = None,
    loader_kwargs: dict[str, Any] | None = None,
    validation: bool = False,
    val_kwargs: dict[str, Any] | None = None,
    module: Callable[[], Any] = Net,
    datamodule: Any = None,
    callbacks: Sequence[Any] = (),
    checkpoint: ModelCheckpoint | None = None,
    ckpt_path: Any = None,
    determinism: Any = True,
    max_epochs: int | None = 3,
    allow_stop: bool = False,
    **trainer_kwargs: Any,
) -> Outcome:
    """Run the training and return what came out."""
    set_determinism(SEED)
    model = module()
    if determinism is True:
        determinism = Determinism(SEED, log=False)
    extra = [] if determinism in (None, False) else [determinism]
    kwargs: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, **(loader_kwargs or {})}
    train = loader(**(loader_kwargs or {})) if loader else DataLoader(Images(), **kwargs)
    val = DataLoader(Images(8), batch_size=4, **(val_kwargs or {})) if validation else None
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=checkpoint is not None or any(isinstance(c, Checkpoint) for c in callbacks),
        callbacks=[*callbacks, *extra, *([checkpoint] if checkpoint else [])],
        default_root_dir=tempfile.mkdtemp(),
        max_epochs=max_epochs,
        **trainer_kwargs,
    )
    data = (
        {"datamodule": datamodule} if datamodule is not None else {"train_dataloaders": train, "val_dataloaders": val}
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
        try:
            trainer.fit(model, **data, ckpt_path=ckpt_path)
        except Stop:
            if not allow_stop:
                raise
    schedulers = [
        {k: v for k, v in c.scheduler.state_dict().items() if k != "_last_lr"} for c in trainer.lr_scheduler_configs
    ]
    found = sorted(Path(checkpoint.dirpath).rglob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns) if checkpoint else []
    return Outcome(
        model.seen,
        digest_tree([digest_state(model), _plain(optimizer_states(trainer)), _plain(schedulers)]),
        digest_state(model),
        found,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if not callable(v)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


class Stop(Exception):
    """Ends a training in the middle."""


class StopAt(L.Callback):
    """Raises in the middle of a training."""

    def __init__(self, step: int, hook: str = "on_train_batch_start") -> None:
        self.step = step
        setattr(self, hook, self._stop)

    def _stop(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Stop


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")


def assert_resumes(reference: Outcome, resumed: Outcome) -> None:
    """The resumed run has seen the tail of what the reference saw, and ends in the same state."""
    tail = reference.seen[len(reference.seen) - len(resumed.seen) :]
    assert resumed.seen == tail
    assert resumed.state == reference.state


def same(a: Outcome, b: Outcome) -> bool:
    return a.seen == b.seen and a.state == b.state
