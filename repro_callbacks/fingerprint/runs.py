"""Reads the file of :mod:`.store`: a run as it counts, its superseded steps left out, found by bisection over bytes."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro_callbacks.fingerprint.store import FORMAT, Position


class NotComparable(ValueError):
    """What was given can't be compared: no fingerprint is there, or one that can't be read."""


def position_of(line: dict[str, Any]) -> Position:
    """Return where a step or a validation stands: epoch and batch."""
    return line["epoch"], line["batch"]


@dataclass
class Segment:
    """One start or one resume of a run: the bytes from ``begin`` to ``end`` of a file.

    Attributes:
        head: Its first line.
        limit: The position from which a later segment supersedes it; None if none does.
    """

    data: mmap.mmap
    path: Path
    begin: int
    end: int
    head: dict[str, Any]
    limit: Position | None = None

    @property
    def at(self) -> Position:
        """The position of its first step."""
        epoch, batch = self.head["at"]
        return epoch, batch

    def line(self, offset: int) -> dict[str, Any]:
        """Return the line that begins at a byte."""
        return _parse(self.data[offset : self.data.find(b"\n", offset, self.end)], self.path)

    def next(self, kind: str, offset: int) -> tuple[int, dict[str, Any]] | None:
        """Return the first line of a kind that begins at or after a byte, and its offset."""
        newline = self.data.find(b'\n{"kind":"%b"' % kind.encode(), max(offset - 1, self.begin), self.end)
        return None if newline < 0 else (newline + 1, self.line(newline + 1))

    def seek(self, kind: str, position: Position) -> tuple[int, dict[str, Any]] | None:
        """Return the first line of a kind at or after a position, and its offset, whether or not it is superseded."""
        low, high, found = self.begin, self.end, None
        while low < high:
            middle = (low + high) // 2
            line = self.next(kind, middle)
            if line is None or position_of(line[1]) >= position:
                high, found = middle, line or found
            else:
                low = line[0] + 1
        return found

    def iterate(self, kind: str, start: Position, stop: Position | None) -> Iterator[dict[str, Any]]:
        """Yield the lines of a kind from ``start`` to before ``stop``, superseded or not."""
        found = self.seek(kind, start)
        while found is not None and (stop is None or position_of(found[1]) < stop):
            yield found[1]
            found = self.next(kind, found[0] + 1)


class Run:
    """The run of one rank, as its file tells it.

    Args:
        path: The file of one rank.

    Attributes:
        segments: Those that count, in the order of their positions.
        missing: A file that the run goes on from and that isn't there, if so.

    Raises:
        NotComparable: If it isn't there, isn't a fingerprint, or is of a later format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.missing: Path | None = None
        self.all_segments: list[Segment] = []
        self._read(self.path)
        self.segments: list[Segment] = []
        limit: Position | None = None
        for segment in reversed(self.all_segments):
            segment.limit = limit
            if limit is None or segment.at < limit:
                self.segments.insert(0, segment)
                limit = segment.at

    @property
    def head(self) -> dict[str, Any]:
        """The head of the first segment that counts."""
        return self.segments[0].head

    @property
    def rank(self) -> int:
        """The rank that wrote the file."""
        return int(self.head["rank"])

    @property
    def resumes(self) -> list[Segment]:
        """The segments that go on from a checkpoint."""
        return [segment for segment in self.segments if segment.head.get("resumed")]

    def segment_of(self, position: Position) -> Segment:
        """Return the segment that a position counts in."""
        return next((own for own in reversed(self.segments) if own.at <= position), self.segments[0])

    def find(self, position: Position, kind: str = "step") -> dict[str, Any] | None:
        """Return the line at exactly this position, or None."""
        line = self.after(position, kind)
        return line if line is not None and position_of(line) == position else None

    def after(self, position: Position, kind: str = "step") -> dict[str, Any] | None:
        """Return the first line at or after a position, or None."""
        for segment in self.segments:
            found = segment.seek(kind, position) if segment.limit is None or segment.limit > position else None
            if found is not None and (segment.limit is None or position_of(found[1]) < segment.limit):
                return found[1]
        return None

    def before(self, position: Position, kind: str = "step") -> dict[str, Any] | None:
        """Return the last line before a position, or None."""
        for segment in reversed(self.segments):
            if segment.at >= position:
                continue
            stop = position if segment.limit is None else min(position, segment.limit)
            low, high, found = segment.begin, segment.end, None
            while low < high:
                middle = (low + high) // 2
                line = segment.next(kind, middle)
                if line is None or position_of(line[1]) >= stop:
                    high = middle
                else:
                    low, found = line[0] + 1, line[1]
            if found is not None:
                return found
        return None

    def iterate(
        self, kind: str = "step", start: Position = (0, 0), stop: Position | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the lines that count, from ``start`` to before ``stop``."""
        for segment in self.segments:
            ends = [limit for limit in (segment.limit, stop) if limit is not None]
            yield from segment.iterate(kind, start, min(ends, default=None))

    def first(self, kind: str = "step") -> dict[str, Any] | None:
        """Return the first line of a kind, or None."""
        return self.after((-1, -1), kind)

    def last(self, kind: str = "step") -> dict[str, Any] | None:
        """Return the last line of a kind, or None."""
        return self.before((1 << 62, 0), kind)

    def sample(self, count: int, kind: str = "step") -> list[dict[str, Any]]:
        """Return about ``count`` lines, spread evenly over the bytes of the run, without reading the others."""
        spans = [segment.end - segment.begin for segment in self.segments]
        found: dict[Position, dict[str, Any]] = {}
        for segment, span in zip(self.segments, spans, strict=True):
            share = max(1, round(count * span / sum(spans)))
            for number in range(share + 1):
                line = segment.next(kind, segment.begin + (span - 1) * number // share)
                if line is not None and (segment.limit is None or position_of(line[1]) < segment.limit):
                    found[position_of(line[1])] = line[1]
        last = self.last(kind)
        if last is not None:
            found[position_of(last)] = last
        return [found[position] for position in sorted(found)]

    @property
    def end(self) -> dict[str, Any] | None:
        """The line that says that the training ended by itself; None if it was stopped, or still runs."""
        last = self.segments[-1]
        found = last.next("end", max(last.begin, last.end - (1 << 20)))
        return None if found is None else found[1]

    def superseded(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each step that was trained again after a resume, beside the one that counts in its place.

        A resume that was exact repeats them. What a new start has superseded is another run, and is left out.
        """
        for number, segment in enumerate(self.all_segments):
            later = self.all_segments[number + 1 :]
            if not later or not all(own.head["resumed"] for own in later):
                continue
            start = min(own.at for own in later)
            counting = self.iterate("step", start)
            new = next(counting, None)
            for old in segment.iterate("step", start, None):
                while new is not None and position_of(new) < position_of(old):
                    new = next(counting, None)
                if new is None:
                    break
                if position_of(new) == position_of(old):
                    yield old, new

    def _read(self, path: Path) -> None:
        data, size = _open(path)
        offset: int | None = _segment_of_last_line(data, size, path)
        found: list[Segment] = []
        end = size
        while offset is not None:
            stop = data.find(b"\n", offset, end)
            head = _parse(data[offset:stop], path)
            if head.get("kind") != "head":
                raise NotComparable(f"{path} is damaged: at byte {offset} a segment should begin")
            if head.get("format") != FORMAT:
                raise NotComparable(
                    f"{path} is of format {head.get('format')}, and this version reads format {FORMAT}; "
                    "compare with the version that wrote it, or a later one"
                )
            if head.get("at") is not None:
                found.insert(0, Segment(data, path, offset, end, head))
            end, offset = offset, head["previous"]
        first = found[0].head
        if first.get("continues"):
            other = (path.parent / first["continues"]).resolve()
            if other.exists() and other != path.resolve():
                self._read(other)
            else:
                self.missing = other
        self.all_segments += found


def find_runs(path: str | os.PathLike[str]) -> dict[int, Run]:
    """Return the run of each rank, of a file of any rank or of the folder that holds them.

    Raises:
        NotComparable: If there is no fingerprint, or a folder holds those of several runs.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.rank*.jsonl")) or sorted(path.rglob("*.rank*.jsonl"))
        runs = sorted({_base(file) for file in files})
        if len(runs) > 1:
            raise NotComparable(
                f"{path} holds the fingerprints of {len(runs)} runs; name one of them: {', '.join(map(str, runs[:5]))}"
            )
    else:
        files = sorted(file for file in path.parent.glob("*.rank*.jsonl") if _base(file) == _base(path))
        files = files or [path]
    if not path.exists() and files == [path]:
        raise NotComparable(f"{path} does not exist; give a fingerprint file, or the folder that holds it")
    if not files:
        raise NotComparable(
            f"{path} holds no fingerprint (*.rank0.jsonl); add the Fingerprint callback to the run, or start it with "
            "repro-callbacks run"
        )
    found = [Run(file) for file in files]
    return {run.rank: run for run in sorted(found, key=lambda run: run.rank)}


def _base(path: Path) -> Path:
    """Return a path without its rank: what the files of one run share."""
    stem = path.name.removesuffix(".jsonl")
    base, dot, number = stem.rpartition(".rank")
    return path.with_name(base if dot and number.isdecimal() else stem)


def _open(path: Path) -> tuple[mmap.mmap, int]:
    """Map a file, and return it with its size up to the last whole line."""
    if not path.is_file():
        raise NotComparable(f"{path} does not exist; give a fingerprint file, or the folder that holds it")
    if path.stat().st_size == 0:
        raise NotComparable(f"{path} is empty: the run was stopped before its first step, or is about to begin")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = data.rfind(b"\n") + 1
    if data[:14] != b'{"kind":"head"' or size == 0:
        raise NotComparable(f"{path} is not a fingerprint: it does not begin with the head of a run")
    return data, size


def _segment_of_last_line(data: mmap.mmap, size: int, path: Path) -> int:
    begin = data.rfind(b"\n", 0, size - 1) + 1
    line = _parse(data[begin : size - 1], path)
    if "segment" not in line:
        raise NotComparable(f"{path} is damaged: its last line belongs to no segment")
    return int(line["segment"])


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        line = json.loads(data)
    except ValueError as error:
        raise NotComparable(f"{path} is damaged: {error}") from error
    if not isinstance(line, dict):
        raise NotComparable(f"{path} is damaged: a line is not an object")
    return line
