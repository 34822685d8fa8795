"""A training that each of several processes runs: the jobs of a JSON file, one after the other.

    python train.py jobs.json folder

Each rank writes what it has seen in a job to ``folder/JOB-RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, WeightedRandomSampler

from repro_callbacks import Determinism, set_determinism
from repro_callbacks.callbacks.seeding import _DRAWN
from repro_callbacks.fingerprint.digest import digest_state, digest_tree
from tests.callbacks import small

SEED, SAMPLES, GLOBAL_BATCH = 3407, 24, 8


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = small.make_layers()
        self.seen: list[tuple[int, int, list[str], str]] = []
        self.file: Path

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        step = (self.current_epoch, batch_idx, [digest_tree(sample) for sample in batch], digest_tree(torch.rand(4)))
        self.seen.append(step)
        return self.layers(batch).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layers(batch).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=max(2, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_end(self) -> None:
        (callback,) = [one for one in self.trainer.callbacks if isinstance(one, Determinism)] or [None]
        state = [
            {str(k): v for k, v in optimizer.state_dict()["state"].items()} for optimizer in self.trainer.optimizers
        ]
        result = {
            "seen": self.seen,
            "weights": digest_state(self),
            "state": digest_tree(state),
            "seed": None if callback is None else callback.seed,
            "setup": self.trainer.datamodule.drawn,
            "world": self.trainer.world_size,
        }
        self.file.with_name(f"{self.file.name}-{self.global_rank}.json").write_text(json.dumps(result))


class Data(L.LightningDataModule):
    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__()
        self.job = job

    def setup(self, stage: str) -> None:
        self.drawn = float(torch.rand(()))

    def train_dataloader(self) -> Any:
        kwargs: dict[str, Any] = {"shuffle": True}
        if self.job.get("weighted"):
            kwargs = {"sampler": WeightedRandomSampler([1.0 + i % 3 for i in range(SAMPLES)], SAMPLES)}
        workers = self.job.get("workers", 0)
        return DataLoader(small.Noise(SAMPLES), GLOBAL_BATCH // self.job["world"], num_workers=workers, **kwargs)

    def val_dataloader(self) -> Any:
        return small.loader(8, shuffle=False)


def run(job: dict[str, Any], folder: Path) -> None:
    if job.get("drawn"):
        set_determinism(None)
    elif job.get("ours", True):
        set_determinism(SEED)
    else:
        L.seed_everything(SEED, workers=True)
    if job.get("drawn") == "each rank alone":
        os.environ.pop(_DRAWN, None)
    module = Net()
    module.file = folder / job["name"]
    callbacks: list[Any] = []
    if job.get("ours", True):
        callbacks.append(Determinism(None if job.get("drawn") else SEED, log=False))
    if job.get("save"):
        callbacks += [
            ModelCheckpoint(folder / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(folder / "epochs", filename="{epoch}", every_n_epochs=1, save_top_k=-1),
        ]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=job["world"],
        strategy=job["strategy"],
        max_epochs=2,
        callbacks=callbacks,
        enable_checkpointing=bool(job.get("save")),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    resume = job.get("resume")
    trainer.fit(module, datamodule=Data(job), ckpt_path=None if resume is None else folder / resume)


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
