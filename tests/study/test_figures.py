"""Histogram edges: every score inside, and no teeth where scores lie on a grid."""

import numpy as np
import pytest

from repro_callbacks.study.figures import _edges

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "values",
    [
        RNG.normal(size=300),
        np.round(RNG.normal(0.95, 0.02, 500) * 500) / 500,
        np.array([0.3, 0.7]),
        np.zeros(4),
        -np.ones(3),
    ],
    ids=["continuous", "grid", "two", "zeros", "all the same"],
)
def test_every_score_is_in_a_bin(values):
    edges = _edges(values)
    assert (np.diff(edges) > 0).all()
    assert np.histogram(values, edges)[0].sum() == len(values)


def test_bins_of_a_grid_hold_the_same_number_of_its_points():
    values = np.arange(430, 490) / 500
    counts = np.histogram(values, _edges(values))[0]
    assert len(set(counts[:-1])) == 1
    plain = np.histogram(values, np.linspace(values.min(), values.max(), 24))[0]
    assert len(set(plain[:-1])) > 1, "control: edges that ignore the grid show teeth"
