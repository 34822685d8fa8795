"""A comparison as text for a terminal. As a page, see :mod:`.page`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from repro_callbacks.fingerprint.compare import Comparison
from repro_callbacks.fingerprint.differences import differing_fields
from repro_callbacks.fingerprint.findings import Line
from repro_callbacks.fingerprint.runs import Run, position_of
from repro_callbacks.fingerprint.store import Position

WIDTH: Final = 100
ROWS: Final = {
    "data": "batch",
    "before": "generators before",
    "after": "generators after",
    "loss": "loss",
    "buffers": "buffers",
    "gradients": "gradients",
    "schedule": "settings and schedule",
    "optimizer": "optimizer state",
    "parameters": "parameters",
}
"""The digests of a step in the order in which it computes them."""

SAME, DIFFERS, ABSENT = "same", "DIFFERS", "-"


@dataclass(frozen=True)
class Column:
    """One step of the two runs side by side.

    Attributes:
        cells: Field to ``same``, ``DIFFERS``, or ``-`` where one of them did not record it.
    """

    position: Position
    a: Line | None
    b: Line | None
    cells: dict[str, str]


def around(comparison: Comparison, before: int = 2, after: int = 2) -> list[Column]:
    """Return the steps before and after the one in which the runs part; the last steps of equal runs."""
    a, b = compared(comparison)
    found = comparison.divergence
    if found is not None and found.epoch is not None and found.batch is not None:
        position = found.epoch, found.batch
    else:
        last = a.last()
        if found is not None or last is None:
            return []
        position, before, after = position_of(last), before + after, 0
    positions = [position]
    for _ in range(before):
        earlier = [line for run in (a, b) if (line := run.before(positions[0])) is not None]
        if earlier:
            positions.insert(0, max(map(position_of, earlier)))
    for _ in range(after):
        behind = positions[-1][0], positions[-1][1] + 1
        later = [line for run in (a, b) if (line := run.after(behind)) is not None]
        if later:
            positions.append(min(map(position_of, later)))
    return [_column(at, a.find(at), b.find(at)) for at in positions]


def compared(comparison: Comparison) -> tuple[Run, Run]:
    """Return the two runs of the rank in which they part, or of the first."""
    rank = None if comparison.divergence is None else comparison.divergence.rank
    ours, theirs = comparison.runs
    return (ours[min(ours)], theirs[min(theirs)]) if rank is None else (ours[rank], theirs[rank])


def text(comparison: Comparison) -> str:
    """Return a comparison as text: the result, the two runs, and the steps around the divergence as a table."""
    a, b = compared(comparison)
    lines = [_wrap(comparison.sentence), ""]
    lines += [f"  {name}  {path}: {describe(run, runs)}" for name, path, run, runs in _sides(comparison, a, b)]
    found = comparison.divergence
    if found is not None:
        lines += ["", _wrap(f"Likely cause: {found.likely}."), _wrap(f"Remedy: {found.remedy}")]
        lines += [_wrap(f"- {detail}") for detail in found.details]
    columns = around(comparison)
    if columns:
        lines += ["", *_table(columns)]
    if comparison.notes:
        lines += ["", *(_wrap(f"Note: {note}") for note in comparison.notes)]
    return "\n".join(lines)


def describe(run: Run, runs: dict[int, Run]) -> str:
    """Return the size of a run in words."""
    last = run.last()
    batches, epochs = (0, 0) if last is None else (last["number"] + 1, last["epoch"] + 1)
    size = run.head["world_size"]
    words = [
        _count(batches, "batch", "batches"),
        _count(epochs, "epoch", "epochs"),
        _count(size, "process", "processes"),
    ]
    if len(runs) != size:
        words.append(f"of which {len(runs)} here")
    return ", ".join(words)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _sides(comparison: Comparison, a: Run, b: Run) -> list[tuple[str, object, Run, dict[int, Run]]]:
    return [("A", comparison.a, a, comparison.runs[0]), ("B", comparison.b, b, comparison.runs[1])]


def _column(position: Position, a: Line | None, b: Line | None) -> Column:
    if a is None or b is None:
        return Column(position, a, b, dict.fromkeys(ROWS, "only A" if b is None else "only B"))
    differing = differing_fields(a, b)
    cells = {name: DIFFERS if name in differing else SAME if name in a and name in b else ABSENT for name in ROWS}
    return Column(position, a, b, cells)


def _table(columns: Sequence[Column]) -> list[str]:
    heads = ["epoch / batch", *(f"{epoch} / {batch}" for epoch, batch in (column.position for column in columns))]
    rows = [[ROWS[name], *(column.cells[name] for column in columns)] for name in ROWS]
    widths = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
    return [
        f"  {lines[0]}".rstrip(),
        f"  {'  '.join('-' * width for width in widths)}",
        *(f"  {line}".rstrip() for line in lines[1:]),
    ]


def _wrap(words: str) -> str:
    return textwrap.fill(words, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
