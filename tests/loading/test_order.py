"""The order of an epoch is a function of its key, for every sampler, and leaves the sampler as it was."""

from __future__ import annotations

import itertools
import random
from typing import Any

import monai.data
import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from repro_callbacks import keys
from repro_callbacks.loading import order

SIZE = 23
KEY, OTHER = keys.derive(0, "order", 0), keys.derive(0, "order", 1)


class Shuffled(Sampler[int]):
    """Draws as it goes, from a process-wide generator and one of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def __iter__(self) -> Any:
        left = list(range(SIZE))
        while left:
            yield left.pop((random.randrange(len(left)) + int(self.rng.integers(len(left)))) % len(left))

    def __len__(self) -> int:
        return SIZE


SAMPLERS: dict[str, Any] = {
    "random": lambda: RandomSampler(range(SIZE)),
    "random with a generator": lambda: RandomSampler(range(SIZE), generator=torch.Generator().manual_seed(1)),
    "random, fewer": lambda: RandomSampler(range(SIZE), num_samples=9),
    "random, more": lambda: RandomSampler(range(SIZE), num_samples=60),
    "with replacement": lambda: RandomSampler(range(SIZE), replacement=True, num_samples=70),
    "subset": lambda: SubsetRandomSampler(list(range(3, SIZE))),
    "weighted": lambda: WeightedRandomSampler([1.0] * SIZE, 40),
    "distributed": lambda: DistributedSampler(range(SIZE), 2, 1),
    "MONAI's distributed": lambda: monai.data.DistributedSampler(range(SIZE), False, 2, 1),
    "MONAI's distributed, weighted": lambda: monai.data.DistributedWeightedRandomSampler(
        range(SIZE), [1.0] * SIZE, 40, num_replicas=2, rank=1
    ),
    "the user's own": Shuffled,
}


def epoch(sampler: Any, key: bytes = KEY, start: int = 0, batch_size: Any = 4) -> list[Any]:
    loader = DataLoader(range(SIZE), batch_size, sampler=sampler)  # type: ignore[arg-type]
    return list(order.batches(loader, key, start))


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_order_is_a_function_of_its_key(name: str, batch_size: Any) -> None:
    sampler = SAMPLERS[name]()
    first = epoch(sampler, batch_size=batch_size)
    random.random(), torch.rand(1)
    assert epoch(sampler, batch_size=batch_size) == first
    assert epoch(SAMPLERS[name](), batch_size=batch_size) == first
    assert epoch(sampler, OTHER, batch_size=batch_size) != first


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resume_goes_on_in_the_same_order(name: str, batch_size: Any) -> None:
    whole = epoch(SAMPLERS[name](), batch_size=batch_size)
    for start in (1, 2, len(whole) - 1, len(whole)):
        assert epoch(SAMPLERS[name](), start=start, batch_size=batch_size) == whole[start:]


def test_the_cut_permutation_is_what_torchs_sampler_draws() -> None:
    for total in (SIZE, 9):
        generator = torch.Generator().manual_seed(keys.words64(KEY)[0])
        theirs = list(RandomSampler(range(SIZE), num_samples=total, generator=generator))
        ours = [index for batch, _ in epoch(RandomSampler(range(SIZE), num_samples=total)) for index in batch]
        assert ours == theirs


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_is_drawn_from_the_process_wide_generators(name: str) -> None:
    loader = DataLoader(range(SIZE), 4, sampler=SAMPLERS[name]())  # type: ignore[arg-type]
    random.seed(1), torch.manual_seed(1), np.random.seed(1)
    expected = [(random.random(), torch.rand(1).item(), np.random.rand()) for _ in range(3)]
    random.seed(1), torch.manual_seed(1), np.random.seed(1)
    drawn = []
    for _ in itertools.islice(order.batches(loader, KEY), 3):
        drawn.append((random.random(), torch.rand(1).item(), np.random.rand()))
    assert drawn == expected[: len(drawn)]


@pytest.mark.parametrize("name", ["random with a generator", "the user's own"])
def test_the_samplers_own_generator_is_left_as_it_was(name: str) -> None:
    sampler = SAMPLERS[name]()
    state = sampler.rng.bit_generator.state if name == "the user's own" else sampler.generator.get_state()
    epoch(sampler)
    if name == "the user's own":
        assert sampler.rng.bit_generator.state == state
    else:
        assert torch.equal(sampler.generator.get_state(), state)


def test_two_draws_of_one_sample_are_told_apart() -> None:
    drawn = [pair for batch in epoch(WeightedRandomSampler([1.0] * 3, 30)) for pair in zip(*batch, strict=True)]
    assert len(set(drawn)) == 30
    assert {occurrence for index, occurrence in drawn if index == 0} == set(range(sum(i == 0 for i, _ in drawn)))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_the_order_of_one_process(world: int) -> None:
    alone = [index for batch, _ in epoch(RandomSampler(range(24))) for index in batch]
    loader = DataLoader(range(24), 4, sampler=RandomSampler(range(24)))  # type: ignore[arg-type]
    alone = [index for batch, _ in order.batches(loader, KEY) for index in batch]
    shares = []
    for rank in range(world):
        sampler = DistributedSampler(range(24), world, rank)  # type: ignore[arg-type, var-annotated]
        shares.append([i for batch, _ in epoch(sampler) for i in batch])
    assert [shares[position % world][position // world] for position in range(24)] == alone


def test_batches_of_a_batch_sampler_of_the_users_own() -> None:
    class Buckets:
        def __iter__(self) -> Any:
            buckets = [[0, 1], [2, 3], [4, 4]]
            random.shuffle(buckets)
            yield from buckets

    loader = DataLoader(range(SIZE), batch_sampler=Buckets())  # type: ignore[arg-type]
    first = list(order.batches(loader, KEY))
    assert list(order.batches(loader, KEY)) == first
    assert ([4, 4], [0, 1]) in first


def test_a_plain_batch_sampler_keeps_drop_last() -> None:
    loader = DataLoader(range(SIZE), batch_sampler=BatchSampler(SequentialSampler(range(SIZE)), 4, drop_last=True))  # type: ignore[arg-type]
    assert [len(batch) for batch, _ in order.batches(loader, KEY)] == [4] * 5


def test_a_sampler_that_knows_its_epoch_is_told_it_in_a_copy() -> None:
    class Curriculum(SequentialSampler):
        """Each epoch has one sample more."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            return iter(torch.randperm(5 + self.epoch).tolist())

    sampler = Curriculum(range(SIZE))
    loader = DataLoader(range(SIZE), 100, sampler=sampler)  # type: ignore[arg-type]
    assert [len(next(order.batches(loader, KEY, epoch=epoch))[0]) for epoch in (0, 3)] == [5, 8]
    assert sampler.epoch == 0


def test_ranks_of_monais_weighted_sampler_draw_each_for_itself() -> None:
    def places(rank: int) -> list[int]:
        sampler = monai.data.DistributedWeightedRandomSampler(
            range(SIZE), [1.0] * SIZE, 40, num_replicas=2, rank=rank, shuffle=False
        )
        return [index // 2 for batch, _ in epoch(sampler) for index in batch]

    assert places(0) == places(0) != places(1)


def test_what_an_earlier_epoch_left_in_a_distributed_sampler_does_not_matter() -> None:
    for name in ("distributed", "MONAI's distributed", "MONAI's distributed, weighted"):
        sampler = SAMPLERS[name]()
        first = epoch(sampler)
        sampler.set_epoch(7)  # as Lightning does, except in the first epoch after a resume
        assert epoch(sampler) == first, name
