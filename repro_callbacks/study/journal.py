"""What a study keeps, so that it can be stopped at any point: its identity, and a line for each run that has ended."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

from repro_callbacks.study.problems import StudyError
from repro_callbacks.study.task import Outcome, Task, write_atomically

Entry: TypeAlias = dict[str, Any]

FORMAT: Final = 1
STUDY: Final = "study.json"
RUNS: Final = "runs.jsonl"
_LOCK: Final = ".lock"
_PATIENCE: Final = 15.0  # seconds in which the processes of a study that was killed are gone


class Journal:
    """The identity of a study and the outcomes so far.

    ``study.json`` is written once. ``runs.jsonl`` is only ever appended to: one line for each try of a run, written
    whole and synced to the disk before the study goes on. A last line that was cut off is no line.

    Attributes:
        out: The study's folder.
        identity: What is in ``study.json``.
        entries: The lines, in the order in which the runs ended.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], entries: list[Entry]) -> None:
        self.out = out
        self.identity = identity
        self.entries = entries
        self._last = {entry["name"]: entry for entry in entries}

    @classmethod
    def read(cls, out: Path) -> Journal:
        """Read a study, running or not, and change nothing.

        Raises:
            StudyError: If there is none in ``out``, or it can't be read.
        """
        try:
            identity = json.loads((out / STUDY).read_bytes())
        except FileNotFoundError:
            raise StudyError(f"there is no study in {out}: it has no {STUDY}") from None
        if identity["format"] != FORMAT:
            raise StudyError(
                f"the study in {out} is of format {identity['format']}, and this version reads format {FORMAT}"
            )
        path = out / RUNS
        lines, _ = _whole_lines(path.read_bytes() if path.exists() else b"")
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise StudyError(
                    f"line {number} of {path} is damaged ({error}); take it out to run that seed again"
                ) from None
        return cls(out, identity, entries)

    @classmethod
    def start(cls, out: Path, identity: Mapping[str, Any]) -> Journal:
        """Start a study, or go on with the one in ``out``. Call it with the lock held.

        Args:
            out: The folder.
            identity: What must be the same for runs to belong together. ``code`` and ``software`` are looked at by
                the caller.

        Raises:
            StudyError: If there is another study in ``out``.
        """
        if not (out / STUDY).exists():
            fresh = {"format": FORMAT, "id": uuid.uuid4().hex, **identity}
            write_atomically(out / STUDY, json.dumps(fresh, indent=2).encode() + b"\n")
        path = out / RUNS
        if path.exists():
            _, length = _whole_lines(path.read_bytes())
            os.truncate(path, length)
        journal = cls.read(out)
        for key, value in identity.items():
            kept = journal.identity.get(key)
            if key not in ("code", "software") and kept != value:
                raise StudyError(
                    f"{out} holds a study with {key} = {kept!r}, and this one has {key} = {value!r}: their runs can't "
                    "be put together. Choose another folder."
                )
        return journal

    def replace_identity(self, **changes: Any) -> None:
        """Change what ``study.json`` says."""
        self.identity = {**self.identity, **changes}
        write_atomically(self.out / STUDY, json.dumps(self.identity, indent=2).encode() + b"\n")

    def append(self, task: Task, outcome: Outcome, final: bool, engine: str) -> None:
        """Keep an outcome. When this returns it is on the disk.

        Args:
            task: The run.
            outcome: How it ended.
            final: It is not tried again.
            engine: The engine that ran it.
        """
        entry = {
            **{key: getattr(task, key) for key in ("variant", "vary", "seed", "base", "seeds")},
            "check": task.fresh,
            **asdict(outcome),
            "final": final,
            "engine": engine,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        line = json.dumps(entry).encode() + b"\n"
        descriptor = os.open(self.out / RUNS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.entries.append(entry)
        self._last[task.name] = entry

    def last(self, name: str) -> Entry | None:
        """Return how the last try of a run ended, or None if none has."""
        return self._last.get(name)

    def final(self) -> list[Entry]:
        """Return the runs that have ended and are not tried again, one line each, in no meaningful order."""
        return [entry for entry in self._last.values() if entry["final"]]


@contextlib.contextmanager
def locked(out: Path) -> Iterator[int]:
    """Keep other processes from working on the same study. Gives a file descriptor that children can inherit.

    Whoever inherits it holds the lock too, so that a study that was killed can't be started again before its runs are
    gone. The lock is the kernel's: nothing has to be cleaned up after a crash.

    Raises:
        StudyError: If another process has it for longer than a killed study's processes need to die.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no engine there starts other processes
        yield -1
        return
    descriptor = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StudyError(f"another process is working on the study in {out}") from None
                time.sleep(0.1)
        yield descriptor
    finally:
        os.close(descriptor)


def _whole_lines(content: bytes) -> tuple[list[bytes], int]:
    """Return the lines that were written to their end, and how many bytes they take."""
    length = content.rfind(b"\n") + 1
    return content[:length].splitlines(), length
