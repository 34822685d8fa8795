"""What can't be keyed, or changes its own data, is said once."""

from __future__ import annotations

import pickle
import warnings
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset, ThreadDataLoader
from monai.transforms import Compose, RandCoarseDropoutd, RandFlipd, RandIntensityRemap, RandStdShiftIntensityd
from torch.utils.data import DataLoader

from repro_callbacks import keyed
from repro_callbacks.loading.problems import ChangedDataWarning, NotKeyedWarning


def rows(kind: Any = torch.as_tensor) -> list[dict[str, Any]]:
    return [{"image": kind(np.random.RandomState(i).rand(1, 8, 8).astype(np.float32))} for i in range(6)]


CHANGING = {
    "RandStdShiftIntensityd": RandStdShiftIntensityd("image", factors=5.0, prob=1.0),
    "RandCoarseDropoutd": RandCoarseDropoutd("image", holes=2, spatial_size=4, prob=1.0),
}


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
@pytest.mark.parametrize("name", CHANGING)
def test_a_transform_that_changes_the_data_is_named(name: str, kind: Any) -> None:
    loader = keyed(DataLoader(Dataset(rows(kind), Compose([CHANGING[name]])), 2), 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = [row["image"].copy() if kind is np.asarray else row["image"].clone() for row in loader.dataset.data]
        for _ in range(2):
            list(loader)
    changed = any(
        (np.asarray(b) != np.asarray(row["image"])).any() for b, row in zip(before, loader.dataset.data, strict=True)
    )
    said = [str(w.message) for w in caught if issubclass(w.category, ChangedDataWarning)]
    assert changed == bool(said)
    assert len(said) <= 1
    assert all(name in sentence and "copy_cache=True" in sentence for sentence in said)


@pytest.mark.parametrize("name", CHANGING)
def test_a_cached_copy_is_not_warned_of(name: str) -> None:
    loader = keyed(DataLoader(CacheDataset(rows(), Compose([CHANGING[name]]), progress=False), 2), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedDataWarning)
        list(loader)


def test_a_pure_transform_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedDataWarning)
        list(keyed(DataLoader(Dataset(rows(), Compose([RandFlipd("image", prob=1.0)])), 2), 0))


def test_thread_workers_are_loaded_in_processes_and_said() -> None:
    loader = ThreadDataLoader(Dataset(rows(), None), batch_size=2, num_workers=2, use_thread_workers=True)
    with pytest.warns(NotKeyedWarning, match=r"use_thread_workers=True.*worker processes instead"):
        loaded = list(keyed(loader, 0))
    assert len(loaded) == 3


def test_an_iter_of_the_users_own_is_said() -> None:
    class Scaling(DataLoader[Any]):
        def __iter__(self) -> Any:
            return (2 * batch for batch in super().__iter__())

    with pytest.warns(NotKeyedWarning, match=r"Scaling\.__iter__ is your own, and is not called.*collate_fn"):
        keyed(Scaling(torch.arange(4.0)), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_makes_its_parts_anew_in_each_call_is_keyed(workers: int) -> None:
    remap = RandIntensityRemap(prob=1.0, kernel_size=3, slope=0.7)
    dataset = Dataset(rows(), lambda row: {"image": remap(row["image"])})

    def drawn() -> list[torch.Tensor]:
        return [torch.as_tensor(batch["image"]) for batch in keyed(DataLoader(dataset, 2, num_workers=workers), 0)]

    assert all(torch.equal(a, b) for a, b in zip(drawn(), drawn(), strict=True))


def test_data_of_any_size_can_be_sent_to_a_spawned_worker() -> None:
    """Sending moves a tensor to shared memory; where a view of the old memory was kept, this was a crash."""
    volumes = [{"image": torch.full((1, 160, 160, 160), float(number))} for number in range(2)]
    loader = keyed(DataLoader(Dataset(volumes, RandFlipd("image", prob=1.0)), 2), 0)
    ForkingPickler(BytesIO(), pickle.HIGHEST_PROTOCOL).dump(loader._engine.dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedDataWarning)
        (batch,) = loader
    assert batch["image"].flatten(1)[:, 0].tolist() == [0.0, 1.0]
