"""One metric over seeds: noise between two runs, outliers, ranks."""

import math

import numpy as np
import pytest
from scipy import stats

from repro_callbacks.study import distribution
from repro_callbacks.study.distribution import describe, find_outliers, modified_z, noise
from tests.study.coverage import most


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5, 20, 100])
def test_noise_threshold_is_exceeded_by_one_chance_difference_in_twenty(n):
    trials = 20_000
    rng = np.random.default_rng(n)
    studies, gains = rng.normal(size=(trials, n)), np.diff(rng.normal(size=(trials, 2)))[:, 0]
    thresholds = np.array([noise_threshold(x) for x in studies[:2000]])
    assert (np.abs(gains[:2000]) > thresholds).sum() <= most(2000, 0.05)
    if n <= 5:  # control: with 1.96 in place of Student's quantile, far more pass
        naive = 1.96 * math.sqrt(2) * studies.std(axis=1, ddof=1)
        assert (np.abs(gains) > naive).sum() > most(trials, 0.09)


def noise_threshold(scores):
    return noise(scores).threshold.value


def test_noise_of_many_runs_is_1_96_root_2_sd():
    scores = np.random.default_rng(0).normal(size=5000)
    found = noise(scores)
    assert found.threshold.value == pytest.approx(1.96 * math.sqrt(2) * scores.std(ddof=1), rel=1e-3)
    assert found.spread.value == pytest.approx(found.threshold.value / math.sqrt(2))
    assert found.threshold.low < 1.96 * math.sqrt(2) < found.threshold.high
    assert found.exceeded == pytest.approx(0.05, abs=0.003)


def test_share_of_pairs_is_counted_over_all_pairs():
    scores = np.random.default_rng(2).integers(0, 9, 30).astype(float)
    found = noise(scores)
    distances = [abs(a - b) for i, a in enumerate(scores) for b in scores[:i]]
    assert found.exceeded == np.mean([d > found.threshold.value for d in distances])
    assert found.largest == max(distances)
    assert found.observed == pytest.approx(np.quantile(distances, 0.95, method="inverted_cdf"))


def test_modified_z_of_iglewicz_and_hoaglins_example():
    # The ten measurements of Iglewicz & Hoaglin (1993): median 2.45, MAD 0.15; two are outliers.
    data = [2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3]
    z = modified_z(data)
    assert z[8:] == pytest.approx([0.6745 * 5.75 / 0.15, 0.6745 * 5.85 / 0.15])
    found = find_outliers(data, range(10))
    assert found.seeds == (8, 9)
    assert found.scores == (8.2, 8.3)
    assert found.p < 0.05


def test_outliers_are_expected_at_the_rate_that_is_stated():
    many = find_outliers(np.random.default_rng(1).normal(size=2000), range(2000))
    assert many.expected == pytest.approx(2000 * 2 * stats.norm.sf(3.5), rel=0.1)
    few = distribution._outliers_of_normal_studies(20).mean()
    assert few > 4 * 20 * 2 * stats.norm.sf(3.5), "in small studies the MAD is uncertain, and more are beyond the limit"
    found = [len(find_outliers(x, range(20)).seeds) for x in np.random.default_rng(3).normal(size=(2000, 20))]
    assert np.mean(found) == pytest.approx(few, rel=0.25)


def test_fewer_than_ten_runs_show_no_outlier():
    assert find_outliers([1.0, 1.1, 1.2, 1.1, 9.0], range(5)).seeds == ()


def test_a_median_shared_by_more_than_half_falls_back_on_the_mean_deviation():
    z = modified_z([1.0] * 19 + [2.0])
    assert z[-1] == pytest.approx(1 / (1.2533 * 1 / 20))
    assert not modified_z([1.0] * 20).any()


def test_order_of_runs_does_not_matter():
    rng = np.random.default_rng(0)
    scores, shuffled = rng.normal(size=30), rng.permutation(30)
    a, b = describe(scores), describe(scores[shuffled], seeds=shuffled)
    assert a.seeds == b.seeds
    assert (a.mean, a.interquartile_mean, a.noise) == (b.mean, b.interquartile_mean, b.noise)


def test_rank():
    found = describe([0.8, 0.9, 0.7, 0.9], seeds=[7, 42, 1, 3407])
    assert [found.rank(seed) for seed in (42, 3407, 7, 1)] == [2, 2, 3, 4]
    with pytest.raises(KeyError, match="seed 5 has no finished run"):
        found.rank(5)


def test_what_one_run_and_equal_runs_say():
    one = describe([0.8])
    assert one.n == 1
    assert math.isnan(one.noise.threshold.value)
    same = describe([0.8] * 12)
    assert same.noise.threshold.value == 0
    assert same.outliers.seeds == ()
    assert math.isnan(same.skewness)


def test_refusals():
    with pytest.raises(ValueError, match="2 seeds were given for 3 scores"):
        describe([0.1, 0.2, 0.3], seeds=[1, 2])
    with pytest.raises(ValueError, match="seed 1 occurs more than once"):
        describe([0.1, 0.2], seeds=[1, 1])
