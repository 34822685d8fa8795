"""The cost of position-keyed loading: ``python -m benchmarks.loading``.

Keying a sample with 15 random MONAI transforms; the throughput of a 3D pipeline beside the plain MONAI loader; the
first batch of a resume beside a replay and torchdata's StatefulDataLoader; memory over an epoch's length.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
import warnings
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
)
from torch.utils.data import DataLoader as TorchLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.timing import machine, paired, row
from repro_callbacks import generators, keyed
from repro_callbacks.loading.fetch import Place
from repro_callbacks.loading.holders import Holders


def pipeline() -> Compose:
    return Compose(
        [
            RandSpatialCropd("image", (96, 96, 96), random_size=False),
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandFlipd("image", prob=0.5, spatial_axis=1),
            RandAffined("image", prob=1.0, rotate_range=(0.2, 0.2, 0.2), padding_mode="border"),
            RandGaussianNoised("image", prob=1.0, std=0.1),
        ]
    )


def keying() -> None:
    """One sample's keys and streams."""
    fifteen = Compose([make("image", 0.1) for make in 5 * [RandFlipdAt, RandScaleIntensityd, RandShiftIntensityd]])
    holders = Holders([fifteen])
    count = sum(not isinstance(obj, type) for obj in holders.randomizables)
    place = Place(3407, "train", loader=0, epoch=0, cycle=0, rank=0)
    with holders:
        times = []
        for number in range(3000):
            begin = time.perf_counter()
            key = place.key("sample", number, 0)
            generators.key_all(key)
            holders.key(key)
            times.append(time.perf_counter() - begin)
    row(f"keying a sample, {count} objects with an R", f"{statistics.median(times) * 1e6:.1f} us", "", "bar: 50 us")


def RandFlipdAt(name: str, probability: float) -> RandFlipd:
    return RandFlipd(name, probability)


def throughput() -> None:
    """Batches per second of the 3D pipeline; without workers beside a plain loader on as many threads as ours, too."""
    data = [
        {"image": torch.from_numpy(np.random.RandomState(i).rand(1, 128, 128, 128).astype("float32"))} for i in range(8)
    ]
    dataset = Dataset(data, pipeline())
    every = torch.get_num_threads()
    for workers, threads in ((0, every), (0, 1), (2, every)):
        torch.set_num_threads(threads)
        plain = DataLoader(dataset, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
        ours = keyed(DataLoader(dataset, batch_size=2, num_workers=workers, persistent_workers=workers > 0), 3407)
        ours_s, plain_s, ratio = paired(lambda loader=ours: list(loader), lambda loader=plain: list(loader), rounds=15)
        row(
            f"3D pipeline, {workers} workers, {threads} threads",
            f"{8 / ours_s:.1f}/s",
            f"{8 / plain_s:.1f}/s",
            f"throughput ratio {1 / ratio:.3f} (bar: 0.98)",
        )
    torch.set_num_threads(every)


class Counted(torch.utils.data.Dataset[Any]):
    """Cheap samples that are counted as they are loaded."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.loaded = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        self.loaded += 1
        return torch.rand(16, 16).mul_(index).sum()


def resume(batches: int = 12_000, at: int = 10_000, size: int = 4) -> None:
    """The time to the first batch at 0 and at batch 10,000, and how many samples were loaded for it."""

    def first(make: Any, state: Any = None, skip: int = 0) -> tuple[float, int]:
        times, loaded = [], 0
        for _ in range(5):
            dataset = Counted(batches * size)
            loader = make(dataset)
            if state is not None:
                loader.load_state_dict(state)
            begin = time.perf_counter()
            iterator = iter(loader)
            for _ in range(skip):
                next(iterator)
            next(iterator)
            times.append(time.perf_counter() - begin)
            loaded = dataset.loaded
        return statistics.median(times), loaded

    def ours(dataset: Any) -> Any:
        return keyed(TorchLoader(dataset, size, shuffle=True), 3407)

    state = ours(Counted(batches * size)).state_dict() | {"epoch": 0, "batch": at}
    stateful = StatefulDataLoader(Counted(batches * size), size, shuffle=True)
    iterator = iter(stateful)
    for _ in range(at):
        next(iterator)
    stateful_state = stateful.state_dict()
    start, _ = first(ours)
    keyed_s, keyed_loaded = first(ours, state)
    replay_s, replay_loaded = first(lambda dataset: TorchLoader(dataset, size, shuffle=True), skip=at)
    other_s, other_loaded = first(lambda dataset: StatefulDataLoader(dataset, size, shuffle=True), stateful_state)
    row("first batch at 0", f"{start * 1e3:.2f} ms", "", "")
    row(
        f"resume at batch {at}, keyed",
        f"{keyed_s * 1e3:.2f} ms",
        f"{keyed_loaded} samples",
        f"{keyed_s / start:.2f} x (bar: 1.2)",
    )
    row("the same by replay", f"{replay_s * 1e3:.2f} ms", f"{replay_loaded} samples", f"{replay_s / start:.0f} x")
    row(
        "the same, StatefulDataLoader", f"{other_s * 1e3:.2f} ms", f"{other_loaded} samples", f"{other_s / start:.2f} x"
    )


def memory() -> None:
    """The most that an epoch of indices takes, beside what torch's own sampler takes."""

    def peak(loader: Any) -> float:
        tracemalloc.start()
        for _ in loader:
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most / 2**20

    for size in (20_000, 200_000):
        plain = peak(TorchLoader(range(size), 100, shuffle=True, collate_fn=len))  # type: ignore[arg-type]
        ours = peak(keyed(TorchLoader(range(size), 100, shuffle=True, collate_fn=len), 0))  # type: ignore[arg-type]
        row(
            f"memory of an epoch of {size}",
            f"{ours:.2f} MiB",
            f"{plain:.2f} MiB",
            f"{ours - plain:+.2f} MiB over the sampler's own",
        )


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    print(f"loading: {machine()}")
    row("", "keyed", "plain", "")
    keying()
    throughput()
    resume()
    memory()


if __name__ == "__main__":
    main()
