"""Finds the first line in which two runs differ, by bisection over their chains where that is possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from repro_callbacks.fingerprint.causes import STAGES
from repro_callbacks.fingerprint.runs import Run, position_of
from repro_callbacks.fingerprint.store import Position


@dataclass(frozen=True)
class FirstDifference:
    """Where two runs of one rank first differ.

    Attributes:
        position: Epoch and batch.
        a: The line of the one run; None if it has none there.
        b: The line of the other.
        fields: The fields that differ, in the order in which a step computes them; empty where a line is missing.
    """

    position: Position
    a: dict[str, Any] | None
    b: dict[str, Any] | None
    fields: tuple[str, ...]


def differing_fields(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields of two steps that differ. What only one of them recorded can't be compared."""
    return tuple(name for name in STAGES if name in a and name in b and not _agree(name, a[name], b[name]))


def _agree(name: str, a: Any, b: Any) -> bool:
    if name in ("before", "after"):  # an accelerator that only one run had started has a generator only there
        return all(a[generator] == b[generator] for generator in a.keys() & b.keys())
    return bool(a == b)


def first_difference(a: Run, b: Run) -> FirstDifference | None:
    """Return where the steps of two runs first differ; None if they agree in all that both have recorded.

    Where one run goes on behind the end of the other, the first step that only it has is returned.
    """
    start: Position | None = max(a.segments[0].at, b.segments[0].at)
    if chained(a, b):
        start = _first_unequal_chain(a, b)
    if start is None:
        return None
    for position, line_a, line_b in _merge(a, b, start):
        if line_a is None or line_b is None:
            return FirstDifference(position, line_a, line_b, ())
        fields = differing_fields(line_a, line_b)
        if fields:
            return FirstDifference(position, line_a, line_b, fields)
    return None


def chained(a: Run, b: Run) -> bool:
    """Say whether the chains of two runs can be compared: they begin alike and record the same."""
    one, two = a.segments[0], b.segments[0]
    alike = all(segment.head["every"] == one.head["every"] for run in (a, b) for segment in run.segments)
    return alike and one.at == two.at and one.head["chains"] == two.head["chains"]


def _first_unequal_chain(a: Run, b: Run) -> Position | None:
    """Return the first position at which the chains differ or a step is missing; None if there is none."""

    def equal(line: dict[str, Any]) -> bool:
        other = b.find(position_of(line))
        return other is not None and other["chain"] == line["chain"]

    for segment in a.segments:
        last = a.last() if segment.limit is None else a.before(segment.limit)
        if last is None or position_of(last) < segment.at:
            continue  # a segment that was killed before its first step
        if equal(last):
            continue
        low, high, position = segment.begin, segment.end, position_of(last)
        while low < high:
            middle = (low + high) // 2
            found = segment.next("step", middle)
            if found is not None and position_of(found[1]) <= position and equal(found[1]):
                low = found[0] + 1
            else:
                high = middle
                if found is not None:
                    position = min(position, position_of(found[1]))
        return _or_extra(a, b, position)
    ends = a.last(), b.last()
    if ends[0] is None or ends[1] is None:
        return None
    extra = b.after(_behind(position_of(ends[0])))
    return None if extra is None else position_of(extra)


def _or_extra(a: Run, b: Run, position: Position) -> Position:
    """Return the position, or that of a step before it which only ``b`` has."""
    agreed = a.before(position)
    extra = b.first() if agreed is None else b.after(_behind(position_of(agreed)))
    return position if extra is None else min(position, position_of(extra))


def _behind(position: Position) -> Position:
    return position[0], position[1] + 1


def _merge(a: Run, b: Run, start: Position) -> Iterator[tuple[Position, dict[str, Any] | None, dict[str, Any] | None]]:
    """Yield the steps of two runs side by side, from a position on."""
    ours, theirs = a.iterate("step", start), b.iterate("step", start)
    one, two = next(ours, None), next(theirs, None)
    while one is not None or two is not None:
        at_one = None if one is None else position_of(one)
        at_two = None if two is None else position_of(two)
        position = min(at for at in (at_one, at_two) if at is not None)
        yield position, one if at_one == position else None, two if at_two == position else None
        if at_one == position:
            one = next(ours, None)
        if at_two == position:
            two = next(theirs, None)


def first_unequal_validation(
    a: Run, b: Run, stop: Position | None
) -> tuple[dict[str, Any], dict[str, Any], str] | None:
    """Return the first validation before a position in which both runs computed a metric and got other bits.

    Returns:
        The two lines and the name of the metric.
    """
    last = a.last("validation") if stop is None else a.before(stop, "validation")
    if last is None:
        return None
    other = b.find(position_of(last), "validation")
    if other is not None and chained(a, b) and last["chain"] == other["chain"]:
        return None
    for line in a.iterate("validation", (0, 0), stop):
        other = b.find(position_of(line), "validation")
        if other is not None:
            for name in sorted(line["metrics"].keys() & other["metrics"].keys()):
                if line["metrics"][name] != other["metrics"][name]:
                    return line, other, name
    return None
