"""A run's record beside its logs, and compared with the record of the run that is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from repro_callbacks.record.differences import Differences
from repro_callbacks.record.run_record import RunRecord

FILE: Final = "run_record.json"
NOT_COMPARED_AT_RESUME: Final = {
    "initial_weights": "the weights come from the checkpoint",
    "command": "a resume has another command line by nature; what else it asks for is the user's wish",
    "seed": "other seeds are warned of in a warning of their own",
    "seeds": "as the seed",
}


def record_file(path: str | os.PathLike[str]) -> str:
    """Return the file that a path stands for: itself, or ``run_record.json`` in it if it is a folder.

    Example:
        >>> record_file("runs/mine.json"), record_file("runs/mine")
        ('runs/mine.json', 'runs/mine/run_record.json')
    """
    given = Path(path)
    return str(given if given.suffix and not given.is_dir() else given / FILE)


def write_record(path: str, record: RunRecord) -> str:
    """Write a record and return the file's path; no earlier record is lost.

    The first is ``run_record.json``, those of later starts ``run_record.1.json``, ``run_record.2.json`` and so on. A
    start that differs in nothing from the one before it adds no file.

    Args:
        path: A local file, whose folder is made if need be, or a URL that fsspec knows (``s3://...``).
        record: What to write.

    Raises:
        OSError: If it can't be written.
    """
    if "://" in path:
        return _write_with_fsspec(path, record)
    candidates = _Candidates(path)
    while os.path.exists(candidates.next):
        candidates.take()
    if candidates.last and Path(candidates.last).read_text(encoding="utf-8") == record.to_json():
        return candidates.last
    record.save(candidates.next)
    return candidates.next


def _write_with_fsspec(url: str, record: RunRecord) -> str:
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)
    candidates = _Candidates(path)
    while filesystem.exists(candidates.next):
        candidates.take()
    content = record.to_json().encode()
    if candidates.last and filesystem.cat_file(candidates.last) == content:
        return candidates.last
    filesystem.makedirs(os.path.dirname(path), exist_ok=True)
    filesystem.pipe_file(candidates.next, content)
    return candidates.next


class _Candidates:
    """The names that a record's file may have, one after the other, and the last of them that was taken."""

    def __init__(self, path: str) -> None:
        self._stem, self._ending = os.path.splitext(path)
        self._number = 0
        self.next, self.last = path, ""

    def take(self) -> None:
        self._number += 1
        self.last, self.next = self.next, f"{self._stem}.{self._number}{self._ending}"


def compare_at_resume(record: RunRecord, state: Mapping[str, Any]) -> str | None:
    """Compare today's record with the one in a checkpoint and return what a resume must warn of, or None.

    Only what can change bits counts, without :data:`NOT_COMPARED_AT_RESUME`.

    Args:
        record: Today's.
        state: What :meth:`RunRecord.to_dict` returned when the checkpoint was made.

    Example:
        >>> here, there = RunRecord(versions={"torch": "2.13.0"}), RunRecord(versions={"torch": "2.12.0"})
        >>> compare_at_resume(here, here.to_dict()) is None
        True
        >>> compare_at_resume(here, there.to_dict()).splitlines()[1].strip()[:54]
        'torch is 2.13.0 here and 2.12.0 there: can change bits'
    """
    try:
        there = RunRecord.from_dict(state)
    except (TypeError, ValueError) as error:
        return f"the record in the checkpoint can't be compared with this run: {error}"
    changing = record.diff(there).changing_bits()
    counted = Differences(item for item in changing if item.field.split("/")[0] not in NOT_COMPARED_AT_RESUME)
    if not counted:
        return None
    lines = "\n  ".join(str(counted).splitlines())
    return (
        f"this run differs from the one that wrote the checkpoint, so it may not go on with the same bits:\n  {lines}"
    )
