"""A against B: published examples, false claims, coverage, power, and what is refused."""

import functools
import math

import numpy as np
import pytest

from repro_callbacks.study import paired
from repro_callbacks.study.paired import compare_all, compare_paired, permutation_p
from tests.study.coverage import SHAPES, least, most

# Darwin's maize, crossed less self-fertilised, in eighths of an inch (Fisher 1935, The Design of Experiments, ch. 3).
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def study(scores):
    return dict(enumerate(scores))


def test_permutation_test_of_fishers_darwin_data():
    # Fisher counts 863 of the 32 768 choices of signs with a sum of 314 or more.
    assert permutation_p(MAIZE) == 2 * 863 / 32768


def test_difference_of_students_sleep_data():
    a = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    b = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = compare_paired(study(a), study(b))
    assert (found.difference.low, found.difference.high) == pytest.approx((-2.4598857633, -0.7001142367))
    assert (found.wins, found.ties) == (0, 1)
    assert found.verdict == "b"
    assert found.meaningful


def test_probability_has_the_exact_binomial_interval():
    # Newcombe (1998), table I, method 5: 15 of 148 gives 0.0578 to 0.1617.
    found = paired._probability(15, 0, 148, 0.95)
    assert (found.low, found.high) == pytest.approx((0.0578, 0.1617), abs=5e-5)
    tied = paired._probability(15, 2, 148, 0.95)
    assert tied.value == 16 / 148
    assert tied.low == found.low
    assert tied.high > found.high


def test_power_is_that_of_published_tables_and_statsmodels():
    # Cohen (1988) and G*Power: 199, 34 and 15 pairs for d = 0.2, 0.5, 0.8; statsmodels 0.14.6 TTestPower below.
    assert [paired.seeds_needed(d, 1.0) for d in (0.1, 0.2, 0.5, 0.8)] == [787, 199, 34, 15]
    assert paired.power(34, 0.5) == pytest.approx(0.8077775012792737)
    assert paired.power(10, 0.3) == pytest.approx(0.13613625849735425)
    for n, effect in ((6, 1.4345451), (20, 0.6604416), (100, 0.2829117)):
        assert paired.detectable_difference(n, 2.0) == pytest.approx(2 * effect, rel=1e-5)


def test_seeds_needed_never_promises_what_the_permutation_test_cannot_show():
    assert paired.seeds_needed(10.0, 1.0) == paired.fewest_pairs() == 6
    assert paired.seeds_needed(0.0, 1.0) is None
    assert paired.seeds_needed(1.0, 0.0) == 6
    assert paired.seeds_needed(1e-9, 1.0) is None


def test_holm_is_that_of_statsmodels():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_no_claim_below_what_n_can_support(n):
    found = compare_paired(study([1.0 + i / 1000 for i in range(n)]), study([0.0] * n))
    assert found.verdict == "too few"
    assert found.p == found.smallest_p == (1.0 if n == 1 else 2.0 ** (1 - n))
    six = compare_paired(study([1.0 + i / 1000 for i in range(6)]), study([0.0] * 6))
    assert six.verdict == "a", "control: six can support it"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [6, pytest.param(10, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow)])
def test_false_claims_are_at_or_under_one_in_twenty(shape, n, monkeypatch):
    # Only what the verdict looks at is computed, so that there can be many studies.
    monkeypatch.setattr(paired.statistics, "bca_mean", paired.statistics.mean)
    monkeypatch.setattr(paired, "seeds_needed", lambda *_: None)
    monkeypatch.setattr(paired, "detectable_difference", lambda *_: math.nan)
    monkeypatch.setattr(paired, "_RESAMPLES", 999)
    monkeypatch.setattr(paired, "_probability", functools.cache(paired._probability))
    draw, _, _ = SHAPES[shape]
    trials = 1000
    rng = np.random.default_rng([n, len(shape)])
    a, b = draw(rng, (trials, n)), draw(rng, (trials, n))
    claims = sum(compare_paired(study(x), study(y)).verdict in ("a", "b") for x, y in zip(a, b, strict=True))
    assert claims <= most(trials, 0.05)
    if (shape, n) == ("normal", 6):  # control: "more than 1.96 standard errors apart" claims more often than that
        differences = a - b
        errors = differences.std(axis=1, ddof=1) / n**0.5
        assert (np.abs(differences.mean(axis=1)) > 1.96 * errors).sum() > most(trials, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["normal", "heavy tails", "skewed"])
@pytest.mark.parametrize("n", [5, 10, 30])
def test_difference_covers(shape, n):
    draw, _, _ = SHAPES[shape]
    trials = 2000
    rng = np.random.default_rng(n)
    differences = 0.3 + draw(rng, (trials, n)) - draw(rng, (trials, n))
    assert sum(0.3 in paired.statistics.mean(d) for d in differences) >= least(trials, 0.95)


@pytest.mark.slow
def test_real_differences_are_found_as_often_as_the_power_says():
    trials, n = 400, 34
    rng = np.random.default_rng(8)
    found = sum(permutation_p(d) <= 0.05 for d in rng.normal(0.5, 1.0, (trials, n)))
    assert least(trials, 0.79) <= found <= most(trials, 0.82)


@pytest.mark.slow
def test_probability_covers():
    trials, n = 1000, 20
    wins = np.random.default_rng(0).binomial(n, 0.75, trials)
    assert sum(0.75 in paired._probability(int(w), 0, n, 0.95) for w in wins) >= least(trials, 0.95)


def test_pairs_are_matched_by_seed_and_the_rest_is_named():
    found = compare_paired({3: 0.5, 1: 0.9, 2: 0.7}, {1: 0.8, 2: 0.7, 4: 0.1})
    assert found.seeds == (1, 2)
    assert found.left_out == (3, 4)
    assert found.differences.tolist() == pytest.approx([0.1, 0.0])


def test_a_metric_to_minimize_turns_the_winner_round():
    low, high = study([0.10, 0.11, 0.12, 0.10, 0.11, 0.13]), study([0.20, 0.22, 0.21, 0.23, 0.25, 0.22])
    assert compare_paired(low, high, maximize=False).verdict == "a"
    assert compare_paired(low, high, maximize=False).probability.value == 1.0
    assert compare_paired(low, high).verdict == "b"


def test_several_variants_are_corrected_for_their_number():
    rng = np.random.default_rng(0)
    variants = {name: study(rng.normal(shift, 1, 25)) for name, shift in (("A", 0), ("B", 0), ("C", 1.2))}
    found = compare_all(variants)
    assert [(pair.a, pair.b) for pair in found] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert all(pair.p_adjusted >= pair.p for pair in found)
    assert found[0].verdict == "not shown"
    assert found[1].verdict == "b"


def test_the_same_scores_make_no_difference():
    found = compare_paired(study([0.5] * 8), study([0.5] * 8))
    assert (found.p, found.verdict, found.needed) == (1.0, "not shown", None)


def test_refusals():
    with pytest.raises(ValueError, match="A and B have no finished seed in common; run both over the same seeds"):
        compare_paired({1: 0.5}, {2: 0.5})
    with pytest.raises(ValueError, match="scores of B must be finite, not inf"):
        compare_paired({1: 0.5}, {1: math.inf})
