"""``compare``: two runs are equal, or this is where they part, in one sentence that a person can act on."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from repro_callbacks.fingerprint.causes import CAUSES
from repro_callbacks.fingerprint.diagnosis import diagnose
from repro_callbacks.fingerprint.differences import first_difference, first_unequal_validation
from repro_callbacks.fingerprint.findings import Finding
from repro_callbacks.fingerprint.runs import Run, find_runs
from repro_callbacks.record import RunRecord

EQUAL: Final = 0
DIFFERENT: Final = 1
NOT_COMPARABLE: Final = 2
"""The exit codes of ``repro-callbacks compare``."""

_REPEATED: Final = 10_000  # how many batches that were trained twice are looked at


@dataclass(frozen=True)
class Divergence:
    """Where two runs first differ, and what that means.

    Attributes:
        cause: Its class, one of :data:`~repro_callbacks.fingerprint.causes.CAUSES`.
        sentence: What differs first, and where, in one sentence.
        likely: The likely cause.
        remedy: What to do.
        epoch: From 0; None where no step is meant.
        batch: Within the epoch, from 0.
        step: How many times an optimizer had stepped at the end of that batch in ``a``.
        rank: The process.
        fields: The digests that differ, in the order in which a step computes them.
        details: More that was found there.
    """

    cause: str
    sentence: str
    likely: str
    remedy: str
    epoch: int | None = None
    batch: int | None = None
    step: int | None = None
    rank: int | None = None
    fields: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        a, b: What was compared.
        steps: How many batches were trained before the first difference, or in all.
        divergence: Where they part; None if they are equal.
        notes: What else is worth knowing, such as differences that changed no bits.
    """

    a: Path
    b: Path
    steps: int
    divergence: Divergence | None = None
    notes: tuple[str, ...] = ()
    runs: tuple[dict[int, Run], dict[int, Run]] = field(default=({}, {}), repr=False, compare=False)

    @property
    def equal(self) -> bool:
        """Whether all that both runs recorded agrees, from the first step to the last."""
        return self.divergence is None

    @property
    def exit_code(self) -> int:
        """0 if they are equal, 1 if not."""
        return EQUAL if self.equal else DIFFERENT

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if self.divergence is not None:
            return self.divergence.sentence
        return f"The runs are equal: the digests of all {self.steps} batches agree."

    def __str__(self) -> str:
        lines = [self.sentence]
        if self.divergence is not None:
            lines += [f"Likely cause: {self.divergence.likely}.", f"Remedy: {self.divergence.remedy}"]
            lines += self.divergence.details
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        return {
            "equal": self.equal,
            "a": str(self.a),
            "b": str(self.b),
            "steps": self.steps,
            "sentence": self.sentence,
            "divergence": None if self.divergence is None else asdict(self.divergence),
            "notes": list(self.notes),
        }


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Compare two runs by the files that :class:`~repro_callbacks.Fingerprint` wrote.

    Args:
        a: A fingerprint of any rank, or the folder that holds the run's. The files of the other ranks stand beside it.
        b: The other run's.

    Raises:
        NotComparable: If there is no fingerprint, or one that can't be read.

    Example:
        >>> from repro_callbacks.fingerprint import NotComparable
        >>> try:
        ...     compare("no/such/run", "no/such/run")
        ... except NotComparable as error:
        ...     print(error)
        no/such/run does not exist; give a fingerprint file, or the folder that holds it
    """
    ours, theirs = find_runs(a), find_runs(b)
    both = (ours, theirs)
    notes = [*_notes(ours[min(ours)], "A"), *_notes(theirs[min(theirs)], "B")]

    findings: list[Finding] = []
    for rank in sorted(ours.keys() & theirs.keys()):
        difference = first_difference(ours[rank], theirs[rank])
        stop = None if difference is None else difference.position
        validation = first_unequal_validation(ours[rank], theirs[rank], stop)
        if validation is not None or difference is not None:
            findings.append(Finding(rank, difference, validation))
    found = diagnose(ours, theirs, findings)
    if found is None:
        rank = min(ours.keys() & theirs.keys())
        notes += _harmless(ours[rank], theirs[rank])
        return Comparison(Path(a), Path(b), _count(ours[rank]), None, tuple(notes), both)
    cause = CAUSES[found.cause]
    if found.cause == "resume":  # its own words say where
        notes = [note for note in notes if " was resumed at " not in note]
    divergence = Divergence(
        cause.name,
        found.sentence,
        found.likely or cause.likely,
        found.remedy or cause.remedy,
        *found.place,
        found.fields,
        tuple(found.details),
    )
    rank = min(ours) if divergence.rank is None else divergence.rank
    stop = None if divergence.epoch is None or divergence.batch is None else (divergence.epoch, divergence.batch)
    return Comparison(Path(a), Path(b), _count(ours[rank], stop), divergence, tuple(notes), both)


def _notes(run: Run, name: str) -> list[str]:
    """Say what one run's file tells about itself: resumes, and whether they were exact; how it ended."""
    notes = []
    if run.missing is not None:
        notes.append(f"{name} goes on from {run.missing}, which is not there: the steps before can't be compared.")
    repeated = unequal = 0
    for old, new in islice(run.superseded(), _REPEATED):
        repeated += 1
        unequal += old["chain"] != new["chain"]
    for segment in run.resumes:
        notes.append(f"{name} was resumed at epoch {segment.at[0]}, batch {segment.at[1]}.")
    if repeated:
        verdict = "with the same bits" if not unequal else f"and {unequal} of them came out with other bits"
        least = "at least " if repeated == _REPEATED else ""
        told = f"{name} trained {least}{repeated} batches twice, because it was stopped behind a checkpoint"
        notes.append(f"{told}, {verdict}.")
    if run.end is None:
        notes.append(f"{name} has no end: it was stopped, or is still running.")
    return notes


def _harmless(a: Run, b: Run) -> list[str]:
    ours, theirs = (RunRecord.from_dict(run.head["record"]) for run in (a, b))
    changing = ours.diff(theirs).changing_bits()
    if not changing:
        return []
    return ["These differences could have changed bits, and did not: " + "; ".join(d.sentence for d in changing) + "."]


def _count(run: Run, stop: tuple[int, int] | None = None) -> int:
    """Return how many batches a run trained, before a position or in all, without reading them all."""
    last = run.last() if stop is None else run.before(stop)
    first = run.first()
    if last is None or first is None:
        return 0
    return int(last["number"]) - int(first["number"]) + 1
