"""The report's figures: static SVG by matplotlib, the same bytes for the same data, in the page's own colours.

A figure is drawn without pyplot, so that no backend is chosen and no figure is left open. Colours are drawn as
stand-ins and replaced by the page's CSS variables, so that one figure serves a light and a dark page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from repro_callbacks.study.analysis import Analysis, VariantAnalysis
from repro_callbacks.study.cases import Stability
from repro_callbacks.study.metric import Metric
from repro_callbacks.study.page import LIGHT
from repro_callbacks.study.paired import PairedComparison
from repro_callbacks.study.selection import Selection
from repro_callbacks.study.statistics import Array
from repro_callbacks.study.variance import NAMES, Sources

INK: Final = "#010101"
MUTED: Final = "#020202"
LINE: Final = "#030303"
MAIN: Final = "#040404"
SECOND: Final = "#050505"
ALERT: Final = "#060606"
_VARIABLES: Final = {INK: "ink", MUTED: "muted", LINE: "line", MAIN: "main", SECOND: "second", ALERT: "alert"}
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "svg.hashsalt": "repro-callbacks",
    "path.simplify": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
    "legend.frameon": False,
    "axes.formatter.use_mathtext": False,
}
_WIDTH: Final = 8.0  # inches; the page scales it


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        name: Of its file, without the suffix.
        svg: An element of a page that has the colours ``--ink``, ``--main`` and so on.
    """

    name: str
    svg: str

    def file(self) -> str:
        """Return it as a file of its own, with a white ground and the colours of the light page."""
        text = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], self.svg)
        head, body = text.split(">", 1)
        head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ')
        head = head.replace(' aria-hidden="true"', "")
        return f'{head}>\n<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>{body}\n'


def distributions(analysis: Analysis, highlight: Sequence[int] = ()) -> Drawing:
    """Draw each variant's histogram, its runs, its mean with interval, its outliers and the highlighted seeds."""
    shown = [v for v in analysis.variants if v.distribution is not None]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.6 + 2.3 * len(shown)), layout="constrained")
        axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        scores = np.concatenate([v.distribution.scores for v in shown if v.distribution is not None])
        edges = _edges(scores)
        for axis, variant in zip(axes, shown, strict=True):
            _distribution(axis, variant, edges, highlight)
        axes[-1].set_xlabel(analysis.metric.label)
        return _svg(figure, "distribution")


def _distribution(axis: Any, variant: VariantAnalysis, edges: Array, highlight: Sequence[int]) -> None:
    found = variant.distribution
    assert found is not None
    counts, _, _ = axis.hist(found.scores, bins=edges, color=MAIN, alpha=0.35, linewidth=0)
    top = max(float(counts.max()), 1.0)
    _rug(axis, found.scores, top)
    low, high = found.mean.low, found.mean.high
    if math.isfinite(low):
        axis.plot([low, high], [1.08 * top] * 2, color=INK, lw=2.5, solid_capstyle="butt")
    axis.plot(found.mean.value, 1.08 * top, "o", color=INK, ms=5)
    axis.annotate("mean", (found.mean.value, 1.08 * top), (0, 5), textcoords="offset points", ha="center", color=INK)
    out = found.outliers
    axis.plot(out.scores, np.full(len(out.scores), -0.10 * top), "o", mfc="none", mec=ALERT, ms=9, mew=1.4)
    for place, seed in enumerate(seed for seed in highlight if seed in found.seeds):
        score = found.scores[found.seeds.index(seed)]
        axis.axvline(score, color=SECOND, lw=1.2, ls=(0, (4, 2)), ymax=0.86)
        text = f"seed {seed}"
        axis.annotate(text, (score, (0.92 - 0.12 * place) * top), (4, 0), textcoords="offset points", color=SECOND)
    axis.set_ylim(-0.2 * top, 1.28 * top)
    axis.set_ylabel(f"{variant.name} (runs)" if variant.name else "runs")
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if value >= 0 else ""))


def selection(picked: Selection, metric: Metric, name: str) -> Drawing:
    """Draw what the best of k seeds gains where it is picked, elsewhere, and for normal scores."""
    factor = 100 if metric.points else 1
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
        axis = figure.subplots()
        axis.axhline(0, color=MUTED, lw=0.8)
        axis.plot(picked.sizes, picked.curve * factor, color=MAIN, lw=2, label="on the data it was picked on")
        if picked.holdout is not None:
            label = "the same seed, on data it was not picked on"
            axis.plot(picked.sizes, picked.holdout.curve * factor, color=SECOND, lw=2, label=label)
        label = "normal scores of this spread"
        axis.plot(picked.sizes, picked.expected_curve * factor, color=MUTED, lw=1.2, ls=(0, (1, 2)), label=label)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axis.set_xlim(0.9, picked.sizes[-1] * 1.1)
        axis.set_xlabel("best of k seeds")
        axis.set_ylabel(f"better than the mean{' (points)' if metric.points else ''}")
        axis.grid(axis="y", lw=0.6)
        axis.legend(loc="upper left")
        return _svg(figure, f"selection-{name}")


def differences(pair: PairedComparison, metric: Metric) -> Drawing:
    """Draw the paired differences, their mean with interval, and zero."""
    factor = 100 if metric.points else 1
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.5), layout="constrained")
        axis: Any = figure.subplots()
        values = pair.differences * factor
        counts, _, _ = axis.hist(values, bins=_edges(values), color=MAIN, alpha=0.35, linewidth=0)
        top = max(float(counts.max()), 1.0)
        _rug(axis, values, top)
        axis.axvline(0, color=ALERT, lw=1.2, ls=(0, (4, 2)), ymax=0.86)
        low, high = pair.difference.low * factor, pair.difference.high * factor
        if math.isfinite(low):
            axis.plot([low, high], [1.08 * top] * 2, color=INK, lw=2.5, solid_capstyle="butt")
        mean = pair.difference.value * factor
        axis.plot(mean, 1.08 * top, "o", color=INK, ms=5)
        axis.annotate("mean", (mean, 1.08 * top), (0, 5), textcoords="offset points", ha="center", color=INK)
        axis.set_ylim(-0.2 * top, 1.28 * top)
        axis.set_xlabel(f"{pair.a} - {pair.b}, same seed{' (points)' if metric.points else ''}")
        axis.set_ylabel("pairs")
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if value >= 0 else ""))
        return _svg(figure, f"differences-{pair.a}-{pair.b}")


def sources(found: Sources, metric: Metric, name: str) -> Drawing:
    """Draw the standard deviation that each source makes, with its interval, and that of all together."""
    factor = 100 if metric.points else 1
    rows = [*found.sources, *([found.together] if found.together else [])]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.8 + 0.42 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for row, source in enumerate(reversed(rows)):
            estimate = source.standard_deviation.times(factor)
            color = SECOND if source is found.together else MAIN
            axis.barh(row, estimate.value, height=0.6, color=color, alpha=0.45)
            if math.isfinite(estimate.low):
                axis.plot([estimate.low, estimate.high], [row, row], color=INK, lw=1.8, solid_capstyle="butt")
        names = [NAMES.get(source.purpose, "all together") for source in rows]
        axis.set_yticks(range(len(rows)), labels=names[::-1])
        axis.tick_params(axis="y", length=0)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"standard deviation of {metric.label} between seeds{' (points)' if metric.points else ''}")
        axis.grid(axis="x", lw=0.6)
        axis.set_axisbelow(True)
        return _svg(figure, f"sources-{name}")


def cases(found: Stability, name: str, limit: int = 25) -> Drawing:
    """Draw the least stable cases: how many seeds are right, or the range between seeds."""
    table = found.table.head(min(limit, found.flipping)).iloc[::-1]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.8 + 0.2 * len(table)), layout="constrained")
        axis = figure.subplots()
        rows = np.arange(len(table))
        if found.binary:
            axis.barh(rows, table["mean"] * 100, height=0.7, color=MAIN, alpha=0.45)
            axis.barh(rows, (1 - table["mean"]) * 100, left=table["mean"] * 100, height=0.7, color=ALERT, alpha=0.3)
            axis.set_xlim(0, 100)
            axis.set_xlabel("% of seeds that get the case right")
        else:
            axis.hlines(rows, table["min"], table["max"], color=MAIN, lw=2, alpha=0.5)
            axis.plot(table["mean"], rows, "o", color=MAIN, ms=5)
            axis.set_xlabel("worst, mean and best of all seeds")
            axis.grid(axis="x", lw=0.6)
        axis.set_yticks(rows, labels=[str(case)[:28] for case in table["case"]], fontsize=8)
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(-0.7, len(table) - 0.3)
        return _svg(figure, f"cases-{name}")


def _rug(axis: Any, values: Array, top: float) -> None:
    """Draw a tick for each run below the histogram, as one path: 10 000 markers would be 10 000 elements."""
    x = np.repeat(np.sort(values), 3)
    y = np.tile([-0.16 * top, -0.05 * top, np.nan], len(values))
    axis.plot(x, y, color=MAIN, lw=0.8, alpha=0.7 if len(values) <= 300 else 0.5, solid_capstyle="butt")


def _edges(values: Array) -> Array:
    """Return histogram edges by Freedman and Diaconis' rule, 8 to 60 bins where there is a spread, fit to a grid."""
    if np.ptp(values) == 0:
        half = abs(float(values[0])) / 100 or 0.5
        return np.array([values[0] - half, values[0] + half])
    bins = len(np.histogram_bin_edges(values, bins="fd")) - 1
    width = float(np.ptp(values)) / int(np.clip(bins, 8, 60))
    distinct = np.unique(values)
    step = float(np.diff(distinct).min())
    places = (distinct - distinct[0]) / step
    if places[-1] <= 1000 and np.allclose(places, np.rint(places), atol=0.01):
        # Scores on a grid, such as shares of 500 images: bins that hold unlike numbers of its points would show teeth.
        points = max(1, round(width / step))
        count = int(places[-1]) // points + 1
        return np.asarray(distinct[0] - step / 2 + points * step * np.arange(count + 1), dtype=np.float64)
    return np.linspace(values.min(), values.max(), round(np.ptp(values) / width) + 1)


def _svg(figure: Figure, name: str) -> Drawing:
    """Return the figure as an SVG element to put into a page, without a date, with its colours and ids made fit."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
    text = re.sub(r'<g id="(?!clip)[^"]*">', "<g>", text)
    # What is left of ids is referred to by others: they must not be those of another figure on the page.
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{slug}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text.replace("xlink:href", "href"))
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return Drawing(slug, text)
