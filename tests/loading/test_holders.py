"""Who holds a generator is found, gets a stream of its own under a key, and is afterwards as it was."""

from __future__ import annotations

import functools
import hashlib
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, OneOf, RandFlip, RandGaussianNoise

from repro_callbacks import keys
from repro_callbacks.loading.holders import Holders

KEY = keys.derive(3407, "sample", "train", 0, 3, 0, 17, 0)


def test_the_streams_of_transforms_never_change_and_another_program_can_compute_them():
    noise = RandGaussianNoise()
    holders = Holders([Compose([RandFlip(), noise])])
    number = holders.randomizables.index(noise)
    with holders:
        holders.key(KEY)
        drawn = noise.R.random_sample()
        gaussian = noise.R.normal(2, 3)
    assert (number, drawn, gaussian) == (2, 0.35510840780818154, -0.7870883278261327)

    generator = np.random.SFC64(0)
    words = np.frombuffer(hashlib.shake_256(KEY).digest(1024)[32 * number : 32 * number + 32], "<u8")
    generator.state = {**generator.state, "state": {"state": words}}
    assert np.random.RandomState(generator).random_sample() == drawn
    assert np.random.Generator(generator).normal(2, 3) == gaussian


class Keeper:
    """A dataset or transform that keeps a generator of its own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator


MAKERS: list[Callable[[], Any]] = [
    lambda: np.random.default_rng(1),
    lambda: np.random.RandomState(1),
    lambda: np.random.RandomState(np.random.PCG64(1)),
    lambda: random.Random(1),
    lambda: torch.Generator().manual_seed(1),
]


def first(generator: Any) -> float:
    return float(torch.rand(1, generator=generator)) if isinstance(generator, torch.Generator) else generator.random()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "hide", [lambda keeper: [keeper], lambda keeper: {"a": (keeper,)}, lambda keeper: closure(keeper)]
)
def test_a_kept_generator_is_keyed_wherever_it_lies_and_then_goes_on_where_it_was(make: Any, hide: Any) -> None:
    keeper, untouched = Keeper(make()), make()
    first(keeper.generator), first(untouched)
    holders, drawn = Holders([hide(keeper)]), []
    for other in (KEY, KEY, keys.derive(0, "another")):
        with holders:
            holders.key(other)
            drawn.append(first(keeper.generator))
    assert drawn[0] == drawn[1] != drawn[2]
    assert first(keeper.generator) == first(untouched)


def closure(keeper: Keeper) -> Callable[[], float]:
    return functools.partial(lambda scale: scale * first(keeper.generator), 2)


def test_transforms_are_as_they_were_after_an_exception() -> None:
    transform = OneOf([RandFlip(), RandGaussianNoise()])
    before = transform.R, transform.transforms[0].R

    def fail() -> None:
        with Holders([transform]) as holders:
            holders.key(KEY)
            assert transform.R is not before[0]
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert before == (transform.R, transform.transforms[0].R)
    assert "R" not in vars(RandFlip())  # an object made afterwards shares the R of its class, as MONAI means it


def test_a_pickled_copy_keys_the_same_streams() -> None:
    transform = Compose([RandFlip(), RandGaussianNoise()])
    holders = Holders([transform])
    copy: Holders = pickle.loads(pickle.dumps(holders))
    drawn = []
    for each in (holders, copy):
        with each:
            each.key(KEY)
            drawn.append([obj.R.random_sample() for obj in each.randomizables])
    assert drawn[0] == drawn[1]
