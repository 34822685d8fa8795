"""The file that keeps a run's digests: one JSON object to a line, appended when a step is finished.

Kinds of lines, by their ``kind``:

- ``head`` opens a segment: one start or one resume of the training, with its RunRecord, the names of the parameters,
  how often each digest is taken, and ``at``, the position ``[epoch, batch]`` of its first step.
- ``step``: the digests of one training batch.
- ``validation``: the metrics of one validation.
- ``end``: the training ended by itself; digests of the final state.

Each line names the byte at which its segment's head begins, and a head names the one before. A resumed run appends a
segment; the steps of earlier segments from its ``at`` on are *superseded*: they stay in the file, and a reader passes
them over. Where a resumed run writes elsewhere, its head's ``continues`` names the file that it goes on from.

``chain`` in a step is the digest of the step and of the chain before, so that two runs agree in a chain only if they
agree in all that was before: the first difference is found by bisection. Validations have a chain of their own,
because a run may validate more often than another and train to the same bits.

Each line is written by one call, without a buffer: after ``kill -9`` the file is whole up to the last line written, and
a torn last line is dropped. A power failure can take what the operating system had not yet put on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias

from repro_callbacks.fingerprint.digest import hash_bytes

FORMAT: Final = 1
"""The version of the file's format. A reader refuses what it doesn't know."""

Position: TypeAlias = tuple[int, int]
"""Epoch, and batch within the epoch, both from 0."""

EACH_DIGITS: Final = 8
"""Hexadecimal digits of one parameter's digest in ``each_gradient`` and ``each_parameter``, in the head's order."""

UNCHAINED: Final = frozenset({"chain", "segment", "loss_value", "rates", "indices"})
"""Fields that tell people something, and don't take part in the chain."""

_OPEN: Final[weakref.WeakSet[Writer]] = weakref.WeakSet()


def rank_path(path: str | os.PathLike[str], rank: int) -> Path:
    """Return the file of one rank, given the file of any rank, or a name without one.

    Example:
        >>> rank_path("logs/fingerprint.jsonl", 1).as_posix(), rank_path("fingerprint.rank0.jsonl", 3).as_posix()
        ('logs/fingerprint.rank1.jsonl', 'fingerprint.rank3.jsonl')
    """
    path = Path(path)
    stem, suffix = (
        (path.name.removesuffix(".jsonl"), ".jsonl") if path.name.endswith(".jsonl") else (path.name, ".jsonl")
    )
    base, dot, number = stem.rpartition(".rank")
    return path.with_name(f"{base if dot and number.isdecimal() else stem}.rank{rank}{suffix}")


def link(chain: str, line: Mapping[str, Any]) -> str:
    """Return the chain after a line, given the chain before it."""
    content = {key: value for key, value in line.items() if key not in UNCHAINED}
    return hash_bytes(chain.encode(), dump(content))


def dump(line: Mapping[str, Any]) -> bytes:
    """Write a line's object as JSON: one line, keys in the order given."""
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False, allow_nan=True).encode("utf-8", "surrogatepass")


class Writer:
    """Appends to the file of one rank. Two writers of one file exclude each other.

    Args:
        path: The file; its folder is made. An existing file is continued, not replaced.

    Raises:
        FileExistsError: If another process is writing the file, or if it is something else than a fingerprint.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        _OPEN.add(self)
        try:
            self._lock()
            self._size = _drop_torn_line(self._file, self.path)
        except BaseException:
            self.close()
            raise
        self.segment = self._size
        self.chains = {"step": "", "validation": ""}

    def head(self, fields: Mapping[str, Any], previous: int | None, chains: Mapping[str, str]) -> None:
        """Open a segment.

        Args:
            fields: What the head says.
            previous: The byte at which the segment before begins in this file, if there is one.
            chains: The chains to go on from, of steps and of validations.
        """
        self.segment = self._size
        self.chains = dict(chains)
        self._append({"kind": "head", "format": FORMAT, "segment": self.segment, "previous": previous, **fields})

    def line(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append a line to the segment; a step and a validation are linked to the chain of their kind."""
        line = {"kind": kind, **fields}
        if kind in self.chains:
            self.chains[kind] = link(self.chains[kind], line)
            line["chain"] = self.chains[kind]
        self._append({**line, "segment": self.segment})

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"{self.path} is being written by another run; give each run a path of its own"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without locks
                raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        data = dump(line) + b"\n"
        written = os.write(self._file, data)
        while written < len(data):  # a full disk raises at the next call
            written += os.write(self._file, data[written:])
        self._size += len(data)


def _drop_torn_line(file: int, path: Path) -> int:
    """Cut off what follows the last newline, and return the size. A file of another kind is refused, not touched."""
    size = os.fstat(file).st_size
    if size == 0:
        return 0
    start = os.pread(file, 14, 0)
    if not b'{"kind":"head"'.startswith(start[: len(b'{"kind":"head"')]):
        raise FileExistsError(f"{path} exists and is not a fingerprint; choose another path")
    end, step = size, 1 << 16
    while end > 0:
        begin = max(0, end - step)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)
    return end


def _close_in_child() -> None:
    """Let go of what a forked process inherits: a worker that outlives a killed run would still hold its lock."""
    for writer in list(_OPEN):
        writer.close()


os.register_at_fork(after_in_child=_close_in_child)
