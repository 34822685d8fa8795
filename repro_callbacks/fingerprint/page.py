"""A comparison as one HTML page that needs nothing else: the verdict, two timelines, the losses, the steps around."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Final

from repro_callbacks.fingerprint.compare import Comparison
from repro_callbacks.fingerprint.report import DIFFERS, ROWS, SAME, Column, around, compared, describe
from repro_callbacks.fingerprint.runs import Run, position_of
from repro_callbacks.record import RunRecord

_WIDTH: Final = 920
_LEFT, _RIGHT = 34, 10
_POINTS: Final = 400

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --line: #d5dbe3; --paper: #fff; --ground: #f4f6f9;
  --good: #1a7f4b; --good-soft: #d9f0e3; --bad: #b3261e; --bad-soft: #fbe0dd; --a: #1f5fae; --b: #c2620a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf2; --soft: #9aa7b8; --line: #35404f; --paper: #1b222c;
  --ground: #12171e; --good: #5fd09a; --good-soft: #173526; --bad: #ff8a80; --bad-soft: #43201d; --a: #7fb2f0;
  --b: #f0a35c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 20px; margin: 0 0 18px; font-weight: 600; }
h2 { font-size: 16px; margin: 0 0 10px; font-weight: 600; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px;
  margin: 0 0 16px; }
.verdict { border-left: 6px solid var(--good); }
.verdict.different { border-left-color: var(--bad); }
.verdict p { margin: 0 0 8px; }
.verdict .first { font-size: 17px; font-weight: 600; }
.class { display: inline-block; padding: 1px 10px; border-radius: 999px; font-weight: 600; font-size: 13px;
  background: var(--good-soft); color: var(--good); }
.different .class { background: var(--bad-soft); color: var(--bad); }
.label { color: var(--soft); }
ul { margin: 6px 0 0; padding-left: 20px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { text-align: left; padding: 4px 8px; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; }
td.same { color: var(--good); }
td.differs { color: var(--bad); font-weight: 600; }
td.absent { color: var(--soft); }
th.here, td.here { background: var(--bad-soft); }
code { font: 12px ui-monospace, Menlo, Consolas, monospace; color: var(--soft); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--soft); }
svg .name { font-size: 14px; font-weight: 600; fill: var(--ink); }
.a { color: var(--a); } .b { color: var(--b); }
"""


def page(comparison: Comparison) -> str:
    """Return a comparison as a self-contained HTML page.

    It holds no script and loads nothing, so it can be mailed, or kept as an artifact of a CI run.
    """
    a, b = compared(comparison)
    equal = comparison.equal
    body = [
        "<h1>Two runs compared</h1>",
        _verdict(comparison),
        _section("Timelines", _timelines(comparison, a, b)),
        _section("Loss", _losses(comparison, a, b)),
        _section("The last steps" if equal else "The steps around it", _steps(around(comparison), comparison)),
        _section("Environments", _environments(a, b)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Runs compared: {'equal' if equal else 'different'}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _verdict(comparison: Comparison) -> str:
    found = comparison.divergence
    parts = [f'<p class="first">{escape(comparison.sentence)}</p>']
    if found is None:
        parts.insert(0, '<p><span class="class">equal</span></p>')
    else:
        parts.insert(0, f'<p><span class="class">{escape(found.cause)}</span></p>')
        parts.append(f'<p><span class="label">Likely cause:</span> {escape(found.likely)}.</p>')
        parts.append(f'<p><span class="label">Remedy:</span> {escape(found.remedy)}</p>')
    told = [*(found.details if found is not None else ()), *comparison.notes]
    parts.append(_list(told))
    kind = "verdict" if found is None else "verdict different"
    return f'<section class="{kind}">{"".join(parts)}</section>'


def _list(items: Iterable[str]) -> str:
    written = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<ul>{written}</ul>" if written else ""


def _x(number: float, total: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * number / max(1, total)


def _total(a: Run, b: Run) -> int:
    return max((line["number"] + 1 for run in (a, b) if (line := run.last()) is not None), default=1)


def _where(comparison: Comparison, a: Run, b: Run) -> int | None:
    """Return the number of the batch in which the runs part."""
    found = comparison.divergence
    if found is None or found.epoch is None or found.batch is None:
        return None
    line = a.find((found.epoch, found.batch)) or b.find((found.epoch, found.batch))
    return None if line is None else int(line["number"])


def _timelines(comparison: Comparison, a: Run, b: Run) -> str:
    total, part = _total(a, b), _where(comparison, a, b)
    sides = (("A", a, comparison.a, comparison.runs[0]), ("B", b, comparison.b, comparison.runs[1]))
    parts = []
    for row, (name, run, path, runs) in enumerate(sides):
        top = 20 + row * 46
        label = f"{escape(str(path))}: {escape(describe(run, runs))}"
        parts.append(f'<text class="name" x="0" y="{top + 14}" style="fill:var(--{name.lower()})">{name}</text>')
        parts.append(f'<text x="{_LEFT}" y="{top - 5}">{label}</text>')
        parts += _timeline(run, top, total, part)
    if part is not None:
        x, late = _x(part, total), _x(part, total) > _WIDTH * 0.7
        parts.append(_line(x, x, 4, 98, "bad", 2))
        parts.append(
            f'<text x="{x + (-6 if late else 6):.1f}" y="108" text-anchor="{"end" if late else "start"}" '
            f'style="fill:var(--bad)">they part here: batch {part} of the training</text>'
        )
    marks = " Triangles are resumes." if a.resumes or b.resumes else ""
    parts.append(f'<text x="{_LEFT}" y="124">Gaps begin epochs.{marks}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} 130" role="img" aria-label="timelines of both runs">{"".join(parts)}</svg>'


def _timeline(run: Run, top: int, total: int, part: int | None) -> list[str]:
    """Draw one run: green up to where they part, red behind it; epochs and resumes marked."""
    first, last = run.first(), run.last()
    begin, end = 0 if first is None else first["number"], 0 if last is None else last["number"] + 1
    split = end if part is None else max(begin, min(part, end))
    parts = [_bar(begin, split, total, top, "good"), _bar(split, end, total, top, "bad")]
    parts += [_line(_x(n, total), _x(n, total), top, top + 18, "paper") for n in _epoch_starts(run)]
    for segment in run.resumes:
        line = run.find(segment.at)
        at = _x(0 if line is None else line["number"], total)
        told = f"resumed at epoch {segment.at[0]}, batch {segment.at[1]}"
        parts.append(f'<path d="M{at:.1f} {top + 19} l-5 8 h10 z" fill="var(--ink)"><title>{told}</title></path>')
    return parts


def _line(x1: float, x2: float, y1: float, y2: float, colour: str, width: float = 1.0) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1}" y2="{y2}" stroke="var(--{colour})" stroke-width="{width}"/>'


def _bar(begin: int, end: int, total: int, top: int, colour: str) -> str:
    if end <= begin:
        return ""
    left, right = _x(begin, total), _x(end, total)
    width = max(1.0, right - left)
    return f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="18" fill="var(--{colour})" opacity="0.85"/>'


def _epoch_starts(run: Run) -> list[int]:
    """Return the numbers of the batches that begin epochs, as far as they can be told apart on the page."""
    last = run.last()
    if last is None or last["epoch"] > 150:
        return []
    lines = (run.after((epoch, 0)) for epoch in range(1, last["epoch"] + 1))
    return [line["number"] for line in lines if line is not None]


def _losses(comparison: Comparison, a: Run, b: Run) -> str:
    total, part, height, top, bottom = _total(a, b), _where(comparison, a, b), 190, 10, 170
    curves = {"a": _curve(comparison, a), "b": _curve(comparison, b)}
    values = [value for points in curves.values() for _, value in points]
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (bottom - top) / ((high - low) or 1.0)
    parts = [_line(_LEFT, _WIDTH - _RIGHT, bottom, bottom, "line")]
    for name, points in curves.items():
        path = " ".join(f"{_x(n + 0.5, total):.1f},{bottom - (value - low) * scale:.1f}" for n, value in points)
        dash = ' stroke-dasharray="6 4"' if name == "b" else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="var(--{name})" stroke-width="2"{dash}/>')
    if part is not None:
        parts.append(_line(_x(part + 0.5, total), _x(part + 0.5, total), top, bottom, "bad", 1.5))
    parts.append(
        f'<text x="0" y="{top + 8}">{high:.3g}</text><text x="0" y="{bottom}">{low:.3g}</text>'
        f'<text x="{_LEFT}" y="{height - 5}">batch 0</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{height - 5}" text-anchor="end">batch {total - 1}</text>'
    )
    legend = '<p class="label"><span class="a">━━ A</span> &nbsp; <span class="b">╍╍ B</span></p>'
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="losses">{"".join(parts)}</svg>{legend}'


def _curve(comparison: Comparison, run: Run) -> list[tuple[int, float]]:
    """Return the loss at some batches, the one where the runs part among them."""
    lines = run.sample(_POINTS)
    found = comparison.divergence
    if found is not None and found.epoch is not None and found.batch is not None:
        line = run.find((found.epoch, found.batch))
        lines = sorted([*lines, *([] if line is None else [line])], key=position_of)
    losses = [(line["number"], line.get("loss_value")) for line in lines]
    return [(number, loss) for number, loss in losses if isinstance(loss, int | float) and math.isfinite(loss)]


def _steps(columns: list[Column], comparison: Comparison) -> str:
    found = comparison.divergence
    here = [found is not None and column.position == (found.epoch, found.batch) for column in columns]
    heads = "".join(
        f"<th{' class=here' if own else ''}>epoch {column.position[0]}, batch {column.position[1]}</th>"
        for column, own in zip(columns, here, strict=True)
    )
    rows = []
    for name, label in ROWS.items():
        cells = "".join(_cell(column, name, own) for column, own in zip(columns, here, strict=True))
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    table = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{table}</div>' if columns else ""


def _cell(column: Column, name: str, here: bool) -> str:
    value = column.cells[name]
    kind = {SAME: "same", DIFFERS: "differs"}.get(value, "absent")
    shown = escape(value)
    if value == DIFFERS and column.a is not None and column.b is not None:
        ours, theirs = _brief(column.a[name], column.b[name]), _brief(column.b[name], column.a[name])
        shown = f"differs<br><code>A {ours}<br>B {theirs}</code>"
    return f'<td class="{kind}{" here" if here else ""}">{shown}</td>'


def _brief(value: object, other: object) -> str:
    if isinstance(value, dict) and isinstance(other, dict):  # of the generators, those that differ
        differing = (key for key in value if key in other and value[key] != other[key])
        return escape(" ".join(f"{key} {value[key]}" for key in differing))
    return escape(str(value)[:12])


def _environments(a: Run, b: Run) -> str:
    ours, theirs = (RunRecord.from_dict(run.head["record"]) for run in (a, b))
    rows = "".join(
        f"<tr><td>{escape(own.field)}</td><td>{escape(str(own.ours))}</td><td>{escape(str(own.theirs))}</td>"
        f"<td>{'yes' if own.can_change_bits else 'no'}: {escape(own.reason)}</td></tr>"
        for own in ours.diff(theirs)
    )
    if not rows:
        return "<p>They are the same in all that was recorded.</p>"
    return (
        '<div class="wide"><table><thead><tr><th></th><th>A</th><th>B</th><th>can it change bits?</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
