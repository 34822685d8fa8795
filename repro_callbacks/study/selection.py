"""What picking the best of many seeds adds to a score, and what is left of it on data the seed was not picked on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from repro_callbacks.study import statistics
from repro_callbacks.study.statistics import CONFIDENCE, Array, Estimate, Scores

_CURVE_POINTS = 100


@dataclass(frozen=True)
class Holdout:
    """The picked seed on data that it was not picked on.

    Attributes:
        gain: What it has above the mean of all seeds there, positive where it is better.
        rank: Its place there; 1 is the best.
        curve: The mean gain there of the seed that was the best of k, for the k of :attr:`Selection.sizes`.
        correlation: Pearson's, between the scores on both sets, with Fisher's interval. What is picked carries over
            only as far as this is above 0.
    """

    gain: float
    rank: int
    curve: Array
    correlation: Estimate


@dataclass(frozen=True)
class Selection:
    """The gain of "my seed is better": what the picked seed has above the mean of all, positive where it is better.

    Attributes:
        seed: The seed that is picked: the best score; of seeds that share it, the smallest.
        score: Its score.
        gain: What it has above the mean, on the data it was picked on.
        sizes: Numbers of seeds k, from 1 to n (at most 100 of them).
        curve: The mean gain of the best of k of these seeds.
        expected_curve: What the best of k has above the mean if scores are normal with this standard deviation.
        holdout: The same on other data; None without a score there.
    """

    seed: int
    score: float
    gain: float
    sizes: tuple[int, ...]
    curve: Array
    expected_curve: Array
    holdout: Holdout | None

    @property
    def expected(self) -> float:
        """What the best of all n seeds has above the mean if scores are normal with this standard deviation."""
        return float(self.expected_curve[-1])


def select_best(
    scores: Scores,
    seeds: Sequence[int],
    maximize: bool = True,
    holdout: Scores | None = None,
    confidence: float = CONFIDENCE,
) -> Selection:
    """Say what picking the best seed gains, where it was picked and elsewhere.

    Args:
        scores: Shape ``(n,)``, the scores that the seed is picked on.
        seeds: Shape ``(n,)``.
        maximize: Whether the highest score is the best.
        holdout: Shape ``(n,)``, the same seeds' scores on data that they are not picked on.
        confidence: Of the correlation's interval.

    Example:
        >>> s = select_best([0.80, 0.84, 0.82], seeds=[7, 42, 3407], holdout=[0.81, 0.80, 0.82])
        >>> s.seed, round(s.gain, 3), round(s.holdout.gain, 3), s.holdout.rank
        (42, 0.02, -0.01, 3)
    """
    sign = 1.0 if maximize else -1.0
    values = sign * statistics.check_scores(scores)
    names = np.asarray(seeds)
    picked = int(np.lexsort((names, -values))[0])
    n = len(values)
    sizes = tuple(sorted({int(k) for k in np.rint(np.geomspace(1, n, min(n, _CURVE_POINTS)))}))
    k = np.array(sizes)
    deviation = values.std(ddof=1) if n > 1 else math.nan
    return Selection(
        seed=int(names[picked]),
        score=float(sign * values[picked]),
        gain=float(values[picked] - values.mean()),
        sizes=sizes,
        curve=best_of(values, sizes) - values.mean(),
        expected_curve=np.asarray(stats.order_statistic(stats.Normal(), n=k, r=k).mean() * deviation, dtype=np.float64),
        holdout=None if holdout is None else _hold_out(values, sign, holdout, picked, sizes, confidence),
    )


def best_of(scores: Scores, sizes: Sequence[int], carried: Scores | None = None) -> Array:
    """Return the mean, over all choices of k of the n runs, of the score of the best of them.

    This is exact and has no bias, unlike drawing k runs with replacement (Tang et al. 2020, *Showing your work
    doesn't always work*, on Dodge et al. 2019): of the ascending scores, the i-th is the best of
    ``C(i - 1, k - 1)`` of the ``C(n, k)`` choices.

    Args:
        scores: Shape ``(n,)``, high is good.
        sizes: The k, each from 1 to n.
        carried: Shape ``(n,)``: what to average in place of the best run's score, for example its score elsewhere.
            Runs that share a score share the average of theirs.

    Example:
        >>> [round(float(x), 4) for x in best_of([0.80, 0.82, 0.84], sizes=[1, 2, 3])]
        [0.82, 0.8333, 0.84]
    """
    values = statistics.check_scores(scores)
    n = len(values)
    if not all(1 <= k <= n for k in sizes):
        raise ValueError(f"sizes must be from 1 to the {n} runs there are, not {list(sizes)}")
    order = np.argsort(values, kind="stable")
    _, groups = np.unique(values, return_inverse=True)
    payload = values if carried is None else statistics.check_scores(carried, "carried")
    shared = (np.bincount(groups, payload) / np.bincount(groups))[groups][order]
    place = np.arange(n, dtype=np.float64)  # how many runs are below the i-th
    means = []
    for k in sizes:
        with np.errstate(invalid="ignore"):  # where fewer than k-1 runs are below, masked in the next line
            logs = _log_choose(place, k - 1) - _log_choose(np.float64(n), k)
        weights = np.where(place >= k - 1, np.exp(logs), 0.0)
        means.append(float(weights @ shared))
    return np.array(means)


def _log_choose(n: Array | np.float64, k: int) -> Array:
    """Return log C(n, k); beta's logarithm keeps its precision where those of factorials cancel."""
    return np.asarray(-special.betaln(n - k + 1, k + 1) - np.log(n + 1), dtype=np.float64)


def _hold_out(
    values: Array, sign: float, holdout: Scores, picked: int, sizes: Sequence[int], confidence: float
) -> Holdout:
    other = sign * statistics.check_scores(holdout, "holdout")
    if len(other) != len(values):
        raise ValueError(f"holdout must have one score for each of the {len(values)} runs, not {len(other)}")
    correlation = Estimate(math.nan, math.nan, math.nan, "Fisher")
    if len(values) > 3 and np.ptp(values) > 0 and np.ptp(other) > 0:
        result = stats.pearsonr(values, other)
        interval = result.confidence_interval(confidence)
        correlation = Estimate(float(result.statistic), float(interval.low), float(interval.high), "Fisher")
    return Holdout(
        gain=float(other[picked] - other.mean()),
        rank=int((other > other[picked]).sum()) + 1,
        curve=best_of(values, sizes, carried=other) - other.mean(),
        correlation=correlation,
    )
