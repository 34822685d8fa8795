"""The process-wide generators: seeded as the frameworks seed them, keyed, snapshot, put back, isolated."""

from __future__ import annotations

import random

import lightning
import numpy as np
import pytest
import torch

from repro_callbacks import generators, keys


@pytest.fixture(autouse=True)
def _generators_are_left_as_they_were():
    with generators.isolate():
        yield


def draw() -> tuple[bytes, ...]:
    """Draw from all three generators, more than one block of each, by several distributions."""
    return (
        repr([random.random(), random.gauss(0, 1), random.getrandbits(64)]).encode(),
        np.random.bytes(16) + np.random.standard_normal(700).tobytes(),
        torch.rand(700).numpy().tobytes() + torch.randn(3).numpy().tobytes() + torch.randperm(9).numpy().tobytes(),
    )


@pytest.mark.parametrize("seed", [0, 1, 3407, keys.MAX_SEED])
def test_seeding_gives_the_bits_of_seed_everything(seed, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # seed_everything sets both; monkeypatch takes them back
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    lightning.seed_everything(seed, verbose=False)
    expected = draw()
    generators.seed_all(seed)
    assert draw() == expected


def test_each_generator_depends_on_the_seed():
    generators.seed_all(0)
    first = draw()
    generators.seed_all(1)
    assert all(one != other for one, other in zip(first, draw(), strict=True))


def test_a_key_fixes_every_generator_whatever_was_drawn_before():
    key = keys.derive(3407, "step", 0, 17)
    generators.seed_all(1)
    generators.key_all(key)
    first = draw()
    draw()
    generators.key_all(key)
    assert draw() == first


def test_what_is_drawn_under_a_key_never_changes():
    # A change of these values is a change of every result of every user: it needs a major version.
    key = keys.derive(3407, "sample", "train", 0, 3, 0, 17, 0)
    generators.key_all(key)
    drawn = random.random(), np.random.random_sample(), torch.rand(1, dtype=torch.float64).item()
    assert drawn == (0.6332837703863086, 0.850303551893625, 0.6682961132847867)


@pytest.mark.parametrize("other", [(3407, "step", 0, 18), (3407, "order", 0, 17), (3408, "step", 0, 17)])
def test_each_generator_depends_on_the_key(other):
    generators.key_all(keys.derive(3407, "step", 0, 17))
    first = draw()
    generators.key_all(keys.derive(*other))
    assert all(one != another for one, another in zip(first, draw(), strict=True))


def test_many_keys_give_as_many_streams_in_each_generator():
    streams: list[set[bytes]] = [set(), set(), set()]
    for step in range(1000):
        generators.key_all(keys.derive(3407, "step", 0, step))
        for seen, stream in zip(streams, draw(), strict=True):
            seen.add(stream)
    assert [len(seen) for seen in streams] == [1000] * 3


def test_restore_goes_on_from_the_snapshot_in_the_middle_of_a_stream():
    generators.seed_all(3407)
    draw(), random.gauss(0, 1), np.random.standard_normal(1)  # both keep a second normal number for the next call
    states = generators.snapshot()
    expected = draw()
    draw()
    assert draw() != expected
    generators.restore(states)
    assert draw() == expected


def test_a_snapshot_does_not_change_with_later_draws():
    states = generators.snapshot()
    expected = draw()
    draw()
    generators.restore(states)
    assert draw() == expected
    generators.restore(states)
    assert draw() == expected


def test_a_restored_torch_generator_reports_its_seed_again():
    generators.seed_all(3407)
    states = generators.snapshot()
    generators.seed_all(1)
    generators.restore(states)
    assert torch.initial_seed() == 3407


def test_isolate_hides_draws_and_seeding():
    generators.seed_all(3407)
    expected = draw()
    generators.seed_all(3407)
    with generators.isolate():
        generators.seed_all(1)
        draw()
    assert draw() == expected


def test_isolate_hides_what_an_exception_leaves():
    generators.seed_all(3407)
    expected = draw()
    generators.seed_all(3407)
    with pytest.raises(KeyError), generators.isolate():
        {}[draw()]
    assert draw() == expected


def test_without_isolate_the_draws_show():
    generators.seed_all(3407)
    expected = draw()
    generators.seed_all(3407)
    draw()
    assert draw() != expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_seeded_keyed_and_isolated():
    def on_device() -> list[float]:
        return torch.rand(5, device="cuda").tolist()

    generators.seed_all(3407)
    first = on_device()
    with generators.isolate():
        generators.key_all(keys.derive(3407, "step", 0))
        keyed = on_device()
        generators.key_all(keys.derive(3407, "step", 0))
        assert on_device() == keyed != first
    second = on_device()
    generators.seed_all(3407)
    assert [on_device(), on_device()] == [first, second]
