"""Lightning Fabric: the loader is keyed, and Fabric moves its batches, as the README shows it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from repro_callbacks import keyed, set_determinism
from repro_callbacks.fingerprint.digest import digest_state

SIZE, BATCH = 24, 4


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + torch.rand(1)


def train(fabric: Any, num_workers: int, ours: bool) -> dict[str, Any]:
    """Train two epochs with dropout, and return the weights and the samples of each step."""
    set_determinism(3407)
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    net, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.001))
    dataset = Noisy()
    sampler = DistributedSampler(dataset, fabric.world_size, fabric.global_rank)
    loader: Any = DataLoader(dataset, BATCH // fabric.world_size, sampler=sampler, num_workers=num_workers)
    loader = keyed(loader, seed=3407) if ours else loader
    batches = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    seen = []
    for epoch in range(2):
        (loader if ours else sampler).set_epoch(epoch)
        for batch in batches:
            seen.append(batch[:, 0].tolist())
            optimizer.zero_grad()
            fabric.backward(net(batch).square().mean())
            optimizer.step()
    return {"weights": digest_state(net), "seen": seen}


def train_all(fabric: Any, folder: Path, numbers: list[int], ours: bool) -> None:
    found = [train(fabric, num_workers, ours) for num_workers in numbers]
    (folder / f"rank{fabric.global_rank}.json").write_text(json.dumps(found))


def trained(folder: Path, ranks: int, *numbers: int, ours: bool = True) -> list[tuple[list[str], list[list[float]]]]:
    """For each number of workers, return the weights of each rank and the samples of each step, whoever had them."""
    folder.mkdir()
    fabric = lightning.Fabric(accelerator="cpu", devices=ranks, strategy="ddp_spawn" if ranks > 1 else "auto")
    fabric.launch(functools.partial(train_all, folder=folder, numbers=list(numbers), ours=ours))
    found = []
    for runs in zip(*(json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)), strict=True):
        steps = zip(*(run["seen"] for run in runs), strict=True)
        samples = [sorted(sample for share in step for sample in share) for step in steps]
        found.append(([run["weights"] for run in runs], samples))
    return found


def test_any_number_of_workers_gives_the_same_training(tmp_path: Path) -> None:
    none, two = trained(tmp_path / "keyed", 1, 0, 2)
    assert none == two
    # control: without the key, the samples depend on the workers
    none, two = trained(tmp_path / "plain", 1, 0, 2, ours=False)
    assert none != two


@pytest.mark.slow
def test_ranks_repeat_and_see_the_samples_that_one_process_sees(tmp_path: Path) -> None:
    none, one = trained(tmp_path / "two", 2, 0, 1)
    assert none == one
    (first, second), samples = none
    assert first == second
    assert samples == trained(tmp_path / "one", 1, 0)[0][1]


def test_a_loader_that_fabric_has_wrapped_is_refused_and_the_remedy_named() -> None:
    wrapped = lightning.Fabric(accelerator="cpu", devices=1).setup_dataloaders(DataLoader(Noisy()))
    with pytest.raises(TypeError, match="not _FabricDataLoader: key the loader first, and give what you get to"):
        keyed(wrapped, seed=3407)
