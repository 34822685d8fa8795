"""Processes of this machine, forked from one that has done the imports. The default."""

from __future__ import annotations

from repro_callbacks.study.engines.base import Site
from repro_callbacks.study.engines.launcher import Nursery
from repro_callbacks.study.task import Outcome, Task


class ProcessEngine:
    """Runs ``workers`` seeds at a time, each in a process of its own.

    Why not loky's pool: its workers are reused, so that a run can inherit what an earlier one left behind, and a new
    one for each run would pay for the imports each time.

    Args:
        site: What to run.
    """

    def __init__(self, site: Site) -> None:
        self.slots = site.workers
        self._nursery = Nursery(site.context, site.keep_open)

    def submit(self, task: Task) -> None:
        """Start a run."""
        self._nursery.start(task)

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what has ended."""
        return self._nursery.wait(timeout)

    def close(self) -> None:
        """Kill what still runs."""
        self._nursery.close()
