"""A against B with paired seeds: the difference, how often A wins, and whether so many seeds can support a claim.

Why paired: a seed given to both variants takes the part of the noise that they share out of the difference (the same
order of samples, the same split), so fewer seeds are needed. Variants that share nothing lose nothing by it.

A claim is made when three things agree: n can support it, the permutation test's p is at or below 1 - confidence, and
the interval of the difference excludes 0. If seeds treat A and B alike, a claim is made in at most 1 - confidence of
studies, however the scores are distributed; ``tests/study/test_paired.py`` measures it. Two limits: the number of seeds
must be fixed beforehand, since adding seeds until a claim appears makes more false ones; and if A and B have the same
mean but scores of quite another shape (one exponential, one nearly constant), 8 to 20 pairs made false claims in 9 to
10 % of simulated studies at 95 %, as a t test does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from scipy import optimize, stats

from repro_callbacks.study import statistics
from repro_callbacks.study.statistics import CONFIDENCE, Array, Estimate, Scores

MEANINGFUL: Final = 0.75
"""P(A > B) from which a difference is worth having (Bouthillier et al. 2021, section 4)."""
POWER: Final = 0.8
_ALL_FLIPS: Final = 15  # pairs up to which every choice of signs is tried: 32 768
_RESAMPLES: Final = 9999

Verdict = Literal["a", "b", "not shown", "too few"]


@dataclass(frozen=True)
class PairedComparison:
    """Variant ``a`` against variant ``b`` over the seeds that both have.

    Attributes:
        a: Name of the first variant.
        b: Name of the second.
        maximize: Whether a high score is a good one.
        confidence: Of the intervals; a claim needs a p at or below 1 - confidence.
        seeds: The seeds that both have, sorted.
        left_out: Seeds that only one of them has.
        differences: Shape ``(n,)``: the score of ``a`` minus that of ``b``, seed by seed.
        difference: Their mean, with Student's t interval (BCa is too narrow for few pairs).
        difference_bca: Their mean, with the BCa interval.
        wins: In how many pairs ``a`` is better.
        ties: In how many pairs both are the same.
        probability: P(a better than b): the share of pairs won, ties by half, with the exact binomial interval, in
            which ties count against whichever side the bound is on.
        p: Of the two-sided permutation test of no difference, by flipping signs within pairs.
        exact: Whether all sign flips were tried, rather than 9999 drawn ones.
        p_adjusted: ``p`` corrected by Holm's method for all comparisons of the study.
        smallest_p: The smallest p that n pairs can give.
        needed: Pairs needed to show a mean difference as large as this one in 8 of 10 studies; None if there is none.
        detectable: The mean difference that n pairs show in 8 of 10 studies.
    """

    a: str
    b: str
    maximize: bool
    confidence: float
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    differences: Array
    difference: Estimate
    difference_bca: Estimate
    wins: int
    ties: int
    probability: Estimate
    p: float
    exact: bool
    p_adjusted: float
    smallest_p: float
    needed: int | None
    detectable: float

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.seeds)

    @property
    def verdict(self) -> Verdict:
        """``"a"`` or ``"b"``, whichever is claimed to be better; ``"not shown"``; or ``"too few"`` for any claim."""
        level = 1 - self.confidence
        if self.smallest_p > level:
            return "too few"
        if self.p_adjusted > level or 0 in self.difference:
            return "not shown"
        return "a" if (self.difference.value > 0) == self.maximize else "b"

    @property
    def meaningful(self) -> bool:
        """Whether what is claimed to be better wins in more than 75 % of pairs."""
        share = {"a": self.probability.value, "b": 1 - self.probability.value}.get(self.verdict, 0.0)
        return share > MEANINGFUL


def compare_paired(
    a: Mapping[int, float],
    b: Mapping[int, float],
    names: tuple[str, str] = ("A", "B"),
    maximize: bool = True,
    confidence: float = CONFIDENCE,
) -> PairedComparison:
    """Compare two variants over the seeds that both have.

    Args:
        a: Seed to score, of the first variant; finite.
        b: The same of the second.
        names: What they are called.
        maximize: Whether a high score is a good one.
        confidence: Of the intervals and, as 1 - confidence, of the test.

    Raises:
        ValueError: If they have no seed in common, or a score is not finite.

    Example:
        >>> c = compare_paired({1: 0.82, 2: 0.84, 3: 0.83}, {1: 0.80, 2: 0.81, 3: 0.82})
        >>> round(c.difference.value, 3), c.p, c.smallest_p, c.verdict
        (0.02, 0.25, 0.25, 'too few')
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        raise ValueError(
            f"{names[0]} and {names[1]} have no finished seed in common; run both over the same seeds to compare them"
        )
    scores_a = statistics.check_scores([a[seed] for seed in seeds], f"scores of {names[0]}")
    scores_b = statistics.check_scores([b[seed] for seed in seeds], f"scores of {names[1]}")
    differences, n = scores_a - scores_b, len(seeds)
    better = differences > 0 if maximize else differences < 0
    wins, ties = int(better.sum()), int((differences == 0).sum())
    deviation = float(differences.std(ddof=1)) if n > 1 else math.nan
    difference = statistics.mean(differences, confidence)
    p = permutation_p(differences)
    return PairedComparison(
        a=names[0],
        b=names[1],
        maximize=maximize,
        confidence=confidence,
        seeds=seeds,
        left_out=tuple(sorted(a.keys() ^ b.keys())),
        differences=differences,
        difference=difference,
        difference_bca=statistics.bca_mean(differences, confidence),
        wins=wins,
        ties=ties,
        probability=_probability(wins, ties, n, confidence),
        p=p,
        exact=n <= _ALL_FLIPS,
        p_adjusted=p,
        smallest_p=2 / (2**n if n <= _ALL_FLIPS else _RESAMPLES + 1),
        needed=seeds_needed(difference.value, deviation, confidence) if n > 1 else None,
        detectable=detectable_difference(n, deviation, confidence) if n > 1 else math.nan,
    )


def compare_all(
    variants: Mapping[str, Mapping[int, float]], maximize: bool = True, confidence: float = CONFIDENCE
) -> list[PairedComparison]:
    """Compare every two variants, each with Holm's correction for the number of comparisons.

    Args:
        variants: Name to (seed to score), in the order in which they are to be named.
        maximize: Whether a high score is a good one.
        confidence: As in :func:`compare_paired`.
    """
    pairs = [
        compare_paired(variants[a], variants[b], (a, b), maximize, confidence)
        for a, b in itertools.combinations(variants, 2)
        if variants[a].keys() & variants[b].keys()
    ]
    adjusted = holm([pair.p for pair in pairs])
    return [replace(pair, p_adjusted=p) for pair, p in zip(pairs, adjusted, strict=True)]


def permutation_p(differences: Scores) -> float:
    """Return the two-sided p of a mean difference of 0, by flipping signs: exact up to 15 pairs, else of 9999 draws.

    Example:
        >>> permutation_p([0.02, 0.03, 0.01, 0.02, 0.04, 0.01])
        0.03125
    """
    values = statistics.check_scores(differences, "differences")
    if len(values) == 1 or not values.any():
        return 1.0
    result = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**_ALL_FLIPS if len(values) <= _ALL_FLIPS else _RESAMPLES,
        batch=max(1, 2_000_000 // len(values)),
        alternative="two-sided",
        rng=statistics.generator(),
    )
    return float(result.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's (1979) step-down method, in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def power(n: int, effect: float, confidence: float = CONFIDENCE) -> float:
    """Return how often n pairs show a standardized difference (mean / standard deviation of the differences).

    It is the power of the two-sided paired t test. The square of its noncentral t is a noncentral F, which SciPy
    gives for large effects too, where its noncentral t is NaN.

    Example:
        >>> round(power(34, 0.5), 3)
        0.808
    """
    limit = stats.t.ppf(0.5 + confidence / 2, n - 1)
    return float(stats.ncf.sf(limit**2, 1, n - 1, n * effect**2))


def seeds_needed(difference: float, deviation: float, confidence: float = CONFIDENCE) -> int | None:
    """Return how many pairs show this mean difference in 8 of 10 studies, or None if no feasible number does.

    Args:
        difference: The mean difference that is to be shown.
        deviation: Standard deviation of the differences between pairs.
        confidence: Of the claim.

    Example:
        >>> seeds_needed(difference=0.005, deviation=0.01)
        34
    """
    least = fewest_pairs(confidence)
    if deviation == 0:
        return least if difference != 0 else None
    effect = abs(difference / deviation)
    if effect < 1e-3:  # more than 7 million
        return None
    low, high = least, 2 * least
    if power(low, effect, confidence) >= POWER:
        return low
    while power(high, effect, confidence) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, confidence) >= POWER else (middle, high)
    return high


def detectable_difference(n: int, deviation: float, confidence: float = CONFIDENCE) -> float:
    """Return the mean difference that n pairs show in 8 of 10 studies.

    Example:
        >>> round(detectable_difference(34, deviation=0.01), 4)
        0.005
    """
    if n < 2:
        return math.nan
    largest = 1000 / math.sqrt(n)
    effect = optimize.brentq(lambda size: power(n, size, confidence) - POWER, 0.0, largest, xtol=1e-9)
    return float(effect) * deviation


def fewest_pairs(confidence: float = CONFIDENCE) -> int:
    """Return the fewest pairs whose permutation test can reach 1 - confidence: all n differences of one sign give
    a p of ``2 / 2**n``.

    Example:
        >>> fewest_pairs(0.95)
        6
    """
    return math.ceil(1 - math.log2(1 - confidence))


def _probability(wins: int, ties: int, n: int, confidence: float) -> Estimate:
    low = stats.binomtest(wins, n).proportion_ci(confidence, "exact").low
    high = stats.binomtest(wins + ties, n).proportion_ci(confidence, "exact").high
    return Estimate((wins + ties / 2) / n, float(low), float(high), "Clopper-Pearson")
