"""Where the variance between runs comes from: the order, the augmentation, the initial weights, or the training step.

The study holds runs of two kinds, told apart by their per-purpose seeds: in some, one purpose's seed varies while the
others stay at a base; in others, all vary together. If the sources act independently, their variances add up to the
variance of the runs in which all vary. What is missing or too much is the remainder: sources that interact, or a base
that is not typical of others, since the variance of one source is measured at the base's values of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from repro_callbacks.keys import PURPOSES
from repro_callbacks.study import statistics
from repro_callbacks.study.statistics import CONFIDENCE, Array, Estimate

if TYPE_CHECKING:
    import pandas as pd

NAMES: Final = {
    "order": "order of samples",
    "augment": "augmentation",
    "init": "initial weights",
    "step": "training step (dropout)",
}


@dataclass(frozen=True)
class Source:
    """The spread that one purpose's seed makes, the others being fixed; or all of them together.

    Attributes:
        purpose: A purpose of :data:`repro_callbacks.keys.PURPOSES`, or ``"together"``.
        n: How many runs it is measured on.
        standard_deviation: Of their scores.
        variance: The square of it.
        share: Its part of the variance of the runs in which all vary; None without such runs. Shares are estimated
            apart, and need not add up to 1.
    """

    purpose: str
    n: int
    standard_deviation: Estimate
    variance: Estimate
    share: Estimate | None


@dataclass(frozen=True)
class Sources:
    """All sources of a study.

    Attributes:
        sources: One for each purpose that was varied alone, in the order of :data:`repro_callbacks.keys.PURPOSES`.
        together: The runs in which all vary; None if there are fewer than two.
        remainder: The variance of those runs less the sum of the sources' variances; None unless every purpose that
            has a seed was varied alone. If the interval holds 0, the sources add up as far as this study can tell.
        bases: How many bases a source was measured at, at most.
        left_out: How many runs vary several but not all purposes, and are not used.
    """

    sources: tuple[Source, ...]
    together: Source | None
    remainder: Estimate | None
    bases: int
    left_out: int


def find_sources(runs: pd.DataFrame, metric: str, confidence: float = CONFIDENCE) -> Sources | None:
    """Split the variance of a metric by its sources.

    Args:
        runs: One row for each run, with ``metric`` and the per-purpose seeds ``seed_order``, ``seed_augment``,
            ``seed_init`` and ``seed_step``, or those of them that the study varied.
        metric: A column of finite scores.
        confidence: Of the intervals.

    Returns:
        The sources, or None if no purpose was varied alone.

    Example:
        >>> import pandas as pd
        >>> runs = pd.DataFrame({
        ...     "seed_order": [0, 1, 2, 3, 0, 0, 0, 11, 12, 13],
        ...     "seed_init":  [0, 0, 0, 0, 1, 2, 3, 21, 22, 23],
        ...     "acc": [0.90, 0.91, 0.89, 0.90, 0.94, 0.86, 0.91, 0.93, 0.85, 0.90],
        ... })
        >>> found = find_sources(runs, "acc")
        >>> [(s.purpose, s.n, round(s.standard_deviation.value, 4)) for s in found.sources]
        [('order', 4, 0.0082), ('init', 4, 0.033)]
        >>> found.together.n
        3
    """
    purposes = [purpose for purpose in PURPOSES if f"seed_{purpose}" in runs.columns]
    columns = [f"seed_{purpose}" for purpose in purposes]
    if len(purposes) < 2:
        return None
    runs = runs.drop_duplicates(columns)  # the base can be there once for each purpose; its bits are the same
    positions = runs[columns].to_numpy(dtype=np.int64)
    scores = statistics.check_scores(runs[metric].to_numpy(), metric)
    alone = {purpose: _vary_alone(positions, i) for i, purpose in enumerate(purposes)}
    if not any(alone.values()):
        return None
    used = {row for groups in alone.values() for group in groups for row in group}
    rest = [row for row in range(len(runs)) if row not in used]
    free = _share_nothing(positions, rest)
    together = _measure("together", [free], scores, None, confidence) if len(free) > 1 else None
    total = together.variance if together else None
    found = tuple(_measure(purpose, groups, scores, total, confidence) for purpose, groups in alone.items() if groups)
    remainder = None
    if total is not None and len(found) == len(purposes):
        # A seed that changed nothing in any run is not used: its variance is 0, and not in doubt.
        parts = [source.variance if source.variance.value else Estimate(0.0, 0.0, 0.0, "unused") for source in found]
        remainder = combine([total, *parts], [1.0, *[-1.0] * len(parts)])
    return Sources(found, together, remainder, max(map(len, alone.values())), len(rest) - len(free))


def combine(estimates: Sequence[Estimate], factors: Sequence[float]) -> Estimate:
    """Return a weighted sum of independent estimates, with its interval from theirs.

    The method is MOVER (Zou & Donner 2008, *Construction of confidence limits about effect measures*, Statistics in
    Medicine 27:1693-1702); it keeps the asymmetry that the interval of a variance has.

    Example:
        >>> e = combine([Estimate(5.0, 3.0, 9.0, "x"), Estimate(2.0, 1.0, 4.0, "x")], [1.0, -1.0])
        >>> e.value, round(e.low, 3), round(e.high, 3)
        (3.0, 0.172, 7.123)
    """
    value = sum(f * e.value for f, e in zip(factors, estimates, strict=True))
    down = up = 0.0
    for factor, estimate in zip(factors, estimates, strict=True):
        ends = (factor * estimate.low, factor * estimate.high)
        down += (factor * estimate.value - min(ends)) ** 2
        up += (max(ends) - factor * estimate.value) ** 2
    return Estimate(value, value - math.sqrt(down), value + math.sqrt(up), "MOVER")


def _vary_alone(positions: Array, purpose: int) -> list[list[int]]:
    """Return the groups of rows that differ in this purpose's seed and in nothing else.

    Groups of less than half the size of the largest are no bases of the study but met by chance, as when one run
    varies the initial weights alone to 5 and another varies everything to 5.
    """
    groups: dict[tuple[int, ...], dict[int, int]] = {}
    for row, position in enumerate(positions):
        others = tuple(int(value) for value in np.delete(position, purpose))
        groups.setdefault(others, {}).setdefault(int(position[purpose]), row)
    largest = max(map(len, groups.values()), default=0)
    return [list(group.values()) for group in groups.values() if len(group) > 1 and len(group) >= largest / 2]


def _share_nothing(positions: Array, rows: Sequence[int]) -> list[int]:
    """Return those of the rows that have no purpose's seed in common with another of them."""
    alone = np.ones(len(rows), dtype=bool)
    for column in positions[list(rows)].T:
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        alone &= counts[inverse] == 1
    return [row for row, free in zip(rows, alone, strict=True) if free]


def _measure(
    purpose: str, groups: Sequence[Sequence[int]], scores: Array, total: Estimate | None, confidence: float
) -> Source:
    parts = [scores[list(group)] for group in groups]
    n = sum(map(len, parts))
    if len(parts) == 1:
        deviation = statistics.standard_deviation(parts[0], confidence)
    else:  # several bases: deviations from each base's own mean, scaled for the means that were estimated
        residuals = np.concatenate([part - part.mean() for part in parts])
        deviation = statistics.standard_deviation(residuals * math.sqrt((n - 1) / (n - len(parts))), confidence)
    variance = Estimate(deviation.value**2, deviation.low**2, deviation.high**2, deviation.method)
    return Source(purpose, n, deviation, variance, None if total is None else _ratio(variance, total))


def _ratio(part: Estimate, total: Estimate) -> Estimate:
    """Return a ratio of independent positive estimates: the difference of their logarithms, back from there."""
    if part.value == 0 or total.value == 0:
        return Estimate(math.nan if total.value == 0 else 0.0, math.nan, math.nan, "MOVER")
    logs = [Estimate(math.log(e.value), math.log(e.low), math.log(e.high), e.method) for e in (part, total)]
    ratio = combine(logs, [1.0, -1.0])
    return Estimate(math.exp(ratio.value), math.exp(ratio.low), math.exp(ratio.high), "MOVER")
