"""Differences of structure, which are findings and not failures: other processes, another model, other steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from repro_callbacks.fingerprint.findings import Diagnosis, Finding, Line, Place, short
from repro_callbacks.fingerprint.order import samples_of
from repro_callbacks.fingerprint.runs import Run, position_of

_COMPARED_STEPS: Final = 20_000


def ranks(ours: Mapping[int, Run], theirs: Mapping[int, Run]) -> Diagnosis | None:
    """Return how the processes of two runs differ, if they do."""
    sizes = [runs[min(runs)].head["world_size"] for runs in (ours, theirs)]
    if sizes[0] != sizes[1]:
        details = []
        if len(ours) == sizes[0] and len(theirs) == sizes[1]:
            details.append(_same_samples(ours, theirs))
        sentence = f"The number of processes differs: A trained on {sizes[0]} and B on {sizes[1]}."
        return Diagnosis("world size", sentence, details=details)
    if ours.keys() == theirs.keys():
        return None
    lacking, name = (theirs, "B") if ours.keys() - theirs.keys() else (ours, "A")
    missing = sorted((ours.keys() | theirs.keys()) - lacking.keys())
    return Diagnosis(
        "world size",
        f"{name} has no fingerprint of rank {short(missing)}, out of {sizes[0]} processes.",
        likely="the files of some ranks were not copied, or those ranks did not start",
        remedy="Put the files of all ranks into one folder.",
    )


def model(a: Run, b: Run) -> Diagnosis | None:
    """Return how the models of two runs differ in their parameters or buffers, if they do."""
    for what in ("parameters", "buffers"):
        ours, theirs = a.head[what], b.head[what]
        if ours == theirs:
            continue
        only_a, only_b = [own for own in ours if own not in theirs], [own for own in theirs if own not in ours]
        details = [f"Only {name} has {short(only)}." for name, only in (("A", only_a), ("B", only_b)) if only]
        shapes = [sorted(own.split(" ", 1)[1] for own in only) for only in (only_a, only_b)]
        if only_a and shapes[0] == shapes[1]:
            details.append("Their shapes are the same, so they may only be renamed.")
        if not only_a and not only_b:
            details.append(f"They have the same {what}, in another order.")
        sentence = f"The models differ before anything was trained: their {what} are not the same."
        return Diagnosis("model structure", sentence, details=details)
    return None


def length(a: Run, b: Run, finding: Finding) -> Diagnosis:
    """Return what it means that a step is there in only one of two runs that agree up to it."""
    step = finding.step
    assert step is not None
    line: Line = step.a or step.b or {}
    longer, shorter, run = ("A", "B", b) if step.a is not None else ("B", "A", a)
    place = Place(*step.position, line.get("step"), finding.rank)
    last = run.last()
    if last is not None and position_of(last) > step.position:
        return Diagnosis(
            "length",
            f"{place}: {longer} trains on this batch and {shorter} does not, while every step before agreed.",
            place,
            likely="the epochs have another number of batches: another dataset, batch size, drop_last or "
            "limit_train_batches",
            remedy="Give both runs the same data and the same number of batches in an epoch.",
        )
    count = 0 if last is None else last["number"] + 1
    ended = "ended by itself" if run.end is not None else "was stopped, or still runs"
    sentence = (
        f"All {count} batches of {shorter} agree; {longer} goes on with epoch {place.epoch}, batch {place.batch}, "
        f"where {shorter} {ended}."
    )
    return Diagnosis("length", sentence, place)


def _same_samples(ours: Mapping[int, Run], theirs: Mapping[int, Run]) -> str:
    """Say whether two runs on other numbers of processes saw the same samples in each step."""
    streams = [[run.iterate() for run in runs.values()] for runs in (ours, theirs)]
    for steps in range(_COMPARED_STEPS):
        lines = [[next(stream, None) for stream in group] for group in streams]
        one, two = (Counter(sample for line in group if line for sample in samples_of(line)) for group in lines)
        if one != two:
            return f"The samples of each step, over all processes, agree for {steps} steps and then differ."
        if not one:
            return f"The samples of each step, over all processes, agree in all {steps} steps."
    return f"The samples of each step, over all processes, agree in the first {_COMPARED_STEPS} steps."
