"""A metric's name, direction and unit, and how its numbers are written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from repro_callbacks.study.statistics import Estimate, Scores

_LOW_IS_GOOD: Final = {
    *("loss", "error", "err", "mse", "mae", "rmse", "nll", "brier", "ece", "perplexity", "wer", "cer", "fid"),
    *("distance", "hausdorff", "hd", "hd95", "assd", "asd"),
}
_STAGES: Final = {"val", "valid", "validation", "test", "train", "holdout"}


@dataclass(frozen=True)
class Metric:
    """How a metric is named and written.

    Attributes:
        name: Its column.
        label: What it is called in sentences.
        maximize: Whether a high score is a good one.
        points: Whether differences are written in points, hundredths, as for scores from 0 to 1.
    """

    name: str
    label: str
    maximize: bool
    points: bool

    @classmethod
    def guess(cls, name: str, scores: Scores, maximize: bool | None = None) -> Metric:
        """Guess from the name and the scores: low is good for losses, errors and distances, if ``maximize`` is None;
        points are for scores where high is good and all are from 0 to 1.

        Example:
            >>> Metric.guess("val_dice", [0.81, 0.83])
            Metric(name='val_dice', label='Dice', maximize=True, points=True)
            >>> Metric.guess("val_loss", [0.4, 0.5])
            Metric(name='val_loss', label='Loss', maximize=False, points=False)
        """
        words = [word for word in re.split(r"[_/\s.-]+", name) if word]
        if maximize is None:
            maximize = not any(word.lower() in _LOW_IS_GOOD for word in words)
        kept = words[1:] if len(words) > 1 and words[0].lower() in _STAGES else words
        label = " ".join(kept) or name
        values = np.asarray(scores, dtype=np.float64)
        points = maximize and len(values) > 0 and bool(((values >= 0) & (values <= 1)).all())
        return cls(name, label[0].upper() + label[1:], maximize, points)

    def score(self, value: float, resolution: float) -> str:
        """Write a score in its own scale, with the digits that a difference of ``resolution`` needs.

        Example:
            >>> Metric("acc", "Acc", True, True).score(0.81437, resolution=0.004)
            '0.8144'
        """
        return write(value, decimals(resolution))

    def gain(self, value: float, resolution: float | None = None, signed: bool = False, unit: bool = True) -> str:
        """Write a difference, in points where the metric has them.

        Args:
            value: In the metric's own scale.
            resolution: A difference that is to show two digits; ``value`` itself if not given.
            signed: Write a plus too.
            unit: Write the unit too.

        Example:
            >>> Metric("acc", "Acc", True, True).gain(0.0111)
            '1.1 points'
            >>> Metric("loss", "Loss", False, False).gain(-0.0111, signed=True)
            '-0.011'
        """
        factor = 100 if self.points else 1
        text = write(value * factor, decimals(abs(value if resolution is None else resolution) * factor), signed)
        return f"{text} points" if unit and self.points else text

    def gain_interval(self, estimate: Estimate, signed: bool = False) -> str:
        """Write an interval of a difference: ``"0.9 to 1.4 points"``."""
        width = estimate.high - estimate.low
        resolution = max(width, abs(estimate.value)) if math.isfinite(width) else abs(estimate.value)
        ends = [self.gain(value, resolution, signed, unit=False) for value in (estimate.low, estimate.high)]
        return f"{ends[0]} to {ends[1]}" + (" points" if self.points else "")

    def score_interval(self, estimate: Estimate, resolution: float) -> str:
        """Write an interval of a score: ``"0.812 to 0.816"``."""
        return f"{self.score(estimate.low, resolution)} to {self.score(estimate.high, resolution)}"


def decimals(resolution: float) -> int:
    """Return how many decimals show two digits of ``resolution``; 4 where it is 0 or unknown.

    Example:
        >>> [decimals(x) for x in (0.0123, 1.1, 25.0, 0.0)]
        [3, 1, 0, 4]
    """
    if not math.isfinite(resolution) or resolution <= 0:
        return 4
    rounded = float(f"{resolution:.1e}")
    return min(max(0, 1 - math.floor(math.log10(rounded))), 12)


def write(value: float, places: int, signed: bool = False) -> str:
    """Write a number with so many decimals, with a plain minus, and a dash where there is none.

    Example:
        >>> write(-0.04, 1), write(float("nan"), 1), write(0.26, 1, signed=True)
        ('0.0', '–', '+0.3')
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    rounded = round(value, places) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{places}f}"


def percent(value: float) -> str:
    """Write a share: whole percent, or with a decimal below 10.

    Example:
        >>> percent(0.8333), percent(0.0213), percent(1.0), percent(0.00004)
        ('83 %', '2.1 %', '100 %', 'less than 0.1 %')
    """
    if not math.isfinite(value):
        return "–"
    if 0 < value < 0.001:
        return "less than 0.1 %"
    if 0.999 < value < 1:
        return "more than 99.9 %"
    return f"{value * 100:.{0 if value >= 0.0995 or value == 0 else 1}f} %"


def p_value(p: float) -> str:
    """Write a p-value with its sign.

    Example:
        >>> p_value(0.03125), p_value(0.0002), p_value(0.25)
        ('p = 0.031', 'p < 0.001', 'p = 0.25')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
