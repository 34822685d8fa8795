"""Keyed draws are sound: uniform, and uncorrelated across samples, epochs, seeds and holders.

The seeds are fixed, so the figures are the same each time. A family of tests fails if one of its p-values is below
:data:`LEVEL` divided by their number (Bonferroni): had the draws been truly random, one choice of seeds in a thousand
would have failed.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Randomizable
from numpy.typing import NDArray
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from repro_callbacks import keyed, keys
from repro_callbacks.loading import holders, order

LEVEL = 1e-3
SEEDS, EPOCHS, SAMPLES, DRAWS = (3407, 3408), 4, 300, 3
HOLDERS = ("transform 0", "transform 1", "transform 2", "numpy", "torch", "python", "np.random", "torch.rand", "random")

Draws = NDArray[np.float64]
"""Uniform numbers of shape (seeds, epochs, samples, holders, draws)."""


class Transform(Randomizable):
    def __call__(self) -> list[float]:
        return [float(self.R.random_sample()) for _ in range(DRAWS)]


class Numbers(Dataset[Any]):
    """What every kind of holder of a generator draws for a sample."""

    def __init__(self) -> None:
        self.transforms = [Transform(), Transform(), Transform()]
        self.numpy, self.torch, self.python = np.random.default_rng(0), torch.Generator(), random.Random(0)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        drawn = [transform() for transform in self.transforms]
        kept = [self.numpy.random(DRAWS), torch.rand(DRAWS, generator=self.torch, dtype=torch.float64)]
        kept += [[self.python.random() for _ in range(DRAWS)], np.random.rand(DRAWS)]
        kept += [torch.rand(DRAWS, dtype=torch.float64), [random.random() for _ in range(DRAWS)]]
        return torch.tensor(np.array([*drawn, *(np.asarray(one) for one in kept)]))


def draw() -> Draws:
    loaders = [keyed(DataLoader(Numbers(), batch_size=50), seed) for seed in SEEDS]
    return np.array([[np.concatenate([b.numpy() for b in loader]) for _ in range(EPOCHS)] for loader in loaders])


@pytest.fixture(scope="module")
def draws() -> Draws:
    return draw()


# -- the tests of which each family is made ----------------------------------------------------------------------------


def uniformity(draws: Draws) -> dict[str, float]:
    """Kolmogorov-Smirnov, for each holder and each of its draws."""
    values = draws.reshape(-1, *draws.shape[-2:])
    places = itertools.product(range(values.shape[1]), range(values.shape[2]))
    return {f"holder {h} draw {d}": stats.kstest(values[:, h, d], "uniform").pvalue for h, d in places}


def pairs_fill_the_square(draws: Draws) -> dict[str, float]:
    """Chi-squared on a grid of 8 by 8: two draws one after the other, and the first of two neighbouring samples."""
    found = {}
    for h in range(draws.shape[-2]):
        first, second = draws[..., h, 0].ravel(), draws[..., h, 1].ravel()
        found[f"holder {h}: draws"] = _grid(first, second)
        found[f"holder {h}: samples"] = _grid(draws[..., :-1, h, 0].ravel(), draws[..., 1:, h, 0].ravel())
    return found


def _grid(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    counts, _, _ = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])
    return float(stats.chisquare(counts.ravel()).pvalue)


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(stats.pearsonr(a.ravel(), b.ravel()).pvalue)


def across_samples(draws: Draws) -> dict[str, float]:
    """Between each sample and the ones 1, 2, 3 and 50 (a batch) after it, for each holder."""
    lags = [lag for lag in (1, 2, 3, 50) if lag < draws.shape[2]]
    return {
        f"holder {h} lag {lag}": correlation(draws[:, :, lag:, h], draws[:, :, :-lag, h])
        for h, lag in itertools.product(range(draws.shape[3]), lags)
    }


def across_epochs(draws: Draws) -> dict[str, float]:
    """Between each two epochs: the same sample, and the sample after it (as where seeds and epochs are added)."""
    found = {}
    for (a, b), h in itertools.product(itertools.permutations(range(draws.shape[1]), 2), range(draws.shape[3])):
        found[f"holder {h} epochs {a}, {b}"] = correlation(draws[:, a, :, h], draws[:, b, :, h])
        found[f"holder {h} epochs {a}, {b} shifted"] = correlation(draws[:, a, 1:, h], draws[:, b, :-1, h])
    return found


def across_seeds(draws: Draws) -> dict[str, float]:
    """Between two neighbouring seeds: the same epoch, and the epoch after it."""
    found = {}
    for h in range(draws.shape[3]):
        found[f"holder {h}"] = correlation(draws[0, :, :, h], draws[1, :, :, h])
        found[f"holder {h} shifted"] = correlation(draws[0, 1:, :, h], draws[1, :-1, :, h])
    return found


def across_holders(draws: Draws) -> dict[str, float]:
    """Between each two holders of a sample, draw by draw and one draw later."""
    found = {}
    for a, b in itertools.permutations(range(draws.shape[3]), 2):
        found[f"holders {a}, {b}"] = correlation(draws[..., a, :], draws[..., b, :])
        found[f"holders {a}, {b} later"] = correlation(draws[..., a, 1:], draws[..., b, :-1])
    return found


FAMILIES = (uniformity, pairs_fill_the_square, across_samples, across_epochs, across_seeds, across_holders)


def failures(p_values: dict[str, float]) -> dict[str, float]:
    return {name: p for name, p in p_values.items() if not p >= LEVEL / len(p_values)}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_keyed_draws_are_sound(draws: Draws, family: Any) -> None:
    assert draws.shape == (len(SEEDS), EPOCHS, SAMPLES, len(HOLDERS), DRAWS)
    assert failures(family(draws)) == {}


def test_no_number_comes_twice(draws: Draws) -> None:
    assert len(np.unique(draws)) == draws.size


def test_normal_draws_leave_nothing_over_for_the_next_sample() -> None:
    class Normal(Randomizable, Dataset[Any]):
        def __len__(self) -> int:
            return 3000

        def __getitem__(self, index: int) -> Any:
            return self.R.normal(size=3)  # an odd number: a RandomState keeps the second of a pair

    values = np.concatenate([batch.numpy() for batch in keyed(DataLoader(Normal(), 100), 1)])
    p_values = {f"draw {d}": stats.kstest(values[:, d], "norm").pvalue for d in range(3)}
    p_values |= {f"{a}, {b}": correlation(values[1:, a], values[:-1, b]) for a in range(3) for b in range(3)}
    assert failures(p_values) == {}


# -- orders ------------------------------------------------------------------------------------------------------------

ITEMS, PASSES = 12, 2400


def orders(key: Any) -> NDArray[np.int64]:
    loader: DataLoader[Any] = DataLoader(range(ITEMS), batch_size=ITEMS, shuffle=True)  # type: ignore[arg-type]
    return np.array([next(order.batches(loader, key(epoch)))[0] for epoch in range(PASSES)])


def order_p_values(found: NDArray[np.int64]) -> dict[str, float]:
    """Each index is equally often at each place, and the orders of neighbouring epochs have nothing in common."""
    p_values = {f"place {i}": stats.chisquare(np.bincount(found[:, i], minlength=ITEMS)).pvalue for i in range(ITEMS)}
    matches = np.bincount((found[1:] == found[:-1]).sum(1), minlength=ITEMS + 1)
    # How many items of a shuffled order stay in place is nearly a Poisson variable with mean 1.
    expected = stats.poisson.pmf(np.arange(5), 1.0)
    observed = np.append(matches[:4], matches[4:].sum())
    expected[4] = 1 - expected[:4].sum()
    p_values["matches"] = stats.chisquare(observed, expected * observed.sum()).pvalue
    return p_values


def test_orders_are_uniform_and_independent() -> None:
    assert failures(order_p_values(orders(lambda epoch: keys.derive(3407, "order", "train", 0, epoch, 0)))) == {}


def test_an_order_that_half_repeats_is_found() -> None:
    found = orders(lambda epoch: keys.derive(3407, "order", "train", 0, epoch // 2, 0))
    assert set(failures(order_p_values(found))) >= {"matches"}


# -- each family finds what it is there for ----------------------------------------------------------------------------


def added() -> Draws:
    """Seed with seed + epoch + index, as many do by hand."""
    return np.array(
        [
            [[[np.random.RandomState(s + e + i).random_sample(DRAWS)] for i in range(SAMPLES)] for e in range(EPOCHS)]
            for s in SEEDS
        ]
    )


def test_seeds_that_are_added_are_found() -> None:
    draws = added()
    assert any("shifted" in name for name in failures(across_epochs(draws)))
    assert failures(across_seeds(draws))


@pytest.mark.slow
def test_one_stream_for_all_transforms_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = holders.stream_words
    monkeypatch.setattr(holders, "stream_words", lambda key, count: plain(key, 1) * count)
    assert {"holders 0, 1", "holders 0, 2", "holders 1, 2"} <= set(failures(across_holders(draw())))


@pytest.mark.slow
def test_a_key_without_the_epoch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(place: Any, *position: Any) -> bytes:
        return keys.derive(*(place[:4] + place[5:] if place[1] == "sample" else place), *position)

    monkeypatch.setattr(keys, "derive_within", forgetful)
    assert failures(across_epochs(draw()))


@pytest.mark.slow
def test_a_key_without_the_index_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(place: Any, *position: Any) -> bytes:
        return keys.derive(*place, *(() if place[1] == "sample" else position))

    monkeypatch.setattr(keys, "derive_within", forgetful)
    assert failures(across_samples(draw()))


def test_numbers_that_are_not_uniform_are_found(draws: Draws) -> None:
    assert failures(uniformity(draws**1.2))
    assert failures(pairs_fill_the_square(draws**1.2))
