"""From a table of runs to what counts: failed, repeated and unsorted rows, variants, and seeds without effect."""

import numpy as np
import pandas as pd
import pytest

from repro_callbacks.study.analysis import analyse
from tests.study import tables


def test_failed_runs_and_runs_without_a_finite_score_are_kept_apart_and_named():
    runs = tables.runs(10)
    runs.loc[2, ["status", "val_dice"]] = ["failed", np.nan]
    runs["error"] = ["", "", "RuntimeError: out of memory", *[""] * 7]
    runs.loc[5, "val_dice"] = np.inf
    found = analyse(runs, "val_dice")
    assert found.variants[0].distribution.n == 8
    assert found.asked == 10
    assert found.failed["seed"].tolist() == [2, 5]
    assert found.failed["why"].tolist() == [
        "RuntimeError: out of memory",
        "it ended, but val_dice is not a finite number",
    ]


def test_a_failed_run_with_a_score_does_not_count():
    runs = tables.runs(10)
    runs.loc[2, "status"] = "failed"
    assert 2 not in analyse(runs, "val_dice").variants[0].distribution.seeds


def test_the_same_run_twice_counts_once_and_other_bits_are_reported():
    runs = tables.runs(10)
    twice = pd.concat([runs, runs.iloc[[3]]])
    found = analyse(twice, "val_dice")
    assert found.variants[0].distribution.n == 10
    assert found.repeats == ()
    twice.iloc[-1, twice.columns.get_loc("val_dice")] += 1e-12
    assert analyse(twice, "val_dice").repeats == (("", 3),)


def test_seeds_with_the_same_weights_are_reported():
    runs = tables.runs(10)
    runs.loc[[1, 4, 7], "weights"] = "same"
    assert analyse(runs, "val_dice").variants[0].same_weights == ((1, 4, 7),)
    assert analyse(tables.runs(10), "val_dice").variants[0].same_weights == ()


def test_runs_that_vary_one_purpose_are_sources_and_not_part_of_the_distribution():
    rows = [{"seed": s, "vary": "all", "seed_order": s, "seed_init": s, "acc": 0.8 + s / 100} for s in range(1, 6)]
    rows += [{"seed": s, "vary": "order", "seed_order": s, "seed_init": 0, "acc": 0.5 + s / 100} for s in range(6)]
    rows += [{"seed": s, "vary": "init", "seed_order": 0, "seed_init": s, "acc": 0.5 - s / 100} for s in range(6)]
    found = analyse(pd.DataFrame(rows), "acc").variants[0]
    assert found.distribution.minimum == 0.81
    assert [(s.purpose, s.n) for s in found.sources.sources] == [("order", 6), ("init", 6)]
    assert found.sources.together.n == 5
    only = pd.DataFrame(rows[5:11])
    assert analyse(only, "acc").variants[0].varied == "order"


def test_two_variants_are_compared_by_seed():
    runs = tables.runs(20, ("A", "B"), shift=0.01)
    found = analyse(runs[~((runs["variant"] == "A") & (runs["seed"] == 3))], "val_dice")
    assert [v.name for v in found.variants] == ["A", "B"]
    (pair,) = found.comparisons
    assert (pair.verdict, pair.n, pair.left_out) == ("b", 19, (3,))


def test_cases_of_each_variant_are_looked_at_apart():
    runs = tables.runs(10, ("A", "B"))
    cases = pd.concat([tables.cases().assign(variant="A"), tables.cases().assign(variant="B", right=1)])
    a, b = analyse(runs, "val_dice", cases).variants
    assert (a.stability.flipping, b.stability.flipping) == (5, 0)
    assert a.case_metric == "right"


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [(["dice", "aux", "val_dice"], "val_dice"), (["aux", "dice"], "dice"), (["hd", "aux"], "aux")],
)
def test_the_score_of_cases_is_named_like_the_metric_or_its_end(columns, chosen):
    cases = pd.DataFrame({"seed": [1, 2], "case": ["x", "x"], **{c: [0.5, 0.6] for c in columns}})
    assert analyse(tables.runs(3), "val_dice", cases).variants[0].case_metric == chosen


def test_a_repetition_that_differed_is_reported():
    runs = tables.runs(4).assign(check=["same", "", "differs", "failed"])
    assert analyse(runs, "val_dice").repeats == (("", 2), ("", 3))


def test_holdout_scores_are_used_only_if_every_run_has_one():
    runs = tables.runs(10)
    assert analyse(runs, "val_dice").variants[0].selection.holdout is not None
    runs.loc[0, "holdout_val_dice"] = np.nan
    assert analyse(runs, "val_dice").variants[0].selection.holdout is None


def test_the_metric_comes_first_and_bookkeeping_is_no_metric():
    runs = tables.runs(10).assign(aux=0.5, attempts=1)
    assert analyse(runs, "val_dice").metrics == ("val_dice", "holdout_val_dice", "aux")


def test_refusals():
    with pytest.raises(ValueError, match="the table of runs has no column 'acc'; it has seed, status, val_dice"):
        analyse(tables.runs(3), "acc")
    with pytest.raises(ValueError, match="status must be 'done' or 'failed', not 'running'"):
        analyse(tables.runs(3).assign(status="running"), "val_dice")
    with pytest.raises(ValueError, match=r"confidence must be above 0.5 and below 1, not 95"):
        analyse(tables.runs(3), "val_dice", confidence=95)
    with pytest.raises(ValueError, match="the table of cases has no column of scores; it has seed, case"):
        analyse(tables.runs(3), "val_dice", pd.DataFrame({"seed": [1], "case": ["x"]}))
