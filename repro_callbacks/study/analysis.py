"""From the table of runs to everything that a report says: which rows count, which don't and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from repro_callbacks.keys import PURPOSES
from repro_callbacks.study.cases import Stability, find_unstable
from repro_callbacks.study.distribution import Distribution, describe
from repro_callbacks.study.metric import Metric
from repro_callbacks.study.paired import PairedComparison, compare_all
from repro_callbacks.study.selection import Selection, select_best
from repro_callbacks.study.statistics import CONFIDENCE
from repro_callbacks.study.variance import Sources, find_sources

if TYPE_CHECKING:
    import pandas as pd

PURPOSE_COLUMNS: Final = tuple(f"seed_{purpose}" for purpose in PURPOSES)
_BOOKKEEPING: Final = {"seed", "seconds", "attempts", "case", *PURPOSE_COLUMNS}


@dataclass(frozen=True)
class VariantAnalysis:
    """One variant of the training over seeds. ``name`` is ``""`` if the study has only one."""

    name: str
    varied: str
    distribution: Distribution | None
    selection: Selection | None
    sources: Sources | None
    stability: Stability | None
    case_metric: str
    same_weights: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Analysis:
    """A whole study.

    Attributes:
        metric: What is studied.
        confidence: Of all intervals.
        variants: In alphabetical order.
        comparisons: Of every two variants.
        failed: Rows without a score, sorted, with a column ``why``.
        asked: How many runs there are, failed ones too.
        table: All rows, sorted, with the columns that are the same however often the study was stopped.
        repeats: Seeds that were run more than once with other results: ``(variant, seed)``.
        metrics: The columns of ``table`` that are scores.
    """

    metric: Metric
    confidence: float
    variants: tuple[VariantAnalysis, ...]
    comparisons: tuple[PairedComparison, ...]
    failed: pd.DataFrame
    asked: int
    table: pd.DataFrame
    repeats: tuple[tuple[str, int], ...]
    metrics: tuple[str, ...]


def analyse(
    runs: pd.DataFrame,
    metric: str,
    cases: pd.DataFrame | None = None,
    maximize: bool | None = None,
    confidence: float = CONFIDENCE,
) -> Analysis:
    """Analyse the table of a study's runs.

    Args:
        runs: One row for each run: ``seed``, ``metric``, and where the study has them ``status`` (``"done"`` or
            ``"failed"``), ``variant``, ``vary`` (``"all"``, or the purposes that the seed was given to),
            ``seed_order``, ``seed_augment``, ``seed_init``, ``seed_step``, ``holdout_<metric>``, ``weights`` and
            other metrics. The order of rows does not matter; times are not looked at.
        metric: The column to study.
        cases: Long table of scores of single cases: ``seed``, ``case``, ``variant`` and ``vary`` if ``runs`` has them,
            and scores; of several, the column that is named like ``metric`` or its end, else the first by name.
        maximize: Whether a high score is a good one; guessed from the name if not given.
        confidence: Of all intervals, above 0.5 and below 1.

    Raises:
        ValueError: If a column is missing or a value is not understood.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be above 0.5 and below 1, not {confidence}; 0.95 is usual")
    for column in ("seed", metric):
        if column not in runs.columns:
            raise ValueError(f"the table of runs has no column {column!r}; it has {', '.join(map(str, runs.columns))}")
    table, failed, done, repeats = _sort_out(runs, metric)
    described = Metric.guess(metric, done[metric].to_numpy(), maximize)
    names = sorted(table["variant"].unique())
    variants = tuple(_analyse_variant(name, done, described, cases, confidence) for name in names)
    scores = {
        v.name: dict(zip(v.distribution.seeds, map(float, v.distribution.scores), strict=True))
        for v in variants
        if v.distribution
    }
    numbers = [
        column
        for column in table.columns
        if column not in _BOOKKEEPING and _is_number(table[column]) and table[column].notna().any()
    ]
    metrics = tuple(sorted(numbers, key=lambda name: (name != metric, name != f"holdout_{metric}", name)))
    return Analysis(
        metric=described,
        confidence=confidence,
        variants=variants,
        comparisons=tuple(compare_all(scores, described.maximize, confidence)),
        failed=failed,
        asked=len(table),
        table=table,
        repeats=repeats,
        metrics=metrics,
    )


def _sort_out(runs: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Any]:
    """Return all rows in a fixed order, those that failed, those that count, and seeds with several results."""
    table = runs.copy()
    defaults = {"variant": "", "vary": "all", "status": "done"}
    for column, value in defaults.items():
        table[column] = table[column].fillna(value).astype(str) if column in table else value
    odd = sorted(set(table["status"]) - {"done", "failed"})
    if odd:
        raise ValueError(f"status must be 'done' or 'failed', not {odd[0]!r}")
    table["seed"] = table["seed"].astype("int64")
    table[metric] = table[metric].astype("float64")
    order = ["variant", "vary", "seed", *(c for c in PURPOSE_COLUMNS if c in table), "status", metric]
    table = table.sort_values(order, kind="stable", ignore_index=True)
    finite = np.isfinite(table[metric])
    failed = table[(table["status"] == "failed") | ~finite].copy()
    said = failed["error"].fillna("").astype(str) if "error" in failed else ""
    failed["why"] = np.where(failed["status"] == "failed", said, f"it ended, but {metric} is not a finite number")
    done = table[(table["status"] == "done") & finite]
    key = ["variant", "vary", "seed", *(c for c in PURPOSE_COLUMNS if c in table)]
    several = done.groupby(key, dropna=False)[metric].nunique()
    unequal = several[several > 1].reset_index()
    repeats = {(str(v), int(s)) for v, s in zip(unequal["variant"], unequal["seed"], strict=True)}
    if "check" in table:  # what repeating a run on purpose showed
        bad = table[table["check"].isin(["differs", "failed"])]
        repeats |= {(str(v), int(s)) for v, s in zip(bad["variant"], bad["seed"], strict=True)}
    return table, failed, done.drop_duplicates(key, ignore_index=True), tuple(sorted(repeats))


def _analyse_variant(
    name: str, done: pd.DataFrame, metric: Metric, cases: pd.DataFrame | None, confidence: float
) -> VariantAnalysis:
    rows = done[done["variant"] == name]
    kinds = sorted(rows["vary"].unique())
    varied = "all" if "all" in kinds or not kinds else kinds[0]
    main = rows[rows["vary"] == varied].drop_duplicates("seed", ignore_index=True)
    stability, case_metric = _look_at_cases(name, varied, cases, metric.name)
    if main.empty:
        return VariantAnalysis(name, varied, None, None, None, stability, case_metric, ())
    seeds, scores = main["seed"].tolist(), main[metric.name].to_numpy()
    held = f"holdout_{metric.name}"
    holdout = main[held].to_numpy(dtype=np.float64) if held in main and np.isfinite(main[held]).all() else None
    return VariantAnalysis(
        name=name,
        varied=varied,
        distribution=describe(scores, seeds, confidence),
        selection=select_best(scores, seeds, metric.maximize, holdout, confidence),
        sources=find_sources(_of_one_or_all_purposes(rows), metric.name, confidence),
        stability=stability,
        case_metric=case_metric,
        same_weights=_same_weights(main),
    )


def _of_one_or_all_purposes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that vary one purpose or all, with the purposes' seeds that all of them have."""
    rows = rows[rows["vary"].isin(["all", *PURPOSES])]
    columns = [column for column in PURPOSE_COLUMNS if column in rows and rows[column].notna().all()]
    return rows.drop(columns=[c for c in PURPOSE_COLUMNS if c in rows and c not in columns])


def _look_at_cases(name: str, varied: str, cases: pd.DataFrame | None, metric: str) -> tuple[Stability | None, str]:
    if cases is None or cases.empty:
        return None, ""
    wanted: Mapping[str, str] = {"variant": name, "vary": varied}
    for column, value in wanted.items():
        if column in cases:
            cases = cases[cases[column].fillna("").astype(str) == value]
    named = [c for c in cases.columns if c not in _BOOKKEEPING and _is_number(cases[c])]
    if not named:
        raise ValueError(f"the table of cases has no column of scores; it has {', '.join(map(str, cases.columns))}")
    # A run's val_dice is most often the mean over cases of their dice.
    matches = [metric, *(c for c in sorted(named) if metric.endswith(f"_{c}")), *sorted(named)]
    chosen = next(c for c in matches if c in named)
    scored = cases[cases[chosen].notna()]
    return (None, "") if scored.empty else (find_unstable(scored, chosen), chosen)


def _same_weights(rows: pd.DataFrame) -> tuple[tuple[int, ...], ...]:
    """Return the groups of seeds that gave the same weights, bit for bit: their seed is not used."""
    if "weights" not in rows:
        return ()
    given = rows[rows["weights"].notna() & (rows["weights"].astype(str) != "")]
    groups = [tuple(sorted(group["seed"].tolist())) for _, group in given.groupby("weights") if len(group) > 1]
    return tuple(sorted(groups))


def _is_number(column: pd.Series) -> bool:
    return column.dtype.kind in "fiu"
