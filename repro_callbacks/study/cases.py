"""Which cases flip between seeds: two runs with the same mean can still disagree about the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Stability:
    """How far seeds agree about single cases.

    Attributes:
        binary: Whether each case's score is 0 or 1 (wrong or right).
        runs: How many runs scored the cases.
        table: One row for each case, the least stable first, with the columns ``case``, ``n`` (runs), ``mean``,
            ``sd``, ``min``, ``max`` and, if binary, ``entropy`` in bits: 0 where all runs agree, 1 where half do.
        flipping: How many cases some runs get right and others wrong; if not binary, how many differ at all.
        churn: If binary, the share of cases about which two runs disagree, on average over cases; else the mean
            over cases of the standard deviation between runs.
        sd_of_mean: Standard deviation, between runs, of their mean over cases: what the mean alone shows.
    """

    binary: bool
    runs: int
    table: pd.DataFrame
    flipping: int
    churn: float
    sd_of_mean: float


def find_unstable(cases: pd.DataFrame, metric: str) -> Stability:
    """Rank cases by how much they change from seed to seed.

    Args:
        cases: Long table: one row for each run and case, with the columns ``seed``, ``case`` and ``metric``. The
            metric may be 0 or 1 (wrong or right) or any finite number.
        metric: The column to look at.

    Raises:
        ValueError: If a column is missing, a score isn't finite, or a case is scored twice for one seed.

    Example:
        >>> import pandas as pd
        >>> cases = pd.DataFrame({
        ...     "seed": [1, 1, 2, 2, 3, 3], "case": ["p1", "p2"] * 3, "right": [1, 1, 1, 0, 1, 1],
        ... })
        >>> found = find_unstable(cases, "right")
        >>> found.table[["case", "mean"]].round(3).values.tolist(), found.flipping, round(found.churn, 3)
        ([['p2', 0.667], ['p1', 1.0]], 1, 0.333)
    """
    for column in ("seed", "case", metric):
        if column not in cases.columns:
            raise ValueError(
                f"the table of cases has no column {column!r}; it has {', '.join(map(str, cases.columns))}"
            )
    scores = cases[metric].astype(float)
    if not np.isfinite(scores).all():
        bad = cases.loc[~np.isfinite(scores)].iloc[0]
        raise ValueError(f"case {bad['case']!r} of seed {bad['seed']} scores {bad[metric]}; scores must be finite")
    twice = cases.duplicated(["seed", "case"])
    if twice.any():
        bad = cases.loc[twice].iloc[0]
        raise ValueError(f"case {bad['case']!r} has more than one score for seed {bad['seed']}; give one for each seed")
    wide = cases.assign(**{metric: scores}).pivot(index="case", columns="seed", values=metric).sort_index()
    values = wide.to_numpy()
    binary = bool(np.isin(scores, (0.0, 1.0)).all())
    grouped = wide.T
    table = grouped.agg(["count", "mean", "std", "min", "max"]).T.fillna({"std": 0.0})
    table = table.rename(columns={"count": "n", "std": "sd"}).astype({"n": int}).rename_axis("case").reset_index()
    rank = "sd"
    if binary:
        table["entropy"] = stats.entropy([table["mean"], 1 - table["mean"]], base=2)
        rank = "entropy"
    churn = _disagreement(table) if binary else float(table["sd"].mean())
    means = np.nanmean(values, axis=0)
    return Stability(
        binary=binary,
        runs=values.shape[1],
        table=table.sort_values([rank, "case"], ascending=[False, True], kind="stable", ignore_index=True),
        flipping=int((table["max"] > table["min"]).sum()),
        churn=churn,
        sd_of_mean=float(means.std(ddof=1)) if len(means) > 1 else float("nan"),
    )


def _disagreement(table: pd.DataFrame) -> float:
    """Return the share of pairs of runs that disagree, averaged over the cases that two runs or more have scored."""
    several = table[table["n"] > 1]
    if several.empty:
        return float("nan")
    pairs = 2 * several["mean"] * (1 - several["mean"]) * several["n"] / (several["n"] - 1)
    return float(pairs.mean())
