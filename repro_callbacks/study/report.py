"""The report of a study: one self-contained HTML page, and a summary for a terminal. The same data, the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from repro_callbacks.study import sentences
from repro_callbacks.study.analysis import Analysis, analyse
from repro_callbacks.study.metric import percent
from repro_callbacks.study.statistics import CONFIDENCE

if TYPE_CHECKING:
    import pandas as pd

    from repro_callbacks.study.sections import Part

FILE: Final = "report.html"
FIGURES: Final = "figures"


def write_report(
    runs: pd.DataFrame,
    metric: str,
    out_dir: str | Path,
    cases: pd.DataFrame | None = None,
    title: str | None = None,
    maximize: bool | None = None,
    confidence: float = CONFIDENCE,
    highlight: Sequence[int] = (),
) -> Path:
    """Write a study's report as one HTML page that needs nothing from elsewhere, and its figures as SVG files.

    Args:
        runs: One row for each run, as :func:`repro_callbacks.study.analysis.analyse` describes it.
        metric: The column to report on.
        out_dir: Where ``report.html`` and ``figures/`` are written; made if it is not there.
        cases: Scores of single cases, to see which flip between seeds.
        title: Of the page.
        maximize: Whether a high score is a good one; guessed from the metric's name if not given.
        confidence: Of all intervals and, as 1 - confidence, of all tests.
        highlight: Seeds to point out, such as 3407.

    Returns:
        The page's path.

    Raises:
        ValueError: If a column is missing or a value is not understood.

    Example:
        >>> import pandas as pd, tempfile
        >>> runs = pd.DataFrame({"seed": range(6), "val_dice": [0.81, 0.80, 0.83, 0.82, 0.81, 0.84]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report(runs, "val_dice", folder)
        ...     path.name, "a gain below 5.4 points" in path.read_text(encoding="utf-8")
        ('report.html', True)
    """
    import repro_callbacks
    from repro_callbacks.study import page, sections

    analysis = analyse(runs, metric, cases, maximize, confidence)
    shown = [*sections.sections(analysis, highlight), sections.all_runs(analysis)]
    described = [variant for variant in analysis.variants if variant.distribution is not None]
    text = page.render(
        title=title or f"Seed study of {metric}",
        headlines=[sentences.headline(analysis, variant) for variant in analysis.variants],
        lead=sentences.noise(analysis, described[0]) if len(described) == 1 else [],
        verdicts=[
            {"text": sentences.comparison(analysis, pair), "claim": pair.verdict in ("a", "b")}
            for pair in analysis.comparisons
        ],
        cautions=sentences.cautions(analysis),
        tiles=_tiles(analysis),
        sections=shown,
        footer=_footer(analysis, repro_callbacks.__version__),
    )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_bytes(text.encode())
    drawings = [part.drawing for section in shown for part in section.parts if part.drawing]
    if drawings:
        (folder / FIGURES).mkdir(exist_ok=True)
    for drawing in drawings:
        (folder / FIGURES / f"{drawing.name}.svg").write_bytes(drawing.file().encode())
    return path


def summary(
    runs: pd.DataFrame,
    metric: str,
    cases: pd.DataFrame | None = None,
    maximize: bool | None = None,
    confidence: float = CONFIDENCE,
    highlight: Sequence[int] = (),
) -> str:
    """Return what the report says, without figures and long tables, as Markdown for a terminal or a pull request.

    The arguments are those of :func:`write_report`.

    Example:
        >>> import pandas as pd
        >>> runs = pd.DataFrame({"seed": range(6), "val_dice": [0.81, 0.80, 0.83, 0.82, 0.81, 0.84]})
        >>> print(summary(runs, "val_dice").splitlines()[0])
        **Between seeds, Dice varies by ±3.8 points; a gain below 5.4 points from one run each is noise.**
    """
    from repro_callbacks.study import sections

    analysis = analyse(runs, metric, cases, maximize, confidence)
    lines: list[str] = []
    for variant in analysis.variants:
        lines += [f"**{sentences.headline(analysis, variant)}**", "", *sentences.noise(analysis, variant), ""]
    lines += [f"**{sentences.comparison(analysis, pair)}**\n" for pair in analysis.comparisons]
    lines += [f"> {line}" for line in sentences.cautions(analysis)]
    for section in sections.sections(analysis, highlight, draw=False):
        lines += ["", f"## {section.title}", ""]
        for part in section.parts:
            if part.kind == "table":
                lines += ["", *_markdown(part), ""]
            elif part.kind != "folded":
                lines.append(f"- {part.text}" if part.kind != "heading" else f"\n### {part.text}\n")
    return _without_double_blanks(lines)


def _tiles(analysis: Analysis) -> list[dict[str, str]]:
    found = analysis.variants[0].distribution if len(analysis.variants) == 1 else None
    if found is None or found.n < 2:
        return []
    metric, deviation = analysis.metric, found.standard_deviation.value
    lowest, highest = metric.score(found.minimum, deviation), metric.score(found.maximum, deviation)
    failed = f", {len(analysis.failed)} without a score" if len(analysis.failed) else ""
    return [
        {"value": str(found.n), "name": f"seeds{failed}"},
        {"value": metric.score(found.mean.value, deviation), "name": f"mean {metric.label}"},
        {"value": metric.gain(deviation), "name": "standard deviation"},
        {"value": f"{lowest} to {highest}", "name": "worst and best" if metric.maximize else "best and worst"},
    ]


def _footer(analysis: Analysis, version: str) -> str:
    metric = analysis.metric
    good = "high" if metric.maximize else "low"
    unit = " A point is 0.01." if metric.points else ""
    return (
        f"A {good} {metric.name} is taken as good.{unit} The threshold for one run each is "
        f"t·√2·(standard deviation), with Student's quantile for {percent(analysis.confidence)} (1.96 for many seeds). "
        "Intervals: Student's t for means and paired differences, Bonett (2006) for standard deviations, exact "
        "for medians and shares of pairs, BCa (Efron 1987, 9999 resamples, fixed generator) where it says so; BCa is "
        f"too narrow below some 20 seeds. repro-callbacks {version}."
    )


def _markdown(part: Part) -> list[str]:
    heads, rows, numbers = part.heads, part.rows, part.numbers
    body = [list(heads), *(list(row.cells) for row in rows)]
    rule = ["---:" if i in numbers else "---" for i in range(len(heads))]
    return ["| " + " | ".join(row) + " |" for row in (body[0], rule, *body[1:])]


def _without_double_blanks(lines: Sequence[str]) -> str:
    kept: list[str] = []
    for line in "\n".join(lines).splitlines():
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip() + "\n"
