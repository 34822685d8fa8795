"""MONAI's other trainers, three dimensions, and several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from ignite.engine import Events
from monai.data import CacheDataset, DistributedSampler
from monai.data import DataLoader as MonaiLoader
from monai.engines import AdversarialTrainer, GanTrainer, SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver
from monai.inferers import SimpleInferer
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import Compose, Rand3DElasticd, RandAffined, RandCropByPosNegLabeld, RandFlipd, RandGaussianNoised
from torch import nn

from repro_callbacks import DeterminismHandler, set_determinism
from repro_callbacks.fingerprint.digest import digest_state, digest_tree
from repro_callbacks.handlers import attachment
from repro_callbacks.loading import KeyedLoader
from tests.handlers.training import Draws, images

CPU = torch.device("cpu")


def small_data() -> Any:
    data = [{"reals": image, "image": image, "label": image} for image in images(10)]
    return CacheDataset(data, Compose([RandGaussianNoised(("reals", "image"), prob=1.0)]), progress=False)


def generator() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.3), nn.Unflatten(1, (1, 8, 8)))


def critic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.3), nn.Linear(8, 1))


def gan(handlers: list[Any], workers: int) -> Any:
    g, d = generator(), critic()
    return GanTrainer(
        CPU,
        2,
        MonaiLoader(small_data(), batch_size=4, shuffle=True, num_workers=workers),
        g,
        torch.optim.Adam(g.parameters(), 1e-2),
        lambda fakes: d(fakes).mean(),
        d,
        torch.optim.Adam(d.parameters(), 1e-2),
        lambda fakes, reals: d(reals).mean() - d(fakes.detach()).mean(),
        d_train_steps=2,
        latent_shape=4,
        train_handlers=handlers,
        decollate=False,
        d_prepare_batch=lambda batch, device, non_blocking, **kwargs: batch["reals"].to(device),
    )


def adversarial(handlers: list[Any], workers: int) -> Any:
    """Its discriminator draws after events in the middle of an iteration."""
    g, d = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.3)), critic()
    return AdversarialTrainer(
        CPU,
        2,
        MonaiLoader(small_data(), batch_size=4, shuffle=True, num_workers=workers),
        g,
        torch.optim.Adam(g.parameters(), 1e-2),
        lambda logits: logits.mean(),
        nn.MSELoss(),
        d,
        torch.optim.Adam(d.parameters(), 1e-2),
        lambda reals, fakes: reals.mean() - fakes.mean(),
        g_inferer=SimpleInferer(),
        train_handlers=handlers,
        decollate=False,
    )


def volumes() -> Any:
    torch.manual_seed(0)
    data = [{"image": volume, "label": (volume > 0.8).float()} for volume in torch.rand(6, 1, 16, 16, 16)]
    both = ("image", "label")
    transform = Compose(
        [
            RandCropByPosNegLabeld(both, "label", (8, 8, 8), num_samples=2),
            RandFlipd(both, prob=0.5, spatial_axis=0),
            RandAffined(both, prob=1.0, rotate_range=0.3, padding_mode="border"),
            Rand3DElasticd(both, (1, 2), (0, 1), prob=1.0, padding_mode="border"),
            RandGaussianNoised("image", prob=0.5),
        ]
    )
    return CacheDataset(data, transform, progress=False)


def segmentation(handlers: list[Any], workers: int) -> Any:
    net = UNet(3, 1, 1, (2, 4), (2,), dropout=0.2)
    return SupervisedTrainer(
        CPU,
        2,
        MonaiLoader(volumes(), batch_size=2, shuffle=True, num_workers=workers),
        net,
        torch.optim.Adam(net.parameters(), 1e-2),
        DiceLoss(sigmoid=True),
        train_handlers=handlers,
    )


TRAINERS = {"gan": gan, "adversarial": adversarial, "segmentation": segmentation}


def networks(trainer: Any) -> dict[str, nn.Module]:
    from repro_callbacks.handlers.engine import networks

    return networks(trainer)


def train(
    name: str,
    *handlers: Any,
    workers: int = 0,
    determinism: bool = True,
    save: Path | None = None,
    load: Path | None = None,
) -> str:
    """Train, and return a digest of all final weights."""
    with set_determinism(7):
        handler = DeterminismHandler(7) if determinism else None
        trainer = TRAINERS[name]([handler] if handler else [], workers)
        for other in handlers:  # not before: only now it has all of its events
            other.attach(trainer)
        saved = {"trainer": trainer} if name != "adversarial" else {}
        saved |= networks(trainer)
        optimizers = {key: value for key, value in vars(trainer).items() if key.endswith("optimizer")}
        saved |= optimizers | ({"determinism": handler} if handler else {})
        if save is not None:
            CheckpointSaver(str(save), saved, save_interval=1, epoch_level=False, n_saved=None).attach(trainer)
        if load is not None:
            CheckpointLoader(str(load), saved).attach(trainer)
        trainer.run()
        if handler is not None:
            assert handler.record is not None
            assert handler.record.initial_weights is not None
        return digest_tree([digest_state(network) for network in networks(trainer).values()])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_other_trainers_repeat_whatever_goes_on(name: str) -> None:
    plain = train(name)
    assert train(name) == plain
    assert train(name, workers=2) == plain
    assert train(name, Draws()) == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gan", "segmentation"])
def test_other_trainers_resume(name: str, tmp_path: Path) -> None:
    plain = train(name, save=tmp_path)
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == 6
    for file in files[::2]:
        assert train(name, load=file, workers=1) == plain, file.name


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_without_the_handler_they_do_not(name: str) -> None:
    plain = train(name, determinism=False)
    assert train(name, determinism=False) == plain
    assert train(name, determinism=False, workers=2) != plain
    assert train(name, Draws(), determinism=False) != plain


@pytest.mark.slow
def test_without_keys_after_events_the_middle_of_an_iteration_is_shifted(monkeypatch: Any) -> None:
    key = attachment.Attachment._key_event

    def only_handlers(self: Any, event: Any, purpose: str) -> None:
        if purpose == "handlers" or event is Events.ITERATION_STARTED:
            key(self, event, purpose)

    monkeypatch.setattr(attachment.Attachment, "_key_event", only_handlers)
    assert train("adversarial", Draws()) != train("adversarial")
    assert train("gan", Draws()) == train("gan")  # it fires no events of its own


# -- several processes -------------------------------------------------------------------------------------------------


def rank_main(rank: int, folder: str) -> None:
    """Train three times on one of two ranks, and write what this rank has seen and got."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    outcomes = [
        train_on_a_rank(save=folder),
        train_on_a_rank(workers=1),
        train_on_a_rank(load=f"{folder}/checkpoint_iteration=4.pt"),
        train_on_a_rank(seed=None),
    ]
    torch.save(outcomes, f"{folder}/rank{rank}.pth")
    torch.distributed.destroy_process_group()


def train_on_a_rank(
    workers: int = 0, save: str | None = None, load: str | None = None, seed: int | None = 7
) -> dict[str, Any]:
    set_determinism(7)
    data = small_data()
    net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Dropout(0.5)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    set_determinism(None)
    handler = DeterminismHandler(seed)
    seen: list[Any] = []
    trainer = SupervisedTrainer(
        CPU,
        2,
        MonaiLoader(data, batch_size=2, sampler=DistributedSampler(data, shuffle=True), num_workers=workers),
        net,
        optimizer,
        lambda output, target: (output - target.flatten(1)).square().mean(),
        train_handlers=[handler],
        decollate=False,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append((digest_tree(engine.state.batch), torch.rand(1).item()))
    )
    saved = {"trainer": trainer, "net": net, "optimizer": optimizer, "determinism": handler}
    if save is not None:  # on every rank: Ignite's Checkpoint talks to the others
        CheckpointSaver(save, saved, save_interval=1, epoch_level=False, n_saved=None).attach(trainer)
    if load is not None:
        CheckpointLoader(load, saved).attach(trainer)
    trainer.run()
    return {"seen": seen, "weights": digest_state(net.module), "seed": handler.seed}


@pytest.mark.slow
def test_two_processes_repeat_and_resume(tmp_path: Path) -> None:
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in (0, 1)]
    for first, workers, resumed, _ in ranks:
        assert len(first["seen"]) == 6
        assert workers == first
        assert resumed["weights"] == first["weights"]
        assert resumed["seen"] == first["seen"][4:]
    one, other = ranks[0][0], ranks[1][0]
    assert one["weights"] == other["weights"]
    assert not {batch for batch, _ in one["seen"]} & {batch for batch, _ in other["seen"]}
    assert not {draw for _, draw in one["seen"]} & {draw for _, draw in other["seen"]}
    drawn = [rank[3]["seed"] for rank in ranks]
    assert drawn[0] == drawn[1] is not None


def test_a_loader_is_keyed_only_while_its_engine_runs() -> None:
    trainer = gan([DeterminismHandler(1)], 0)
    kinds = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: kinds.append(type(engine.state.dataloader)))
    trainer.run()
    assert set(kinds) == {KeyedLoader}
    assert type(trainer.state.dataloader) is MonaiLoader
    assert type(trainer.data_loader) is MonaiLoader
