"""Sources of variance: found by their seeds, measured with intervals that cover, added up or not."""

import itertools

import numpy as np
import pandas as pd
import pytest

from repro_callbacks.study.statistics import Estimate
from repro_callbacks.study.variance import combine, find_sources
from tests.study.coverage import least

PURPOSES = ("order", "augment", "init", "step")
TRUTH = dict(zip(PURPOSES, (1.0, 0.5, 2.0, 0.0), strict=True))


def design(n, base=0):
    """Each purpose varied alone at one base, and n runs in which all vary."""
    rows = [[base] * 4]
    rows += [[base] * i + [100 + k] + [base] * (3 - i) for i, k in itertools.product(range(4), range(n - 1))]
    rows += [[1000 + k] * 4 for k in range(n)]
    return pd.DataFrame(rows, columns=[f"seed_{p}" for p in PURPOSES])


def additive(runs, rng):
    """A score that is a sum of what each seed draws."""
    score = np.zeros(len(runs))
    for purpose, deviation in TRUTH.items():
        draws = {seed: rng.normal(0, deviation) for seed in sorted(set(runs[f"seed_{purpose}"]))}
        score += runs[f"seed_{purpose}"].map(draws).to_numpy()
    return score


def test_sources_are_told_apart_by_their_seeds():
    runs = design(200)
    runs["acc"] = additive(runs, np.random.default_rng(0))
    found = find_sources(runs, "acc")
    assert [(s.purpose, s.n) for s in found.sources] == [(p, 200) for p in PURPOSES]
    for source in found.sources[:3]:
        assert source.standard_deviation.value == pytest.approx(TRUTH[source.purpose], rel=0.2)
    assert found.sources[3].variance.value == 0, "a seed that changes nothing is not used"
    assert found.together.n == 200
    assert found.together.variance.value == pytest.approx(5.25, rel=0.3)
    assert found.remainder.low < 0 < found.remainder.high
    assert [s.share.value for s in found.sources] == pytest.approx([1 / 5.25, 0.25 / 5.25, 4 / 5.25, 0], abs=0.2)


def test_order_of_rows_does_not_matter():
    runs = design(10)
    runs["acc"] = additive(runs, np.random.default_rng(0))
    a, b = find_sources(runs, "acc"), find_sources(runs.sample(frac=1, random_state=1), "acc")
    for one, other in zip(a.sources, b.sources, strict=True):
        assert one.variance.value == pytest.approx(other.variance.value)


@pytest.mark.slow
def test_intervals_of_variance_share_and_remainder_cover():
    trials, hits = 400, np.zeros(3)
    for trial in range(trials):
        runs = design(25)
        runs["acc"] = additive(runs, np.random.default_rng(trial))
        found = find_sources(runs, "acc")
        hits += [2.0**2 in found.sources[2].variance, 4 / 5.25 in found.sources[2].share, 0 in found.remainder]
    assert hits.min() >= least(trials, 0.945)


def test_sources_that_interact_leave_a_remainder():
    runs = design(200)
    rng = np.random.default_rng(1)
    # The score is the product of two draws whose base values are small: alone they hardly matter, together they do.
    draws = {s: rng.normal() for s in sorted({*runs["seed_order"], *runs["seed_init"]})}
    draws[0] = 0.1
    pairs = zip(runs["seed_order"], runs["seed_init"], strict=True)
    other = {s: rng.normal() for s in draws} | {0: 0.1}
    runs["acc"] = [draws[o] * other[i] for o, i in pairs]
    assert find_sources(runs, "acc").remainder.low > 0


def test_mover_agrees_with_statsmodels():
    # statsmodels 0.14.6, _inference_tools._mover_confint(5, 2, (3, 9), (1, 4), contrast="diff")
    found = combine([Estimate(5, 3, 9, ""), Estimate(2, 1, 4, "")], [1, -1])
    assert (found.low, found.high) == pytest.approx((0.1715728752538097, 7.123105625617661))


def test_several_bases_are_pooled_without_their_own_differences():
    runs = pd.DataFrame(
        {
            "seed_order": [0, 1, 2, 0, 1, 2],
            "seed_init": [0, 0, 0, 9, 9, 9],
            "acc": [1.0, 2.0, 3.0, 101.0, 102.0, 103.0],
        }
    )
    found = find_sources(runs, "acc")
    order = next(s for s in found.sources if s.purpose == "order")
    assert order.variance.value == pytest.approx(1.0)
    assert found.bases == 3
    assert found.together is None
    assert order.share is None


def test_runs_that_vary_some_purposes_only_are_left_out_and_counted():
    runs = design(5)
    partly = pd.DataFrame([[7, 7, 0, 0], [8, 8, 0, 0]], columns=runs.columns)
    runs = pd.concat([runs, partly], ignore_index=True)
    runs["acc"] = np.arange(len(runs), dtype=float)
    found = find_sources(runs, "acc")
    assert found.left_out == 2
    assert found.together.n == 5


def test_no_source_without_a_purpose_varied_alone():
    runs = pd.DataFrame({"seed_order": [1, 2, 3], "seed_init": [1, 2, 3], "acc": [0.1, 0.2, 0.3]})
    assert find_sources(runs, "acc") is None
    assert find_sources(runs[["seed_order", "acc"]], "acc") is None
