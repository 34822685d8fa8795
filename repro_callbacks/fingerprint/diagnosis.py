"""From the first lines that differ to a class of causes, with everything before it in view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repro_callbacks.fingerprint import structure
from repro_callbacks.fingerprint.causes import CAUSES, STAGE_NAMES, STAGES, explaining, possible
from repro_callbacks.fingerprint.differences import FirstDifference
from repro_callbacks.fingerprint.findings import Diagnosis, Finding, Line, Place
from repro_callbacks.fingerprint.order import order_or_content
from repro_callbacks.fingerprint.runs import Run, Segment, position_of
from repro_callbacks.fingerprint.store import EACH_DIGITS, Position
from repro_callbacks.record import Difference, RunRecord

_LOOKED_BACK = 1000  # steps, for the last one in which the parameters were recorded


def diagnose(ours: Mapping[int, Run], theirs: Mapping[int, Run], findings: Sequence[Finding]) -> Diagnosis | None:
    """Return what the first of the findings means; None if there is none and the processes are the same.

    Args:
        ours, theirs: Rank to run.
        findings: Where they differ, in each rank in which they do.
    """
    found = structure.ranks(ours, theirs)
    if found is not None or not findings:
        return found
    found = structure.model(ours[min(ours)], theirs[min(theirs)])
    if found is not None:
        return found
    first = min(findings, key=lambda finding: finding.order)
    a, b = ours[first.rank], theirs[first.rank]
    if first.validation is not None:
        found = _validation(first)
    elif first.step is not None and first.step.a is not None and first.step.b is not None:
        ended = _other_end_of_epoch(a, b, first) if first.step.fields[0] == "schedule" else None
        if ended is not None:
            return ended
        found = _step(a, b, first.step.a, first.step.b, first.step.fields, first.rank)
    else:
        return structure.length(a, b, first)
    others = sorted(other.rank for other in findings if other.position == first.position and other is not first)
    if others:
        found.details.append(f"In the same step, rank {', '.join(map(str, others))} differs as well.")
    return _blame_environment(a, b, found, first.position)


def _step(a: Run, b: Run, line: Line, other: Line, fields: tuple[str, ...], rank: int) -> Diagnosis:
    position, stage = position_of(line), fields[0]
    cause = STAGES[stage]
    details: list[str] = []
    if stage == "data":
        cause, details = order_or_content(a, b, line, other)
    elif stage in ("before", "after"):
        details = [_generators(stage, line, other)]
    elif stage in ("gradients", "parameters"):
        details = _parameters(a, stage, line, other)
    elif stage in ("loss", "schedule"):
        details = _numbers(stage, line, other)
    if stage == "parameters" and "optimizer" not in line:
        cause = "optimizer"
        details.append(
            "The optimizer's state was not recorded at this step, so something else may have written the parameters: "
            "Fingerprint(every={'optimizer': 1}) tells."
        )
    details += _unrecorded(a, position, stage)
    same = [STAGE_NAMES[name] for name in list(STAGES)[: list(STAGES).index(stage)] if name in line and name in other]
    here = " and ".join(filter(None, [", ".join(same[:-1]), *same[-1:]]))
    agreed = f"while {here} of this step, and all before it, agreed" if same else "while all before it agreed"
    if _other_weights(a, b, position):
        cause, agreed, details = "initial weights", "before anything was trained", []
    else:
        blamed, told = _resume(a, b, position)
        details += told
        if blamed:
            cause = "resume"
            details.append(f"What differs there first: {STAGE_NAMES[stage]}.")
    place = Place(*position, line["step"], rank)
    return Diagnosis(cause, f"{place}: {CAUSES[cause].clause} first, {agreed}.", place, fields, details)


def _other_end_of_epoch(a: Run, b: Run, finding: Finding) -> Diagnosis | None:
    """Return a difference in the number of batches, where a schedule differs only because one run's epoch ends here."""
    behind = finding.position[0], finding.position[1] + 1
    ours, theirs = a.after(behind), b.after(behind)
    if ours is None or theirs is None or position_of(ours) == position_of(theirs):
        return None
    position = min(position_of(ours), position_of(theirs))
    one, two = (line if position_of(line) == position else None for line in (ours, theirs))
    return structure.length(a, b, Finding(finding.rank, FirstDifference(position, one, two, ()), None))


def _other_weights(a: Run, b: Run, position: Position) -> bool:
    """Say whether two runs that begin here, and go on with no checkpoint, had other weights before their first step."""
    one, two = a.segments[0], b.segments[0]
    if one.at != position or two.at != position or one.head["resumed"] or two.head["resumed"]:
        return False
    return any(one.head["state"][name] != two.head["state"][name] for name in ("parameters", "buffers"))


def _resume(a: Run, b: Run, position: Position) -> tuple[bool, list[str]]:
    """Say whether a difference comes from a resume that only one of the runs had, and what is known of it.

    It does if it shows in the first step after it, or in a later one that is the first to see the parameters, or if
    the run was resumed with another state than was saved.
    """
    blamed, details = False, []
    for run, other, name in ((a, b, "A"), (b, a, "B")):
        shared = {segment.at for segment in other.resumes}
        before = [own for own in run.resumes if own.at <= position and own.at not in shared]
        if not before:
            continue
        segment, lost = before[-1], _lost(before[-1])
        first = segment.at == position
        where = "right there" if first else f"at epoch {segment.at[0]}, batch {segment.at[1]}"
        details.append(f"{name} was resumed {where}.")
        if lost:
            details.append(f"It went on with other {' and '.join(lost)} than had been saved.")
        unseen = not any("parameters" in line for line in run.iterate("step", segment.at, position))
        blamed = blamed or first or unseen or bool(lost)
    return blamed, details


def _lost(segment: Segment) -> list[str]:
    """Name what a resumed run had other than when its checkpoint was saved, by the digests that it holds."""
    saved, loaded = segment.head["resumed"]["saved"] or {}, segment.head["state"]
    names = {"parameters": "parameters", "buffers": "buffers", "optimizer": "optimizer state", "schedule": "schedule"}
    return [names[name] for name in names if name in saved and saved[name] != loaded[name]]


def _unrecorded(run: Run, position: Position, stage: str) -> list[str]:
    """Say since when the parameters were not looked at, where an earlier step may have changed them unseen."""
    line = run.before(position)
    if stage in ("data", "before") or line is None or "parameters" in line:
        return []
    for _ in range(_LOOKED_BACK):
        if line is None or "parameters" in line:
            break
        line = run.before(position_of(line))
    last = "never recorded before" if line is None else f"last recorded at epoch {line['epoch']}, batch {line['batch']}"
    return [
        f"The parameters were {last}: an optimizer's step since then may be what differs. "
        "Fingerprint(every={'parameters': 1}) tells."
    ]


def _generators(stage: str, line: Line, other: Line) -> str:
    ours, theirs = line[stage], other[stage]
    names = " and ".join(name for name in ours if name in theirs and ours[name] != theirs[name])
    if stage == "before":
        return f"It is the generator of {names}: something drew from it or seeded it before this step's forward pass."
    return f"It is the generator of {names}: training_step drew from it more often in one run than in the other."


def _parameters(run: Run, stage: str, line: Line, other: Line) -> list[str]:
    kind, what = ("each_gradient", "gradient") if stage == "gradients" else ("each_parameter", "parameter")
    if kind not in line or kind not in other:
        return []
    names = [name.split(" ")[0] for name in run.head["parameters"]]
    parts = [slice(start, start + EACH_DIGITS) for start in range(0, EACH_DIGITS * len(names), EACH_DIGITS)]
    differing = [name for name, part in zip(names, parts, strict=True) if line[kind][part] != other[kind][part]]
    if not differing:
        return []
    told = f"{len(differing)} of {len(names)} {what}s differ: "
    if len(differing) == 1:
        return [f"{told}that of {differing[0]}." if what == "gradient" else f"{told}{differing[0]}."]
    nearest = f"; nearest to the loss is that of {differing[-1]}" if what == "gradient" else ""
    return [f"{told}{differing[0]} and others{nearest}."]


def _numbers(stage: str, line: Line, other: Line) -> list[str]:
    name, what = ("loss_value", "loss is") if stage == "loss" else ("rates", "learning rates are")
    ours, theirs = line.get(name), other.get(name)
    if ours is None or theirs is None:
        return []
    same = ": equal in these digits" if ours == theirs else ""
    return [f"The {what} {ours} in A and {theirs} in B{same}."]


def _validation(finding: Finding) -> Diagnosis:
    assert finding.validation is not None
    line, other, metric = finding.validation
    place = Place(*position_of(line), line["step"], finding.rank)
    ours, theirs = (float.fromhex(own["metrics"][metric]) for own in (line, other))
    sentence = f"{place}: the validation differs first, while every training step up to there agreed."
    return Diagnosis(
        "validation", sentence, place, ("validation",), [f"{metric} is {ours!r} in A and {theirs!r} in B."]
    )


def _blame_environment(a: Run, b: Run, found: Diagnosis, position: Position) -> Diagnosis:
    """Name the environment as the cause if it differs in what can have brought this about: it was there before."""
    records = [RunRecord.from_dict(run.segment_of(position).head["record"]) for run in (a, b)]
    differences = records[0].diff(records[1])
    blamed = explaining(differences, found.cause)
    if blamed:
        first = CAUSES[found.cause].subject
        found.details.insert(0, f"What it changed first: {first}.")
        found.sentence = found.sentence.replace(" first, ", " first, and so does the environment, ", 1)
        found.likely = "; ".join(f"{_in_words(difference)} ({difference.reason})" for difference in blamed)
        found.remedy = CAUSES["environment"].remedy
        found.cause = "environment"
    elif maybe := possible(differences):
        found.details.append("Code or command differ too: " + "; ".join(map(_in_words, maybe)) + ".")
    return found


def _in_words(difference: Difference) -> str:
    told = difference.sentence.rpartition(": ")[0].removesuffix(" there")
    return f"{told.replace(' here and ', ' in A and ')} in B"
