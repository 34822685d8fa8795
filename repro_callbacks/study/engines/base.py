"""What an engine is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from repro_callbacks.study.task import Context, Outcome, Task


@dataclass(frozen=True)
class Site:
    """What an engine is given.

    Attributes:
        context: What all runs have in common.
        workers: How many runs at a time.
        out: The study's folder.
        keep_open: File descriptors that local processes which start runs inherit: the study's lock.
    """

    context: Context
    workers: int
    out: Path
    keep_open: tuple[int, ...] = ()


class Engine(Protocol):
    """Starts runs somewhere and tells how they ended. Used from one thread.

    Each run that was submitted is told of exactly once by :meth:`wait`, unless the engine is closed before.
    """

    @property
    def slots(self) -> int:
        """How many runs it wants to hold at a time; may change."""

    def submit(self, task: Task) -> None:
        """Take a run, to be started as soon as there is room."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the runs that have ended: after at most ``timeout`` seconds, or as soon as there is one."""

    def close(self) -> None:
        """Stop: kill what still runs, and return when it is gone. Called also after an error."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
