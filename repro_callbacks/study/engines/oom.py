"""Whether the kernel's OOM killer was at work: it and ``kill -9`` look the same to whoever waits for a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def counters(root: Path = Path("/")) -> list[Path]:
    """Return the files that count OOM kills around this process: of its control group (v2, then v1), of the system.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    groups = root / "sys/fs/cgroup"
    found = [root / "proc/vmstat"]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            found.append(groups / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(groups / "memory" / path.lstrip("/") / "memory.oom_control")
    return [file for file in reversed(found) if file.is_file()]


def read(files: Sequence[Path]) -> tuple[int, ...]:
    """Return the number of OOM kills that each file counts; 0 for one that can't be read (now)."""
    return tuple(map(_read, files))


def _read(file: Path) -> int:
    try:
        words = [line.split() for line in file.read_text().splitlines()]
    except OSError:  # the control group is gone
        return 0
    return next((int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == "oom_kill"), 0)
