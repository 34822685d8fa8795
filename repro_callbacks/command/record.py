"""``repro-callbacks record``: what this environment is, and how two records differ."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from repro_callbacks.record import Difference, Differences, RunRecord
from repro_callbacks.record.differences import NOT_RECORDED, Scalar, rule_of

SAME, DIFFERENT, UNREADABLE = 0, 1, 2

OF_AN_ENVIRONMENT: Final = (
    "versions/",
    "build/",
    "system/",
    "hardware/",
    "environment/",
    "code/",
    "flags/num_threads",
    "flags/num_interop_threads",
    "flags/PYTHONHASHSEED",
    "flags/hash_randomization",
)
"""What of a run's record can be compared with an environment in which nothing runs. Seeds, weights, the command line
and the switches that a run sets are its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``record``."""
    parser.add_argument(
        "records",
        nargs="*",
        type=Path,
        metavar="RECORD",
        help="a run_record.json or a checkpoint; two are compared with each other, one with this environment, "
        "and without any this environment's record is shown",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write this environment's record to FILE")
    parser.epilog = (
        "exit status: 0 if nothing differs that can change bits, 1 if something does, 2 if a record can't be read"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show a record or compare two; return 0, 1 (a difference can change bits) or 2 (a record can't be read)."""
    paths: list[Path] = arguments.records
    if len(paths) > 2 or (paths and arguments.out):
        problem = "two records at most" if len(paths) > 2 else "--out writes this environment's record: give no RECORD"
        print(f"repro-callbacks record: {problem}", file=sys.stderr)
        return UNREADABLE
    try:
        records = [read(path) for path in paths]
    except (OSError, ValueError) as error:
        print(f"repro-callbacks record: {error}", file=sys.stderr)
        return UNREADABLE
    if not records:
        return _show(RunRecord.capture(), arguments)
    if len(records) == 1:
        environment = RunRecord.capture()
        differences = compare_with_environment(records[0], environment)
        header = (
            f"here: this environment; there: {paths[0]}\n"
            "(seeds, weights, switches and the command line are the run's own and are not compared)"
        )
        if not _same_repository(records[0], environment):
            header += f"\n(the code is not compared: this folder is not of {_repository(records[0])})"
    else:
        differences, header = records[0].diff(records[1]), f"here: {paths[0]}; there: {paths[1]}"
    if arguments.json:
        print(json.dumps([_as_dict(difference) for difference in differences], indent=2, ensure_ascii=False))
    else:
        print(header, differences, sep="\n")
    return DIFFERENT if differences.changing_bits() else SAME


def compare_with_environment(record: RunRecord, environment: RunRecord) -> Differences:
    """Return in what this environment ("here") differs from a run's record ("there"): :data:`OF_AN_ENVIRONMENT`.

    The code is compared only in a folder of the repository that the run's code was in, known by its name.
    """
    found = [item for item in environment.diff(record) if item.field.startswith(OF_AN_ENVIRONMENT)]
    same = _same_repository(record, environment)
    return Differences(item for item in found if same or not item.field.startswith("code/"))


def read(path: Path) -> RunRecord:
    """Read a record from a JSON file, or from a checkpoint that Lightning wrote while ``Determinism`` was a callback.

    Raises:
        OSError: If the file can't be read.
        ValueError: If there is no record in it; the message names the file.
    """
    if path.suffix != ".ckpt" and not zipfile.is_zipfile(path):
        return RunRecord.load(path)
    import torch

    try:
        # Mapped, so that weights of many GB are not read for a few kB.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} can't be loaded with weights_only=True ({reason}); use the run_record.json beside the run's logs"
        ) from error
    states = checkpoint.get("callbacks", {}) if isinstance(checkpoint, dict) else {}
    for key, state in states.items():
        if str(key).startswith("Determinism") and isinstance(state, dict) and "record" in state:
            try:
                return RunRecord.from_dict(state["record"])
            except (TypeError, ValueError) as error:
                raise ValueError(f"the record in {path} can't be read: {error}") from error
    raise ValueError(f"{path} holds no run record: it was not written by a run with the callback Determinism")


def _same_repository(record: RunRecord, environment: RunRecord) -> bool:
    return record.code.get("repository") == environment.code.get("repository")


def _repository(record: RunRecord) -> str:
    name = record.code.get("repository")
    return f"the run's repository {name!r}" if name else "the run's code, which was in no repository"


def _show(record: RunRecord, arguments: argparse.Namespace) -> int:
    if arguments.out:
        try:
            record.save(arguments.out)
        except OSError as error:
            print(f"repro-callbacks record: {arguments.out} can't be written: {error}", file=sys.stderr)
            return UNREADABLE
    if arguments.json:
        print(record.to_json(), end="")
    elif arguments.out:
        print(f"written to {arguments.out}")
    else:
        print("\n".join(_table(record)))
    return SAME


def _table(record: RunRecord) -> Iterator[str]:
    """Yield a record's lines, a section for each group of fields."""
    flat = record.flat()
    width = max(len(name.rpartition("/")[2]) for name in flat)
    section = None
    for name, value in flat.items():
        group, _, field = name.rpartition("/")
        if group != section:
            section = group
            yield from filter(None, [group])
        yield f"{'  ' if group else ''}{field:<{width + (0 if group else 2)}}  {_say(name, value)}"


def _say(name: str, value: Scalar) -> str:
    return rule_of(name).absent if value is None else str(value)


def _as_dict(difference: Difference) -> dict[str, Any]:
    fields = dataclasses.asdict(difference)
    return {
        **{name: None if value == NOT_RECORDED else value for name, value in fields.items()},
        "can_change_bits": difference.can_change_bits,
        "sentence": difference.sentence,
        "reason": difference.reason,
    }
