"""The best of n: exact against enumeration, and what carries over to other data in a simulation."""

import itertools

import numpy as np
import pytest

from repro_callbacks.study.selection import best_of, select_best


def test_best_of_k_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    scores, carried = rng.integers(0, 5, 8).astype(float), rng.normal(size=8)
    for k in range(1, 9):
        choices = [list(c) for c in itertools.combinations(range(8), k)]
        assert best_of(scores, [k])[0] == pytest.approx(np.mean([scores[c].max() for c in choices]))
        # of the runs that share the best score, each is as likely to be picked
        picked = [carried[c][scores[c] == scores[c].max()].mean() for c in choices]
        assert best_of(scores, [k], carried)[0] == pytest.approx(np.mean(picked))


def test_carried_scores_follow_the_picked_run():
    rng = np.random.default_rng(1)
    scores, carried = rng.normal(size=7), rng.normal(size=7)
    for k in range(1, 8):
        choices = [list(c) for c in itertools.combinations(range(7), k)]
        picked = [carried[max(c, key=scores.__getitem__)] for c in choices]
        assert best_of(scores, [k], carried)[0] == pytest.approx(np.mean(picked))


def test_expected_gain_is_the_mean_of_the_largest_normal():
    # Harter (1961): the largest of 10 standard normals is 1.53875 on average, of 100 2.50759.
    scores = np.random.default_rng(0).normal(size=100)
    found = select_best(scores, range(100))
    assert found.expected == pytest.approx(2.50759 * scores.std(ddof=1), rel=1e-5)
    assert found.gain == pytest.approx(scores.max() - scores.mean())
    assert found.curve[0] == pytest.approx(0, abs=1e-12)
    assert found.curve[-1] == pytest.approx(found.gain)
    assert (np.diff(found.curve) > 0).all()


def test_ten_thousand_runs_lose_no_precision():
    scores = np.random.default_rng(0).normal(size=10_000)
    found = select_best(scores, range(10_000))
    assert found.curve[-1] == pytest.approx(scores.max() - scores.mean(), abs=1e-8)
    assert len(found.sizes) <= 100


@pytest.mark.slow
def test_pure_noise_gains_nothing_elsewhere_and_a_real_difference_does():
    rng = np.random.default_rng(4)
    luck, real = [], []
    for _ in range(400):
        talent = rng.normal(size=30)
        a, b = rng.normal(size=(2, 30))
        luck.append(select_best(a, range(30), holdout=b).holdout.gain)
        real.append(select_best(talent + a, range(30), holdout=talent + b).holdout.gain)
    standard_error = 1 / 400**0.5
    assert abs(np.mean(luck)) < 4 * standard_error
    assert np.mean(real) == pytest.approx(2.0428 / 2**0.5, abs=4 * 1.5 * standard_error)  # half the variance is real


def test_a_metric_to_minimize_picks_the_smallest_and_gains_are_still_positive():
    found = select_best([0.3, 0.1, 0.2], [5, 6, 7], maximize=False, holdout=[0.3, 0.2, 0.1])
    assert (found.seed, found.score, found.gain) == (6, 0.1, pytest.approx(0.1))
    assert found.holdout.gain == pytest.approx(0.0)
    assert found.holdout.rank == 2


def test_ties_pick_the_smallest_seed_whatever_the_order():
    assert select_best([0.9, 0.9, 0.1], [42, 7, 1]).seed == 7
    assert select_best([0.9, 0.1, 0.9], [7, 1, 42]).seed == 7


def test_one_run_gains_nothing():
    found = select_best([0.5], [1])
    assert found.gain == 0
    assert found.sizes == (1,)


def test_refusals():
    with pytest.raises(ValueError, match="sizes must be from 1 to the 3 runs there are"):
        best_of([1.0, 2.0, 3.0], [4])
    with pytest.raises(ValueError, match="holdout must have one score for each of the 3 runs, not 2"):
        select_best([1.0, 2.0, 3.0], [1, 2, 3], holdout=[1.0, 2.0])
