"""Every loader of a trainer is keyed, and what is made early in a run is seeded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, get_worker_info, random_split

from repro_callbacks import Determinism, set_determinism
from repro_callbacks.fingerprint.digest import digest_state
from repro_callbacks.loading import KeyedLoader
from tests.callbacks import small


class Data(LightningDataModule):
    """Two train loaders, two validation loaders, all made anew in each epoch, a test loader, a loader to predict on."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers

    def loader(self, size: int = small.SAMPLES, shuffle: bool = False) -> DataLoader[Any]:
        return small.loader(size, shuffle=shuffle, num_workers=self.workers)

    def train_dataloader(self) -> Any:
        part, _ = random_split(small.Noise(10), [8, 2])
        return {
            "a": self.loader(shuffle=True),
            "b": DataLoader(part, 2, shuffle=True, num_workers=self.workers),
        }

    def val_dataloader(self) -> Any:
        return [self.loader(4), self.loader(4)]

    def test_dataloader(self) -> Any:
        return self.loader(4)

    predict_dataloader = test_dataloader


def everything(workers: int, *, ours: bool = True) -> list[tuple[str, int, str]]:
    """Fit, validate, test and predict, and return every batch that was seen."""
    set_determinism(0)
    module = small.net()
    callbacks = [Determinism(3407, log=False)] if ours else []
    trainer = small.trainer(*callbacks, reload_dataloaders_every_n_epochs=1, num_sanity_val_steps=1)
    data = Data(workers)
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    return module.seen


def of(stage: str, seen: list[tuple[str, int, str]]) -> list[str]:
    return [digest for name, _, digest in seen if name == stage]


def test_all_loaders_are_keyed() -> None:
    seen = everything(0)
    assert seen == everything(1)
    assert {stage for stage, _, _ in seen} == {"train", "validate 0", "validate 1", "test", "predict"}
    # The same data, each time with draws of its own: by epoch, by loader, by stage.
    train = of("train", seen)
    assert len(train) == 8 == len(set(train))
    first, second = of("validate 0", seen), of("validate 1", seen)
    assert not set(first) & set(second)
    assert not set(of("test", seen)) & set(of("predict", seen))
    assert not set(of("test", seen)) & set(first)
    # Validation draws the same in every epoch, in the sanity check and in trainer.validate.
    assert set(first) == set(first[-2:])


@pytest.mark.slow
def test_without_the_callback_they_are_not() -> None:
    assert everything(0, ours=False) != everything(1, ours=False)


def test_the_users_loaders_are_used_as_they_are_outside_of_the_run() -> None:
    train = small.loader()
    kinds: list[Any] = []
    note = small.probe(on_train_start=lambda trainer, _: kinds.append(type(trainer.train_dataloader)))
    trainer = small.trainer(note, Determinism(0, log=False), max_epochs=1)
    trainer.fit(small.net(), train)
    assert kinds == [KeyedLoader]
    assert trainer.train_dataloader is train


def test_validation_metrics_of_a_fit_are_those_of_validate_alone(tmp_path: Path) -> None:
    def val() -> Any:
        return small.loader(6, shuffle=False)

    set_determinism(0)
    module = small.net()
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = small.trainer(
        Determinism(0, log=False), saves, enable_checkpointing=True, max_epochs=3, num_sanity_val_steps=2
    )
    inside: list[float] = []
    trainer.callbacks.append(
        small.probe(on_train_epoch_end=lambda trainer, _: inside.append(float(trainer.callback_metrics["val_loss"])))
    )
    trainer.fit(module, small.loader(), val())
    alone, bare = [], []
    for epoch in range(3):
        for found, callbacks in ((alone, [Determinism(0, log=False)]), (bare, [])):
            torch.rand(1)
            evaluator = small.trainer(*callbacks)
            (metrics,) = evaluator.validate(
                small.net(), val(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", verbose=False
            )
            found.append(metrics["val_loss"])
    assert alone == inside
    assert all(one != other for one, other in zip(bare, inside, strict=True))


# -- what is made early in a run ---------------------------------------------------------------------------------------


def test_what_configure_model_makes_follows_its_own_seed() -> None:
    def weights(callback: Determinism) -> str:
        torch.rand(3)
        module = small.net(late=True)
        small.trainer(callback, fast_dev_run=True).validate(module, small.loader(2, shuffle=False), verbose=False)
        return digest_state(module)

    assert weights(Determinism(0, log=False)) == weights(Determinism(0, log=False))
    assert weights(Determinism(0, log=False)) == weights(Determinism(1, seeds={"init": 0}, log=False))
    assert weights(Determinism(0, log=False)) != weights(Determinism(0, seeds={"init": 1}, log=False))


def test_loaders_that_configure_optimizers_has_made_are_keyed() -> None:
    def run(*callbacks: Any) -> list[tuple[str, int, str]]:
        torch.rand(3)

        def configure_optimizers(self: Any) -> Any:
            assert self.trainer.estimated_stepping_batches == 8
            torch.rand(1)
            return torch.optim.SGD(self.parameters(), 0.01)

        def train_dataloader(self: Any) -> Any:
            part, _ = random_split(small.Noise(10), [8, 2])
            return DataLoader(part, 2, shuffle=True)

        module = small.net(configure_optimizers=configure_optimizers, train_dataloader=train_dataloader)
        small.trainer(*callbacks).fit(module)
        return module.seen

    assert run(Determinism(0, log=False)) == run(Determinism(0, log=False))
    assert run() != run()


def test_a_split_in_setup_is_that_of_the_seed() -> None:
    class Split(LightningDataModule):
        def setup(self, stage: str) -> None:
            self.part, _ = random_split(range(10), [8, 2])  # type: ignore[arg-type]

        def train_dataloader(self) -> Any:
            return small.loader()

    data = Split()
    torch.rand(3)
    small.trainer(Determinism(5, log=False), max_epochs=1).fit(small.net(), data)
    torch.manual_seed(5)
    assert data.part.indices == random_split(range(10), [8, 2])[0].indices  # type: ignore[arg-type]


# -- the user's own worker_init_fn -------------------------------------------------------------------------------------


class Marked(Dataset[Any]):
    """Hands out what worker_init_fn has put onto it."""

    marks = (-1.0, -1.0, -1.0, -1.0)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.marks, dtype=torch.float64)


def mark(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert type(info.dataset) is Marked, f"a user expects to find his own dataset, not {type(info.dataset)}"
    info.dataset.marks = (float(worker), random.random(), float(np.random.rand()), float(torch.rand(())))


def marks(seed: int) -> torch.Tensor:
    batches: list[torch.Tensor] = []

    def training_step(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        batches.append(batch)
        return self.layers(batch.float()).sum()

    users = DataLoader(Marked(), 2, num_workers=2, worker_init_fn=mark)
    random.random(), np.random.rand(), torch.rand(1)
    small.trainer(Determinism(seed, log=False), max_epochs=1).fit(small.net(training_step=training_step), users)
    assert users.worker_init_fn is mark
    return torch.cat(batches)


def test_the_users_worker_init_fn_is_called_after_ours_with_his_own_dataset() -> None:
    found = marks(0)
    assert found[:, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert torch.equal(found, marks(0))
    assert not (found[:, 1:] == marks(1)[:, 1:]).any()
    assert not (found[0, 1:] == found[2, 1:]).any(), "two workers draw the same"


# -- other things that read a loader -----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_predictions_come_with_their_indices(workers: int, tmp_path: Path) -> None:
    found: list[Any] = []

    class Writer(BasePredictionWriter):
        def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
            found.extend(batch_indices)

    trainer = small.trainer(Writer("epoch"), Determinism(0, log=False))
    trainer.predict(small.net(), small.loader(5, shuffle=False, num_workers=workers))
    assert found == [[[0, 1], [2, 3], [4]]]


def test_overfit_batches() -> None:
    def run(workers: int) -> list[tuple[str, int, str]]:
        module = small.net()
        with small.messages():
            trainer = small.trainer(Determinism(0, log=False), overfit_batches=2)
            trainer.fit(module, small.loader(num_workers=workers))
        return module.seen

    assert len(run(0)) == 4
    assert run(0) == run(1)
