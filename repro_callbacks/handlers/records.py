"""A run's record beside its checkpoints, and compared with that of the run that is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from repro_callbacks.record import Differences, RunRecord

FILE: Final = "run_record.json"
NOT_COMPARED: Final = ("initial_weights", "command", "seed", "seeds")
"""The weights come from the checkpoint, a resume has another command line by nature, and other seeds are warned of in a
warning of their own."""


def write_record(path: str | os.PathLike[str], record: RunRecord) -> Path:
    """Write a record and return the file's path. An earlier file is kept; one that is equal is not written again.

    Args:
        path: A file, or a folder for ``run_record.json``.
        record: What to write.

    Raises:
        OSError: If it can't be written.
    """
    given = Path(path)
    first = given if given.suffix and not given.is_dir() else given / FILE
    target, last, number = first, None, 0
    while target.exists():
        last, number = target, number + 1
        target = first.with_name(f"{first.stem}.{number}{first.suffix}")
    if last is not None and last.read_text(encoding="utf-8") == record.to_json():
        return last
    record.save(target)
    return target


def difference(record: RunRecord, state: Mapping[str, Any]) -> str | None:
    """Return in words what can change bits between this run and the one that wrote a checkpoint; None if nothing can.

    Example:
        >>> here, there = RunRecord(versions={"torch": "2.13.0"}), RunRecord(versions={"torch": "2.12.0"})
        >>> difference(here, here.to_dict()) is None
        True
        >>> difference(here, there.to_dict()).splitlines()[1].strip()[:54]
        'torch is 2.13.0 here and 2.12.0 there: can change bits'
    """
    try:
        there = RunRecord.from_dict(state)
    except (TypeError, ValueError) as error:
        return f"the record in the checkpoint can't be compared with this run: {error}"
    changing = record.diff(there).changing_bits()
    found = Differences(item for item in changing if item.field.split("/")[0] not in NOT_COMPARED)
    if not found:
        return None
    lines = "\n  ".join(str(found).splitlines())
    return f"this run differs from the one that wrote the checkpoint, and may not go on with the same bits:\n  {lines}"
