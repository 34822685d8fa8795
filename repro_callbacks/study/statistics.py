"""Estimates with intervals, for one column of scores. Which interval is used where was decided by simulation.

Coverage of a nominal 95 % interval (20 000 simulated studies each for the closed forms, 400 for BCa):

===================  ====  =============  ==========  =================  ===========  ==========
scores                  n  mean, t        mean, BCa   sd, Bonett         sd, chi²     sd, BCa
===================  ====  =============  ==========  =================  ===========  ==========
normal                  5  0.95           0.86        0.99               0.95         0.70
normal                 20  0.95           0.91        0.95               0.95         0.87
normal                100  0.95           0.95        0.95               0.95         0.94
t, 5 degrees           20  0.95           0.91        0.91               0.84         0.83
t, 5 degrees          100  0.95           0.93        0.91               0.79         0.89
skewed (gamma, 4)      10  0.94           0.89        0.95               0.90         0.74
===================  ====  =============  ==========  =================  ===========  ==========

So the mean takes Student's t and the standard deviation takes Bonett's interval. BCa stands beside the mean, and is
the interval of the interquartile mean, which has no closed form: below some 20 values it is too narrow, and
:data:`BCA_COVERS_FROM` says so. No interval can see a rare bad run that a small study has not met.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]
Scores = Sequence[float] | npt.NDArray[np.floating[Any]]

CONFIDENCE: Final = 0.95
BCA_COVERS_FROM: Final = 20
"""Below this many values a BCa interval is too narrow by more than some 3 % of its coverage."""

_RESAMPLES: Final = 9999
_RESAMPLES_LARGE: Final = 1999  # for more than 1000 values, where the error of resampling no longer shows
_BATCH_VALUES: Final = 2_000_000  # numbers resampled at a time: 16 MB


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. ``low`` and ``high`` are NaN where the data can't give one; ``method`` says how."""

    value: float
    low: float
    high: float
    method: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def times(self, factor: float) -> Estimate:
        """Return the estimate of ``factor`` (not negative) times the quantity."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.method)


def generator() -> np.random.Generator:
    """Return the generator of everything that is resampled here. Always the same, so that a report repeats."""
    return np.random.default_rng(20210916)


def check_scores(scores: Scores, name: str = "scores", at_least: int = 1) -> Array:
    """Return scores as a float64 array of shape ``(n,)``, or refuse them.

    Raises:
        ValueError: If they are not one-dimensional, not finite, or fewer than ``at_least``.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must have one dimension, not shape {values.shape}")
    if len(values) < at_least:
        raise ValueError(f"{name} must have {at_least} values or more, not {len(values)}")
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise ValueError(f"{name} must be finite, not {bad}; leave out runs that gave no score, and report them")
    return values


def mean(scores: Scores, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean with Student's t interval.

    Example:
        >>> e = mean([0.81, 0.80, 0.83, 0.82, 0.81])
        >>> round(e.value, 4), round(e.low, 4), round(e.high, 4)
        (0.814, 0.7998, 0.8282)
    """
    values = check_scores(scores)
    centre = float(values.mean())
    if len(values) < 2:
        return Estimate(centre, math.nan, math.nan, "t")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))
    return Estimate(centre, centre - half, centre + half, "t")


def standard_deviation(scores: Scores, confidence: float = CONFIDENCE) -> Estimate:
    """Return the standard deviation (n - 1 in the denominator) with an interval that stands heavy tails.

    From 5 values on it is Bonett's (2006, *Approximate confidence interval for standard deviation of nonnormal
    distributions*, Computational Statistics & Data Analysis 50:775-782), which widens with the kurtosis that the
    scores show. The chi² interval assumes normal scores and fails with heavy tails however many runs there are;
    it is used for 2 to 4 values, where no kurtosis can be seen.
    """
    values = check_scores(scores)
    n = len(values)
    if n < 2:
        return Estimate(math.nan, math.nan, math.nan, "chi²")
    variance = float(values.var(ddof=1))
    value = math.sqrt(variance)
    if np.ptp(values) == 0:
        return Estimate(0.0, math.nan, math.nan, "none: all values are the same")
    if n < 5:
        low, high = stats.chi2.ppf([0.5 - confidence / 2, 0.5 + confidence / 2], n - 1)
        scaled = (n - 1) * variance
        return Estimate(value, math.sqrt(scaled / high), math.sqrt(scaled / low), "chi²")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    if n <= z:  # only for confidence beyond any use; the small-sample factor would be negative
        raise ValueError(f"{n} values are too few for confidence {confidence}")
    trimmed = stats.trim_mean(values, min(0.5 / math.sqrt(n - 4), 0.49))
    kurtosis = n * float(((values - trimmed) ** 4).sum()) / float(((values - values.mean()) ** 2).sum()) ** 2
    factor = n / (n - z)
    error = factor * math.sqrt((kurtosis - (n - 3) / n) / (n - 1))
    scaled = math.log(factor * variance)
    low, high = math.exp((scaled - z * error) / 2), math.exp((scaled + z * error) / 2)
    return Estimate(value, low, high, "Bonett")


def median(scores: Scores, confidence: float = CONFIDENCE) -> Estimate:
    """Return the median with its exact interval, which assumes nothing of the distribution; needs 6 values at 95 %."""
    values = check_scores(scores)
    value = float(np.median(values))
    interval = stats.quantile_test(values, q=value, p=0.5).confidence_interval(confidence)
    return Estimate(value, float(interval.low), float(interval.high), "binomial")


def interquartile_mean(scores: Scores, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of the middle half (Agarwal et al. 2021) with its BCa interval."""
    return bca(scores, lambda values, axis: stats.trim_mean(values, 0.25, axis=axis), confidence)


def bca_mean(scores: Scores, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean with its BCa interval (Efron 1987)."""
    return bca(scores, np.mean, confidence)


def bca(scores: Scores, statistic: Callable[..., Any], confidence: float = CONFIDENCE) -> Estimate:
    """Return a statistic with its BCa interval from :func:`scipy.stats.bootstrap`, the same on every call.

    Args:
        scores: Shape ``(n,)``.
        statistic: Called as ``statistic(values, axis=...)``.
        confidence: Of the interval.
    """
    values = check_scores(scores)
    value = float(statistic(values, axis=-1))
    if len(values) < 3 or np.ptp(values) == 0:
        return Estimate(value, math.nan, math.nan, "BCa")
    with warnings.catch_warnings():
        # Resamples that are all alike (three or four values) give NaN, which is what Estimate promises.
        warnings.filterwarnings("ignore", category=stats.DegenerateDataWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="scipy")
        interval = stats.bootstrap(
            (values,),
            statistic,
            n_resamples=_RESAMPLES if len(values) <= 1000 else _RESAMPLES_LARGE,
            batch=max(1, _BATCH_VALUES // len(values)),
            vectorized=True,
            confidence_level=confidence,
            method="BCa",
            rng=generator(),
        ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), "BCa")
