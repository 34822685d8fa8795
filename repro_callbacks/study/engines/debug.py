"""This very process, one run after the other: breakpoints work, and the first exception comes through."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

from repro_callbacks.study.engines import child
from repro_callbacks.study.engines.base import Site
from repro_callbacks.study.engines.launcher import Nursery, run_one
from repro_callbacks.study.targets import CommandTarget, Target
from repro_callbacks.study.task import Outcome, Task


class DebugEngine:
    """Runs seeds in this process. What they print is seen, and what they raise ends the study.

    The generators and torch's thread count are put back after each run. Other pools of threads can't be pinned after
    they are loaded, and a run sees what the one before it left behind; the runs that a study repeats on purpose
    (``check``) therefore go to a new interpreter here too, and a difference is reported.

    Args:
        site: What to run. ``workers`` has no meaning here.
    """

    slots = 1

    def __init__(self, site: Site) -> None:
        self._context = site.context
        self._targets: Mapping[str, Target] = pickle.loads(site.context.payload)
        for target in self._targets.values():
            if isinstance(target, CommandTarget):
                raise ValueError(
                    "engine='debug' runs functions, in this process; to debug a command, run it: "
                    f"repro-callbacks run --seed 0 -- {target.name}"
                )
        self._nursery = Nursery(site.context, site.keep_open)
        self._tasks: list[Task] = []

    def submit(self, task: Task) -> None:
        """Take a run; it starts when the study waits for it."""
        self._tasks.append(task)

    def wait(self, timeout: float) -> list[Outcome]:
        """Run what was submitted."""
        ended = []
        while self._tasks:
            task = self._tasks.pop(0)
            outcome = run_one(self._nursery, task) if task.fresh else self._run_here(task)
            ended += [outcome] if outcome is not None else []
        return ended

    def close(self) -> None:
        """Nothing runs any more."""
        self._nursery.close()

    def _run_here(self, task: Task) -> Outcome:
        import torch

        from repro_callbacks import generators

        Path(task.folder).mkdir(parents=True, exist_ok=True)
        threads = torch.get_num_threads()
        with generators.isolate():
            try:
                return child.train(self._context, self._targets[task.variant], task)
            finally:
                torch.set_num_threads(threads)
