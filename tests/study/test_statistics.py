"""Intervals: against published values and other implementations, and their coverage of a known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from repro_callbacks.study import statistics
from tests.study.coverage import SHAPES, least

# Student's sleep data (1908), the differences of ten patients; the interval is that of R's t.test and of statsmodels.
SLEEP = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]


def test_mean_of_students_sleep_data():
    found = statistics.mean(SLEEP)
    assert found.value == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-2.4598857633, -0.7001142367), abs=1e-9)


def test_standard_deviation_is_bonetts_formula():
    # Worked out step by step from the definition in the paper; trimming 1/(2 sqrt(6)) cuts 2 of 10 values at each end.
    x = np.array(SLEEP)
    centre = np.sort(x)[2:8].mean()
    kurtosis = 10 * np.sum((x - centre) ** 4) / np.sum((x - x.mean()) ** 2) ** 2
    c = 10 / (10 - 1.959963984540054)
    half = 1.959963984540054 * c * math.sqrt((kurtosis - 7 / 10) / 9)
    found = statistics.standard_deviation(SLEEP)
    assert found.value == pytest.approx(1.229995, abs=1e-6)
    middle = math.log(c * found.value**2)
    assert found.low == pytest.approx(math.sqrt(math.exp(middle - half)))
    assert found.high == pytest.approx(math.sqrt(math.exp(middle + half)))


def test_standard_deviation_of_few_values_is_the_chi2_interval():
    found = statistics.standard_deviation([1.0, 2.0, 3.0])
    # chi² quantiles with 2 degrees of freedom are -2 ln(p): 7.3778 and 0.0506
    assert (found.low, found.high) == pytest.approx((math.sqrt(2 / 7.377759), math.sqrt(2 / 0.0506356)), rel=1e-5)


def test_median_interval_is_made_of_order_statistics():
    # Tables of the sign test: with 10 values the 2nd and the 9th smallest hold the median with 97.9 % confidence.
    found = statistics.median(np.arange(1.0, 11.0))
    assert (found.value, found.low, found.high) == (5.5, 2.0, 9.0)


def test_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert statistics.interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0]).value == 3.5


def test_bca_agrees_with_efron_and_tibshirani():
    # Efron & Tibshirani (1993), table 14.1-14.2: test A of 26 children, BCa 90 % interval of the (plug-in) variance
    # from 2000 resamples: (115.8, 259.6). Their resamples are others, so the ends agree to some percent.
    spatial = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]
    found = statistics.bca(spatial, np.var, confidence=0.9)
    assert found.value == pytest.approx(171.5, abs=0.05)
    assert (found.low, found.high) == pytest.approx((115.8, 259.6), rel=0.03)


def test_intervals_repeat_bit_for_bit():
    scores = np.random.default_rng(1).normal(size=40)
    assert statistics.interquartile_mean(scores) == statistics.interquartile_mean(scores)
    other = stats.bootstrap((scores,), np.mean, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    assert statistics.bca_mean(scores).low != other.low, "a generator that isn't fixed would not be noticed"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [10, 30, 100])
def test_mean_covers(shape, n):
    draw, truth, _ = SHAPES[shape]
    trials = 2000
    hits = sum(truth in statistics.mean(x) for x in draw(np.random.default_rng(n), (trials, n)))
    # A small study with rare bad runs has often met none: no interval that sees only its scores can hold the truth.
    floor = {
        ("rare bad runs", 10): 0.70,
        ("rare bad runs", 30): 0.75,
        ("rare bad runs", 100): 0.90,
        ("skewed", 10): 0.935,
    }
    assert hits >= least(trials, floor.get((shape, n), 0.95))


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10, 30, 100])
def test_standard_deviation_covers_normal_scores(n):
    trials = 2000
    draws = np.random.default_rng(n).normal(size=(trials, n))
    assert sum(1.0 in statistics.standard_deviation(x) for x in draws) >= least(trials, 0.945)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
def test_standard_deviation_stands_what_the_chi2_interval_does_not(n):
    draw, _, truth = SHAPES["heavy tails"]
    trials = 2000
    draws = draw(np.random.default_rng(5), (trials, n))
    hits = sum(truth in statistics.standard_deviation(x) for x in draws)
    low, high = (np.sqrt((n - 1) / stats.chi2.ppf(p, n - 1)) for p in (0.975, 0.025))
    deviations = draws.std(axis=1, ddof=1)
    chi2_hits = int(((deviations * low <= truth) & (truth <= deviations * high)).sum())
    assert hits >= least(trials, 0.90)
    assert chi2_hits < least(trials, 0.90), "control: the interval that was not chosen fails here"


@pytest.mark.slow
def test_bca_covers_from_the_number_that_is_stated():
    trials = 1000
    rng = np.random.default_rng(3)
    enough = rng.normal(size=(trials, statistics.BCA_COVERS_FROM))
    few = rng.normal(size=(trials, 5))
    assert sum(0.0 in statistics.bca_mean(x) for x in enough) >= least(trials, 0.92)
    assert sum(0.0 in statistics.bca_mean(x) for x in few) < least(trials, 0.92), "control: five are too few"
    assert sum(0.0 in statistics.interquartile_mean(x) for x in enough) >= least(trials, 0.90)


def test_what_too_few_or_equal_values_give():
    assert math.isnan(statistics.mean([1.0]).low)
    assert math.isnan(statistics.standard_deviation([1.0]).value)
    assert math.isnan(statistics.median([1.0, 2.0, 3.0]).low)
    same = statistics.standard_deviation([0.5] * 10)
    assert same.value == 0
    assert math.isnan(same.low)
    assert math.isnan(statistics.bca_mean([0.5] * 10).low)


def test_scores_that_are_refused():
    with pytest.raises(ValueError, match=r"scores must be finite, not nan; leave out runs that gave no score"):
        statistics.mean([1.0, float("nan")])
    with pytest.raises(ValueError, match=r"must have one dimension, not shape \(2, 2\)"):
        statistics.mean(np.ones((2, 2)))
    with pytest.raises(ValueError, match="must have 1 values or more, not 0"):
        statistics.mean([])
