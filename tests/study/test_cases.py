"""Per case: who flips, how often two runs disagree, and what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest

from repro_callbacks.study.cases import find_unstable


def long_table(values, metric="right"):
    """Runs in rows, cases in columns, to a long table."""
    rows = [(seed, f"c{i}", v) for seed, scores in enumerate(values) for i, v in enumerate(scores)]
    return pd.DataFrame(rows, columns=["seed", "case", metric])


def test_the_least_stable_case_comes_first():
    found = find_unstable(long_table([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 1]]), "right")
    assert found.binary
    assert found.table["case"].tolist() == ["c1", "c2", "c0"]
    assert found.table["mean"].tolist() == [0.5, 0.25, 1.0]
    assert found.table["entropy"].tolist() == pytest.approx([1.0, 0.8112781, 0.0])
    assert (found.flipping, found.runs) == (2, 4)


def test_churn_is_the_mean_disagreement_of_two_runs():
    values = np.random.default_rng(0).integers(0, 2, (7, 30))
    found = find_unstable(long_table(values), "right")
    pairs = [np.mean(a != b) for a, b in itertools.combinations(values, 2)]
    assert found.churn == pytest.approx(np.mean(pairs))


def test_the_mean_can_stand_still_while_cases_flip():
    found = find_unstable(long_table([[1, 0], [0, 1]] * 4), "right")
    assert found.sd_of_mean == 0
    assert found.flipping == 2


def test_a_continuous_metric_is_ranked_by_its_standard_deviation():
    found = find_unstable(long_table([[0.9, 0.5], [0.9, 0.7], [0.91, 0.1]], "dice"), "dice")
    assert not found.binary
    assert "entropy" not in found.table
    assert found.table["case"].tolist() == ["c1", "c0"]
    assert found.table["sd"][0] == pytest.approx(np.std([0.5, 0.7, 0.1], ddof=1))
    assert found.churn == pytest.approx(found.table["sd"].mean())


def test_rows_in_any_order_and_missing_cases():
    cases = long_table([[1, 1], [0, 1], [0, 1]])
    shuffled = cases.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(find_unstable(cases, "right").table, find_unstable(shuffled, "right").table)
    assert find_unstable(cases.iloc[:-1], "right").table.set_index("case")["n"].to_dict() == {"c0": 3, "c1": 2}


def test_refusals():
    cases = long_table([[1, 0], [1, 1]])
    with pytest.raises(ValueError, match="no column 'dice'; it has seed, case, right"):
        find_unstable(cases, "dice")
    with pytest.raises(ValueError, match="case 'c0' has more than one score for seed 0"):
        find_unstable(pd.concat([cases, cases.iloc[:1]]), "right")
    with pytest.raises(ValueError, match="case 'c1' of seed 0 scores nan"):
        find_unstable(cases.assign(right=[1, np.nan, 1, 1]), "right")
