"""Tells another order of the samples from other content: by indices where they are known, else by digests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice, pairwise
from typing import Final

from repro_callbacks.fingerprint.findings import Line, short
from repro_callbacks.fingerprint.runs import Run, position_of
from repro_callbacks.fingerprint.samples import SAMPLE_DIGITS
from repro_callbacks.fingerprint.store import Position

_EPOCH_LINES: Final = 20_000
_PATTERN_LINES: Final = 1000


def samples_of(line: Line) -> list[str]:
    """Return the digests of a batch's samples; none where they could not be told apart."""
    joined = line.get("samples", "")
    return [joined[i : i + SAMPLE_DIGITS] for i in range(0, len(joined), SAMPLE_DIGITS)]


def order_or_content(a: Run, b: Run, line: Line, other: Line) -> tuple[str, list[str]]:
    """Return whether two batches differ in the order or in the content of their samples, and what tells it.

    Args:
        a, b: The runs.
        line, other: Their steps at the position where the batches differ.
    """
    ours, theirs = samples_of(line), samples_of(other)
    asked, asked_too = line.get("indices"), other.get("indices")
    if asked is not None and asked_too is not None and asked != asked_too:
        told = f"The dataset was asked for {short(asked)} in A and for {short(asked_too)} in B."
        return "order of samples", [told]
    if len(ours) != len(theirs):
        return "order of samples", [f"The batch holds {len(ours)} samples in A and {len(theirs)} in B."]
    missing = list((Counter(ours) - Counter(theirs)).elements())
    if ours and not missing:
        return "order of samples", ["The batch holds the same samples in another order."]
    if asked is None and missing:
        elsewhere = _samples_of_epoch(b, line["epoch"])
        found = sum(sample in elsewhere for sample in missing)
        if found * 2 > len(missing):
            told = f"Of the {len(missing)} samples that B lacks there, {found} come in another batch of its epoch."
            return "order of samples", [told]
    details = []
    places = [number for number, (one, two) in enumerate(zip(ours, theirs, strict=True)) if one != two]
    if ours:
        named = "" if asked is None else f", index {short([asked[place] for place in places])} of the dataset"
        details.append(f"{len(places)} of its {len(ours)} samples differ: number {short(places)} of the batch{named}.")
    worker = _worker(a, b, position_of(line))
    return "content of a sample", details + ([worker] if worker else [])


def _samples_of_epoch(run: Run, epoch: int) -> set[str]:
    lines = islice(run.iterate("step", (epoch, 0), (epoch + 1, 0)), _EPOCH_LINES)
    return {sample for line in lines for sample in samples_of(line)}


def _worker(a: Run, b: Run, position: Position) -> str:
    """Name a worker if it is every n-th batch of the epoch that differs."""
    epoch = position[0]
    stop = (epoch + 1, 0)
    theirs = {line["batch"]: line.get("data") for line in _some(b.iterate("step", (epoch, 0), stop))}
    ours = [line for line in _some(a.iterate("step", (epoch, 0), stop)) if line["batch"] in theirs]
    differing = [line["batch"] for line in ours if line.get("data") != theirs[line["batch"]]]
    gaps = {later - earlier for earlier, later in pairwise(differing)}
    if len(gaps) != 1 or min(gaps) < 2:
        return ""
    every = min(gaps)
    return (
        f"In this epoch one in {every} batches differs, from batch {differing[0]} on: one of {every} workers, it seems."
    )


def _some(lines: Iterable[Line]) -> Iterable[Line]:
    return islice(lines, _PATTERN_LINES)
