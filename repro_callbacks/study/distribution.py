"""What seeds do to one metric: its distribution, its outliers, and what difference between two runs is only noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from repro_callbacks.study import statistics
from repro_callbacks.study.statistics import CONFIDENCE, Array, Estimate, Scores

OUTLIER_LIMIT: Final = 3.5
"""Modified z-score beyond which a run counts as an outlier (Iglewicz & Hoaglin 1993)."""
OUTLIERS_FROM: Final = 10
"""Fewer runs show no outlier: of five normal scores, one in four studies would have one beyond the limit."""

_SIMULATED_STUDIES: Final = 4000


@dataclass(frozen=True)
class Outliers:
    """Runs far from the others, and how many a normal distribution would show.

    Attributes:
        seeds: The outliers' seeds, lowest score first.
        scores: Their scores.
        z: Their modified z-scores.
        expected: How many a study of this size has on average if scores are normal.
        p: How often a study of this size has as many or more if scores are normal.
    """

    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    z: tuple[float, ...]
    expected: float
    p: float


@dataclass(frozen=True)
class Noise:
    """The largest gain that two runs, one each, still show by chance.

    Attributes:
        spread: 95 % of runs are expected within the mean plus or minus this.
        threshold: 95 % of pairs of runs are expected to differ by less than this.
        exceeded: The share of all pairs of this study's runs that differ by more: near 0.05 where the scores are
            close to normal.
        observed: 95 % of all pairs of this study's runs differ by this or less, whatever the distribution.
        largest: The largest difference between two of this study's runs.
    """

    spread: Estimate
    threshold: Estimate
    exceeded: float
    observed: float
    largest: float


@dataclass(frozen=True)
class Distribution:
    """One metric over seeds. ``scores`` are sorted by seed."""

    seeds: tuple[int, ...]
    scores: Array
    mean: Estimate
    mean_bca: Estimate
    standard_deviation: Estimate
    median: Estimate
    interquartile_mean: Estimate
    minimum: float
    maximum: float
    skewness: float
    excess_kurtosis: float
    outliers: Outliers
    noise: Noise

    @property
    def n(self) -> int:
        """How many runs there are."""
        return len(self.scores)

    def rank(self, seed: int) -> int:
        """Return how many runs have a score as high as that of ``seed`` or higher, itself included: 1 is the highest.

        Raises:
            KeyError: If the study has no run of that seed.
        """
        if seed not in self.seeds:
            raise KeyError(f"seed {seed} has no finished run in this study")
        return int((self.scores >= self.scores[self.seeds.index(seed)]).sum())


def describe(scores: Scores, seeds: Sequence[int] | None = None, confidence: float = CONFIDENCE) -> Distribution:
    """Describe one metric over seeds.

    Args:
        scores: Shape ``(n,)``, one score for each seed, finite.
        seeds: Shape ``(n,)``; 0 to n-1 if not given.
        confidence: Of every interval.

    Raises:
        ValueError: If scores are missing or not finite, or seeds don't match them or repeat.

    Example:
        >>> d = describe([0.81, 0.80, 0.83, 0.82, 0.81, 0.84])
        >>> d.n, round(d.mean.value, 3), round(d.noise.threshold.value, 3)
        (6, 0.818, 0.054)
    """
    values = statistics.check_scores(scores)
    named = list(range(len(values))) if seeds is None else [int(seed) for seed in seeds]
    if len(named) != len(values):
        raise ValueError(f"{len(named)} seeds were given for {len(values)} scores; give one seed for each score")
    if len(set(named)) != len(named):
        repeated = next(seed for seed in named if named.count(seed) > 1)
        raise ValueError(f"seed {repeated} occurs more than once; give one score for each seed")
    order = np.argsort(named)
    values, names = values[order], tuple(named[i] for i in order)
    varies = len(values) > 2 and bool(np.ptp(values) > 0)
    return Distribution(
        seeds=names,
        scores=values,
        mean=statistics.mean(values, confidence),
        mean_bca=statistics.bca_mean(values, confidence),
        standard_deviation=statistics.standard_deviation(values, confidence),
        median=statistics.median(values, confidence),
        interquartile_mean=statistics.interquartile_mean(values, confidence),
        minimum=float(values.min()),
        maximum=float(values.max()),
        skewness=float(stats.skew(values)) if varies else math.nan,
        excess_kurtosis=float(stats.kurtosis(values)) if varies else math.nan,
        outliers=find_outliers(values, names),
        noise=noise(values, confidence),
    )


def noise(scores: Scores, confidence: float = CONFIDENCE) -> Noise:
    """Return how far apart two runs, one each, are by chance alone.

    Two runs of normal scores differ by less than ``1.96 * sqrt(2) * sd`` in 95 of 100 pairs. The standard deviation is
    itself estimated from n runs, so Student's quantile with n - 1 degrees of freedom stands for 1.96: with it the
    rate is right for any n, with 1.96 five runs would let 12 of 100 chance differences pass.
    """
    values = statistics.check_scores(scores)
    n = len(values)
    deviation = statistics.standard_deviation(values, confidence)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) if n > 1 else math.nan
    spread = deviation.times(quantile)
    threshold = spread.times(math.sqrt(2))
    return Noise(
        spread=spread,
        threshold=threshold,
        exceeded=_share_of_pairs_beyond(values, threshold.value),
        observed=_quantile_of_pairs(values, confidence),
        largest=float(np.ptp(values)),
    )


def modified_z(scores: Scores) -> Array:
    """Return each score's modified z-score: ``0.6745 (x - median) / MAD`` (Iglewicz & Hoaglin 1993).

    Where more than half of the scores are the same, MAD (the median absolute deviation) is 0, and the mean absolute
    deviation takes its place: ``(x - median) / (1.2533 mean|x - median|)``.
    """
    values = statistics.check_scores(scores)
    distance = values - np.median(values)
    scale = float(np.median(np.abs(distance))) / 0.6745
    if scale == 0:
        scale = 1.2533 * float(np.mean(np.abs(distance)))
    return distance / scale if scale > 0 else np.zeros_like(distance)


def find_outliers(scores: Scores, seeds: Sequence[int]) -> Outliers:
    """Return the runs whose modified z-score is beyond 3.5, and how many to expect of a normal distribution.

    Fewer than 10 runs show none.
    """
    values = statistics.check_scores(scores)
    z = modified_z(values)
    if len(values) < OUTLIERS_FROM:
        return Outliers((), (), (), 0.0, 1.0)
    beyond = [int(i) for i in np.argsort(values, kind="stable") if abs(z[i]) > OUTLIER_LIMIT]
    counts = _outliers_of_normal_studies(len(values))
    return Outliers(
        seeds=tuple(int(seeds[i]) for i in beyond),
        scores=tuple(float(values[i]) for i in beyond),
        z=tuple(float(z[i]) for i in beyond),
        expected=float(counts.mean()),
        p=float((1 + (counts >= len(beyond)).sum()) / (1 + len(counts))),
    )


@functools.lru_cache(maxsize=64)
def _outliers_of_normal_studies(n: int) -> Array:
    """Count outliers in simulated studies of n normal scores. In small studies the MAD is uncertain, and they have
    far more than the 0.05 % of runs beyond 3.5 standard deviations."""
    rng = statistics.generator()
    if n > 1000:
        return rng.binomial(n, 2 * stats.norm.sf(OUTLIER_LIMIT), _SIMULATED_STUDIES).astype(np.float64)
    draws = rng.standard_normal((_SIMULATED_STUDIES, n))
    distance = np.abs(draws - np.median(draws, axis=1, keepdims=True))
    scale = np.median(distance, axis=1, keepdims=True) / 0.6745
    return np.asarray((distance > OUTLIER_LIMIT * scale).sum(axis=1), dtype=np.float64)


def _share_of_pairs_beyond(values: Array, threshold: float) -> float:
    n = len(values)
    if n < 2 or not math.isfinite(threshold):
        return math.nan
    ordered = np.sort(values)
    beyond = n - np.searchsorted(ordered, ordered + threshold, side="right")
    return float(beyond.sum() / (n * (n - 1) / 2))


def _quantile_of_pairs(values: Array, confidence: float) -> float:
    """Return the distance that this share of all pairs don't exceed, by bisection: there can be 50 million pairs."""
    if len(values) < 2:
        return math.nan
    low, high = 0.0, float(np.ptp(values))
    if _share_of_pairs_beyond(values, low) <= 1 - confidence:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _share_of_pairs_beyond(values, middle) <= 1 - confidence else (middle, high)
    return high
