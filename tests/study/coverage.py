"""Simulated studies with a known truth, and how far a rate that was counted may be off."""

import numpy as np
from scipy import stats

# name -> (draw(rng, shape), mean, standard deviation)
SHAPES = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0, 1.0),
    "heavy tails": (lambda rng, shape: rng.standard_t(5, size=shape), 0.0, (5 / 3) ** 0.5),
    "skewed": (lambda rng, shape: -rng.gamma(4.0, size=shape), -4.0, 2.0),
    "flat": (lambda rng, shape: rng.random(shape), 0.5, (1 / 12) ** 0.5),
    "rare bad runs": (
        lambda rng, shape: np.where(rng.random(shape) < 0.05, rng.normal(-8, 1, shape), rng.normal(0, 1, shape)),
        -0.4,
        (1 + 0.05 * 0.95 * 64) ** 0.5,
    ),
}


def least(trials, rate):
    """The fewest hits that a true rate gives in all but one of 10 000 such simulations."""
    return int(stats.binom.ppf(1e-4, trials, rate))


def most(trials, rate):
    """The most hits, likewise."""
    return int(stats.binom.ppf(1 - 1e-4, trials, rate))
