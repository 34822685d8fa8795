"""``keyed``: the loader of a plain loop is a function of seed, epoch and index, and goes on where it was left."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator
from typing import Any

import monai.data
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from repro_callbacks import keyed
from repro_callbacks.loading import KeyedLoader
from repro_callbacks.loading.fetch import KeyedDataset

SIZE = 14


class Noisy(Dataset[torch.Tensor]):
    """Samples that draw from all three process-wide generators, and are counted as they are loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> torch.Tensor:
        self.loaded.append(index)
        return torch.tensor([index, random.random(), np.random.random_sample(), torch.rand(()).item()])


class Counting(IterableDataset[torch.Tensor]):
    """A stream that is sharded over workers and adds noise."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for number in range(worker, SIZE, workers):
            yield torch.tensor([number, np.random.random_sample()])


class Resumable(Counting):
    """The same, saying and taking back where it stands; it counts the items it has made."""

    def __init__(self) -> None:
        self.at = 0
        self.made = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        begin, self.at = self.at, 0
        for number in range(begin, SIZE):
            self.at = number + 1
            self.made += 1
            yield torch.tensor([number, np.random.random_sample()])
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def make(workers: int = 0, kind: Any = DataLoader, **options: Any) -> DataLoader[Any]:
    return kind(Noisy(), batch_size=4, **{"shuffle": True, **options}, num_workers=workers)


def epoch_of(loader: Any) -> list[str]:
    """One epoch: each batch, and what the loop's body draws while it works on it."""
    return [repr((batch.tolist(), torch.rand(1).item(), random.random(), np.random.rand())) for batch in loader]


@pytest.mark.slow
def test_any_number_of_workers_and_any_loader_give_the_same_epochs() -> None:
    expected = [epoch_of(loader) for loader in [keyed(make(), 3407)] for _ in range(2)]
    assert expected[0] != expected[1]
    for workers, kind in itertools.product((0, 1, 2, 4), (DataLoader, monai.data.DataLoader, StatefulDataLoader)):
        loader = keyed(make(workers, kind), 3407)
        torch.manual_seed(workers)
        assert [epoch_of(loader), epoch_of(loader)] == expected, (workers, kind)


def test_without_keys_for_samples_workers_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyedDataset, "_key", lambda self, key: None)
    assert epoch_of(keyed(make(0), 3407)) != epoch_of(keyed(make(2), 3407))


def test_an_epoch_is_the_one_that_was_set_and_else_the_next() -> None:
    loader = keyed(make(), 0)
    epochs = [epoch_of(loader) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    loader.set_epoch(1)
    assert [epoch_of(loader), epoch_of(loader)] == epochs[1:]
    loader.set_epoch(0)
    next(iter(loader))  # left in the middle: the next iteration is the next epoch
    assert epoch_of(loader) == epochs[1]


@pytest.mark.parametrize("stop", range(5))
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_at_any_batch_and_loads_no_sample_to_skip_it(stop: int, workers: int) -> None:
    whole = [epoch_of(loader) for loader in [keyed(make(), 3407)] for _ in range(3)]
    loader = keyed(make(workers), 3407)
    epoch_of(loader)
    if stop:
        for _ in zip(range(stop), loader):  # noqa: B905 - the order matters: no batch more is asked for
            pass
    buffer = io.BytesIO()
    torch.save(loader.state_dict(), buffer)
    buffer.seek(0)

    resumed = keyed(make(2 - workers), 3407)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    if stop == 4:  # the epoch's last batch was handed out: what is left of it is nothing
        assert epoch_of(resumed) == []
    else:
        assert epoch_of(resumed) == whole[1][stop:]
    if resumed.num_workers == 0:
        assert len(resumed.dataset.loaded) == SIZE - min(4 * stop, SIZE)
    assert epoch_of(resumed) == whole[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_tells_which_samples_it_has_handed_out(workers: int) -> None:
    loader = keyed(DataLoader(Noisy(), 3, shuffle=True, num_workers=workers, persistent_workers=workers > 0), 0)
    told = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        told.append([(loader.indices, batch[:, 0].int().tolist()) for batch in itertools.islice(loader, 3 + 2 * epoch)])
        assert all(indices == samples for indices, samples in told[-1])
    assert [len(batches) for batches in told] == [3, 5]


def profiled(loader: DataLoader[Any]) -> list[tuple[str, int]]:
    with torch.profiler.profile() as profile:
        for _ in loader:
            pass
    return [(one.key, one.count) for one in profile.key_averages() if one.key.startswith("enumerate(DataLoader)")]


def test_a_profiler_finds_the_time_spent_loading() -> None:
    plain = DataLoader(Noisy(), 2)
    batches = SIZE // 2
    # torch's own iterator also notes that it found nothing more to load
    assert profiled(plain) == [("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", batches + 1)]
    assert profiled(keyed(plain, 0)) == [("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", batches)]


def test_a_draw_with_replacement_is_keyed_by_how_often_the_index_came_before() -> None:
    sampler = WeightedRandomSampler([1.0] * 3, 30)
    loader = keyed(make(shuffle=False, sampler=sampler), 1)
    rows = [tuple(row) for batch in loader for row in batch.tolist()]
    assert len(rows) == len(set(rows)) == 30
    assert rows == [tuple(row) for batch in keyed(make(2, shuffle=False, sampler=sampler), 1) for row in batch.tolist()]


def test_one_sample_is_drawn_alone_and_draws_from_nobody() -> None:
    loader = keyed(make(2), 3407)
    loader.set_epoch(3)
    found = {int(row[0]): row.tolist() for batch in loader for row in batch}
    random.seed(5)
    expected = random.random()
    random.seed(5)
    assert loader.sample(11, epoch=3).tolist() == found[11]
    assert random.random() == expected
    assert loader.sample(11, epoch=2).tolist() != found[11]


def test_a_purpose_with_another_seed_changes_that_alone() -> None:
    def seen(**seeds: int) -> tuple[list[float], list[list[float]], list[float]]:
        order, content, body = [], [], []
        for batch in keyed(make(), 0, seeds=seeds):
            order += batch[:, 0].tolist()
            content += batch.tolist()
            body.append(random.random())
        return order, sorted(content), body

    plain = seen()
    assert [one == two for one, two in zip(plain, seen(order=1), strict=True)] == [False, True, True]
    assert [one == two for one, two in zip(plain, seen(augment=1), strict=True)] == [True, False, True]
    assert [one == two for one, two in zip(plain, seen(step=1), strict=True)] == [True, True, False]


def test_another_stage_draws_independently() -> None:
    assert epoch_of(keyed(make(), 0)) != epoch_of(keyed(make(), 0, stage="validate"))
    assert epoch_of(keyed(make(), 0)) != epoch_of(keyed(make(), 0, number=1))


def test_the_users_loader_is_left_as_it_is_and_its_worker_init_fn_is_called() -> None:
    def init(worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        assert isinstance(info.dataset, Noisy)  # the user's own, not ours
        torch.set_num_threads(1)
        random.shuffle([1, 2])

    generator = torch.Generator().manual_seed(7)
    plain = make(2, generator=generator, worker_init_fn=init)
    before, attributes = generator.get_state(), dict(vars(plain))
    loader = keyed(plain, 3407)
    assert epoch_of(loader) == epoch_of(keyed(make(), 3407))
    assert torch.equal(generator.get_state(), before)
    assert vars(plain) == attributes
    assert loader.wrapped is plain
    assert keyed(loader, 1).wrapped is plain


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_stream_repeats_and_goes_on_by_replay(workers: int, stop: int) -> None:
    def loader() -> KeyedLoader:
        return keyed(DataLoader(Counting(), batch_size=3, num_workers=workers), 3407)

    whole = epoch_of(loader())
    assert epoch_of(loader()) == whole
    first = loader()
    for _ in zip(range(stop), first):  # noqa: B905
        pass
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    assert epoch_of(resumed) == whole[stop:]


@pytest.mark.parametrize("stop", range(6))
def test_batches_that_monais_thread_loader_repeats_are_repeated_after_a_resume_too(stop: int) -> None:
    def loader(repeats: int) -> KeyedLoader:
        return keyed(make(0, monai.data.ThreadDataLoader, repeats=repeats), 3407)

    plain = [batch.tolist() for batch in loader(1)]
    whole = epoch_of(loader(3))
    first = loader(3)
    for _ in zip(range(stop), first):  # noqa: B905
        pass
    resumed = loader(3)
    resumed.load_state_dict(first.state_dict())
    assert epoch_of(resumed) == whole[stop:]
    assert [batch.tolist() for batch in loader(3)] == [batch for batch in plain for _ in range(3)]


def test_a_stream_that_keeps_its_state_is_not_replayed() -> None:
    whole = epoch_of(keyed(DataLoader(Resumable(), batch_size=3), 3407))
    first = keyed(DataLoader(Resumable(), batch_size=3), 3407)
    for _ in zip(range(3), first):  # noqa: B905
        pass
    dataset = Resumable()
    resumed = keyed(DataLoader(dataset, batch_size=3), 3407)
    resumed.load_state_dict(first.state_dict())
    assert epoch_of(resumed) == whole[3:]
    assert dataset.made == SIZE - 9


def test_what_cannot_be_resumed_is_refused() -> None:
    loader = keyed(make(), 3407)
    with pytest.raises(ValueError, match=r"not the state of a keyed loader: it holds \['epoch'\]"):
        loader.load_state_dict({"epoch": 1})
    with pytest.raises(ValueError, match=r"was made with the seeds .*: make it with the same ones"):
        loader.load_state_dict(keyed(make(), 1).state_dict())
    stream = keyed(DataLoader(Counting(), batch_size=3, num_workers=2), 3407)
    next(iter(stream))
    with pytest.raises(
        ValueError, match=r"num_workers=2, and the loader has num_workers=0: the samples of an iterable"
    ):
        keyed(DataLoader(Counting(), batch_size=3), 3407).load_state_dict(stream.state_dict())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: keyed([1, 2], 0), TypeError, "needs a torch DataLoader .*, not list"),
        (lambda: keyed(make(), -1), ValueError, "seed must be an integer from 0 to 4294967295, not -1"),
        (lambda: keyed(make(), 0.5), TypeError, "not 0.5 of type float"),
        (lambda: keyed(make(), 0, seeds={"ordr": 1}), ValueError, "no purpose 'ordr'; allowed are order, augment"),
        (lambda: keyed(make(), 0).set_epoch(-1), ValueError, "epoch must be an integer from 0"),
        (lambda: keyed(make(), 0, num_workers=-2), ValueError, "num_workers must be an integer of 0 or more, or None"),
        (lambda: keyed(DataLoader(Counting()), 0).sample(3), TypeError, "is an iterable dataset: it has no sample 3"),
    ],
)
def test_bad_input_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
