"""Promise 4: from any checkpoint that Lightning writes, the bits of the run that was never stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler, get_worker_info, random_split

from repro_callbacks.callbacks import determinism as callback
from repro_callbacks.callbacks.repairs import Repairs
from repro_callbacks.loading import Start
from tests.training import (
    BATCH,
    SAMPLES,
    STEPS_PER_EPOCH,
    Draws,
    Images,
    Net,
    StopAt,
    assert_resumes,
    every_step,
    run,
    same,
)


class Pairs(Net):
    """Trains on several loaders at once."""

    def loss(self, batch: Any) -> torch.Tensor:
        if isinstance(batch, dict) and "image" in batch:
            return super().loss(batch)
        parts = [super(Pairs, self).loss(part) for part in batch.values() if part is not None]
        return torch.stack(parts).sum()


class Manual(Net):
    """Two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(self.net[1].parameters(), 1e-2), torch.optim.SGD(self.net[4].parameters(), 1e-1)]


class StepsAtTheEnd(Manual):
    """Steps its schedule by hand at the end of each epoch, and draws there."""

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()
        with torch.no_grad():
            self.net[1].bias.add_(0.01 * torch.rand(16))

    def configure_optimizers(self) -> Any:
        first, second = super().configure_optimizers()
        return [first, second], [torch.optim.lr_scheduler.StepLR(first, 1, 0.5)]


class Split(L.LightningDataModule):
    """Splits its data at random in setup, and draws once more when it makes a loader."""

    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers

    def setup(self, stage: str) -> None:
        self.train, self.val = random_split(Images(SAMPLES + 6), [SAMPLES, 6])

    def train_dataloader(self) -> Any:
        part, _ = random_split(self.train, [SAMPLES - 2, 2])
        return DataLoader(part, BATCH, shuffle=True, num_workers=self.workers)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, 3, num_workers=self.workers)


class Stream(IterableDataset[Any]):
    """A sharded stream of images, without a length."""

    def __init__(self) -> None:
        self.images = Images()

    def __iter__(self) -> Any:
        info = get_worker_info()
        images = self.images
        yield from (images[i] for i in range(info.id if info else 0, SAMPLES, info.num_workers if info else 1))


class SizedStream(Stream):
    def __len__(self) -> int:
        return SAMPLES


class Buckets:
    """A batch sampler of the user's own, which shuffles its batches by a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator()

    def __iter__(self) -> Any:
        batches = [list(range(i, min(i + BATCH, SAMPLES))) for i in range(0, SAMPLES, BATCH)]
        for number in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[number]

    def __len__(self) -> int:
        return STEPS_PER_EPOCH


def scheduled(make: Any, **config: Any) -> Any:
    def optimizer(module: Net) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **config}}

    return lambda: Net(optimizer)


def plateau(**config: Any) -> Any:
    return scheduled(
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=10.0), **config
    )


def combined(mode: str) -> Any:
    def make(num_workers: int = 0) -> Any:
        long = DataLoader(Images(), BATCH, shuffle=True, num_workers=num_workers)
        short = DataLoader(Images(7), 2, shuffle=True, num_workers=num_workers)
        return CombinedLoader({"long": long, "short": short}, mode)

    return make


def weighted(num_workers: int = 0) -> Any:
    sampler = WeightedRandomSampler([1.0 + i % 3 for i in range(SAMPLES)], SAMPLES)
    return DataLoader(Images(), BATCH, sampler=sampler, num_workers=num_workers)


SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validation": {"validation": True},
    "validation at half": {"validation": True, "val_check_interval": 0.5},
    "accumulation": {"accumulate_grad_batches": 2},
    "limited": {"limit_train_batches": 4},
    "max_steps": {"max_epochs": -1, "max_steps": 14},
    "StepLR": {"module": scheduled(lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))},
    "plateau on validation": {"module": plateau(monitor="val_loss"), "validation": True},
    "EMA weights": {"callbacks": lambda: [EMAWeightAveraging(decay=0.5)]},
    "manual optimization": {"module": Manual},
    "steps at an epoch's end": {"module": StepsAtTheEnd, "validation": True},
    "max_size_cycle": {"module": Pairs, "loader": combined("max_size_cycle")},
    "min_size": {"module": Pairs, "loader": combined("min_size")},
    "max_size": {"module": Pairs, "loader": combined("max_size")},
    "reload every epoch": {"datamodule": Split, "reload_dataloaders_every_n_epochs": 1},
    "reload every 2 epochs": {"datamodule": Split, "reload_dataloaders_every_n_epochs": 2, "max_epochs": 4},
    "split in setup": {"datamodule": Split},
    "bf16": {"precision": "bf16-mixed"},
    "weighted": {"loader": weighted},
    "buckets": {"loader": lambda num_workers=0: DataLoader(Images(), batch_sampler=Buckets(), num_workers=num_workers)},
    "draws": {"callbacks": lambda: [Draws()], "validation": True},
}
EVERY = sorted(set(SCENARIOS))


def kwargs_of(name: str, workers: int = 0) -> dict[str, Any]:
    kwargs = dict(SCENARIOS[name])
    if "datamodule" in kwargs:
        kwargs["datamodule"] = kwargs["datamodule"](workers)
    if callable(kwargs.get("callbacks")):
        kwargs["callbacks"] = kwargs["callbacks"]()
    kwargs["loader_kwargs"] = (
        {"num_workers": workers} if "loader" in kwargs else {"num_workers": workers, "shuffle": True}
    )
    return kwargs


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_resume_at_every_step(name: str, tmp_path: Path) -> None:
    reference = run(**kwargs_of(name), checkpoint=every_step(tmp_path))
    assert len(reference.checkpoints) >= 6
    for number, checkpoint in enumerate(reference.checkpoints):
        resumed = run(**kwargs_of(name, workers=2 if number % 5 == 1 else 0), ckpt_path=checkpoint)
        try:
            assert_resumes(reference, resumed)
        except AssertionError as error:
            raise AssertionError(f"resumed from {checkpoint.name}: {error}") from None


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_resume_at_every_epoch_end(name: str, tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}-{step}")
    reference = run(**kwargs_of(name), checkpoint=saves)
    # A finished run that is "resumed" trains nothing, so its weights are not averaged at the end of training.
    for checkpoint in reference.checkpoints[: -1 if name == "EMA weights" else None]:
        assert_resumes(reference, run(**kwargs_of(name), ckpt_path=checkpoint))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["validation", "validation at half", "plateau on validation", "split in setup"])
def test_resume_at_every_validation_end(name: str, tmp_path: Path) -> None:
    saves = ModelCheckpoint(
        tmp_path, monitor="val_loss", save_top_k=-1, filename="{epoch}-{step}", save_on_train_epoch_end=False
    )
    reference = run(**kwargs_of(name), checkpoint=saves)
    for checkpoint in reference.checkpoints:
        assert_resumes(reference, run(**kwargs_of(name), ckpt_path=checkpoint))


@pytest.mark.slow
def test_resume_of_a_resume_with_other_workers(tmp_path: Path) -> None:
    reference = run()
    first = run(checkpoint=every_step(tmp_path / "first"), callbacks=[StopAt(4)], allow_stop=True)
    second = run(
        checkpoint=every_step(tmp_path / "second"),
        callbacks=[StopAt(9)],
        allow_stop=True,
        ckpt_path=first.checkpoints[-1],
        loader_kwargs={"num_workers": 2},
    )
    assert_resumes(reference, run(ckpt_path=second.checkpoints[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 3, 6, 8])
def test_resume_after_an_exception(step: int, tmp_path: Path) -> None:
    reference = run()
    run(callbacks=[StopAt(step), OnExceptionCheckpoint(tmp_path, "stopped")], allow_stop=True)
    assert_resumes(reference, run(ckpt_path=tmp_path / "stopped.ckpt"))


STREAMS = {
    f"{kind.__name__} {workers} workers": (kind, workers)
    for kind, workers in itertools.product((Stream, SizedStream), (0, 2))
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
def test_resume_of_an_iterable_dataset(name: str, tmp_path: Path) -> None:
    kind, workers = STREAMS[name]

    def loader() -> Any:
        return DataLoader(kind(), BATCH, num_workers=workers)

    module = scheduled(lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))
    reference = run(loader=loader, module=module, checkpoint=every_step(tmp_path))
    for checkpoint in reference.checkpoints[:-1]:
        assert_resumes(reference, run(loader=loader, module=module, ckpt_path=checkpoint))


# -- each mechanism taken out ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bare_lightning_does_not_resume(tmp_path: Path) -> None:
    reference = run(determinism=None, checkpoint=every_step(tmp_path))
    for checkpoint in reference.checkpoints[:3]:
        resumed = run(determinism=None, ckpt_path=checkpoint)
        assert resumed.state != reference.state


@pytest.mark.slow
def test_without_positions_from_the_trainer_a_resume_differs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(callback.Determinism, "where", lambda self, trainer, loader: Start())
    reference = run(checkpoint=every_step(tmp_path))
    assert not same(run(ckpt_path=reference.checkpoints[2]), reference)
    with pytest.raises(AssertionError):
        assert_resumes(reference, run(ckpt_path=reference.checkpoints[2]))


@pytest.mark.slow
def test_without_the_repair_a_plateau_update_is_lost(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Repairs, "load_state_dict", lambda self, state: None)
    name = "plateau on validation"
    reference = run(**kwargs_of(name), checkpoint=ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}"))
    with pytest.raises(AssertionError):
        assert_resumes(reference, run(**kwargs_of(name), ckpt_path=reference.checkpoints[0]))
