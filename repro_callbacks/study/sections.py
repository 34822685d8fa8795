"""The report's sections: which sentence, figure and table stands where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from repro_callbacks.study import figures, sentences
from repro_callbacks.study.analysis import PURPOSE_COLUMNS, Analysis, VariantAnalysis
from repro_callbacks.study.distribution import Distribution
from repro_callbacks.study.metric import Metric, p_value, percent, write
from repro_callbacks.study.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_CASES = 100


@dataclass(frozen=True)
class Row:
    """A row of a table, its cells written out."""

    cells: Sequence[str]
    failed: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of a section. ``kind`` says what the page makes of it."""

    kind: str
    text: str = ""
    drawing: figures.Drawing | None = None
    heads: Sequence[str] = ()
    rows: Sequence[Row] = ()
    numbers: Sequence[int] = ()


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    parts: list[Part] = field(default_factory=list)


def sections(analysis: Analysis, highlight: Sequence[int], draw: bool = True) -> list[Section]:
    """Return the sections that this study has something to say in.

    Args:
        analysis: The study.
        highlight: Seeds to point out.
        draw: Make figures too.
    """
    described = [v for v in analysis.variants if v.distribution is not None]
    makers: tuple[Callable[[], Section], ...] = (
        lambda: _distribution(analysis, described, highlight, draw),
        lambda: _outliers(analysis, described),
        lambda: _selection(analysis, described, draw),
        lambda: _comparison(analysis, draw),
        lambda: _sources(analysis, described, draw),
        lambda: _cases(analysis, draw),
        lambda: _failed(analysis),
    )
    return [section for section in (make() for make in makers) if section.parts]


def _distribution(
    analysis: Analysis, described: Sequence[VariantAnalysis], highlight: Sequence[int], draw: bool
) -> Section:
    section = Section("How scores spread over seeds")
    if not described:
        return section
    if draw:
        text = "Each tick is a run. The dot is the mean, the bar its interval. Circles are outliers."
        section.parts.append(Part("figure", text, figures.distributions(analysis, highlight)))
    for variant in described:
        found = variant.distribution
        assert found is not None
        for seed in highlight:
            if seed in found.seeds:
                section.parts.append(Part("text", _place(variant, found, seed, analysis.metric)))
        if variant.varied != "all":
            who = f"{variant.name}: " if variant.name else ""
            section.parts.append(Part("text", f"{who}These runs vary the seed of {variant.varied} only."))
    section.parts.append(_description(analysis, described))
    return section


def _place(variant: VariantAnalysis, found: Distribution, seed: int, metric: Metric) -> str:
    score = float(found.scores[found.seeds.index(seed)])
    better = (found.scores > score) if metric.maximize else (found.scores < score)
    off = score - found.mean.value
    inside = abs(off) <= found.noise.spread.value
    who = f"{variant.name}: " if variant.name else ""
    return (
        f"{who}Seed {seed} scores {metric.score(score, found.standard_deviation.value)}, "
        f"{metric.gain(off, found.standard_deviation.value, signed=True)} from the mean, place {int(better.sum()) + 1} "
        f"of {found.n}: {'inside' if inside else 'outside'} the range that 95 % of runs are expected in."
    )


def _description(analysis: Analysis, described: Sequence[VariantAnalysis]) -> Part:
    metric, level = analysis.metric, percent(analysis.confidence)

    def score(pick: Callable[[Distribution], Estimate]) -> Callable[[Distribution], str]:
        return lambda found: _with_interval(pick(found), found, metric)

    def plain(pick: Callable[[Distribution], float]) -> Callable[[Distribution], str]:
        return lambda found: metric.score(pick(found), found.standard_deviation.value)

    lines: tuple[tuple[str, Callable[[Distribution], str]], ...] = (
        ("runs", lambda found: str(found.n)),
        (f"mean ({level} interval, Student's t)", score(lambda found: found.mean)),
        (f"mean ({level} interval, BCa)", score(lambda found: found.mean_bca)),
        (f"median ({level} interval, exact)", score(lambda found: found.median)),
        (f"interquartile mean ({level} interval, BCa)", score(lambda found: found.interquartile_mean)),
        (f"standard deviation ({level} interval, Bonett)", lambda found: _deviation(found, metric)),
        ("lowest", plain(lambda found: found.minimum)),
        ("highest", plain(lambda found: found.maximum)),
        ("skewness, excess kurtosis", lambda found: f"{write(found.skewness, 2)}, {write(found.excess_kurtosis, 2)}"),
    )
    found = [v.distribution for v in described if v.distribution is not None]
    rows = [Row([name, *(show(one) for one in found)]) for name, show in lines]
    heads = ["", *(v.name or metric.name for v in described)]
    return Part("table", heads=heads, rows=rows, numbers=range(1, len(heads)))


def _with_interval(estimate: Estimate, found: Distribution, metric: Metric) -> str:
    resolution = found.standard_deviation.value
    text = metric.score(estimate.value, resolution)
    if not math.isfinite(estimate.low):
        return text
    return f"{text} ({metric.score_interval(estimate, resolution)})"


def _deviation(found: Distribution, metric: Metric) -> str:
    deviation = found.standard_deviation
    text = metric.gain(deviation.value)
    return f"{text} ({metric.gain_interval(deviation)})" if math.isfinite(deviation.low) else text


def _outliers(analysis: Analysis, described: Sequence[VariantAnalysis]) -> Section:
    section = Section("Black swans")
    for variant in described:
        who = f"{variant.name}: " if variant.name else ""
        section.parts.append(Part("text", who + sentences.outliers(analysis, variant)))
    return section


def _selection(analysis: Analysis, described: Sequence[VariantAnalysis], draw: bool) -> Section:
    section = Section("What picking the best seed gains")
    for variant in described:
        lines = sentences.selection(analysis, variant)
        if not lines:
            continue
        if variant.name:
            section.parts.append(Part("heading", variant.name))
        section.parts += [Part("text", line) for line in lines]
        if draw and variant.selection is not None:
            drawn = figures.selection(variant.selection, analysis.metric, variant.name)
            text = "What the best of k seeds has above the mean seed, averaged over all choices of k of these runs."
            section.parts.append(Part("figure", text, drawn))
    return section


def _comparison(analysis: Analysis, draw: bool) -> Section:
    title = "A against B"
    if len(analysis.comparisons) == 1:
        title = f"{analysis.comparisons[0].a} against {analysis.comparisons[0].b}"
    elif analysis.comparisons:
        title = "Variants against each other"
    section = Section(title)
    for pair in analysis.comparisons:
        if len(analysis.comparisons) > 1:
            section.parts.append(Part("heading", f"{pair.a}, {pair.b}"))
        section.parts += [Part("text", line) for line in sentences.comparison_details(analysis, pair)]
        if draw and pair.n > 1:
            drawn = figures.differences(pair, analysis.metric)
            caption = "Difference between the two variants for each seed that both finished."
            section.parts.append(Part("figure", caption, drawn))
    if analysis.comparisons:
        how = "all sign flips" if all(pair.exact for pair in analysis.comparisons) else "sign flips"
        said = ", ".join(f"{pair.a}, {pair.b}: {p_value(pair.p)}" for pair in analysis.comparisons)
        note = (
            f"Two-sided permutation test by {how} ({said} before any correction). The number of seeds must be fixed "
            "beforehand: adding seeds until a difference appears makes false claims."
        )
        section.parts.append(Part("text", note))
    return section


def _sources(analysis: Analysis, described: Sequence[VariantAnalysis], draw: bool) -> Section:
    section = Section("Where the variance comes from")
    for variant in described:
        if variant.sources is None:
            continue
        if variant.name:
            section.parts.append(Part("heading", variant.name))
        if draw:
            drawn = figures.sources(variant.sources, analysis.metric, variant.name)
            section.parts.append(
                Part("figure", "One seed varied at a time, the others fixed; bars are intervals.", drawn)
            )
        section.parts += [Part("text", line) for line in sentences.sources(analysis, variant)]
    return section


def _cases(analysis: Analysis, draw: bool) -> Section:
    section = Section("Cases that flip between seeds")
    for variant in analysis.variants:
        found = variant.stability
        if found is None:
            continue
        section.parts += [Part("text", line) for line in sentences.cases(analysis, variant)]
        if draw and found.flipping and found.runs > 1:
            text = "The least stable cases."
            section.parts.append(Part("figure", text, figures.cases(found, variant.name)))
        columns = [c for c in ("case", "n", "mean", "sd", "min", "max", "entropy") if c in found.table]
        rows = [Row([_cell(row[c]) for c in columns]) for _, row in found.table.head(_SHOWN_CASES).iterrows()]
        section.parts.append(
            Part(
                "folded",
                f"The {len(rows)} least stable of {len(found.table)} cases",
                heads=columns,
                rows=rows,
                numbers=range(1, len(columns)),
            )
        )
    return section


def _failed(analysis: Analysis) -> Section:
    section = Section("Runs without a score")
    if analysis.failed.empty:
        return section
    columns = [*_naming(analysis.table), "why"]
    section.parts.append(_table("table", "", analysis.failed, columns))
    return section


def all_runs(analysis: Analysis) -> Section:
    """Return the table of every run. Times are left out: they differ each time, and the report must not."""
    columns = [*_naming(analysis.table), *[c for c in PURPOSE_COLUMNS if c in analysis.table], "status"]
    columns += [c for c in (*analysis.metrics, "weights") if c in analysis.table]
    return Section("All runs", [_table("folded", f"{analysis.asked} runs", analysis.table, columns)])


def _naming(table: pd.DataFrame) -> list[str]:
    naming = ["variant"] if (table["variant"] != "").any() else []
    return [*naming, *(["vary"] if (table["vary"] != "all").any() else []), "seed"]


def _table(kind: str, text: str, table: pd.DataFrame, columns: Sequence[str]) -> Part:
    values = [table[column].tolist() for column in columns]
    failed: Iterable[bool] = (table["status"] == "failed").tolist()
    rows = [
        Row([_cell(cell) for cell in cells], bad) for cells, bad in zip(zip(*values, strict=True), failed, strict=True)
    ]
    numbers = [i for i, column in enumerate(columns) if table[column].dtype.kind in "fiu"]
    return Part(kind, text, heads=columns, rows=rows, numbers=numbers)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)[:300]
