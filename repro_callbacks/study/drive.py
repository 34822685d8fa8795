"""The loop of a study: keeps an engine filled, records what ends, tries again what failed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from repro_callbacks.study import tables
from repro_callbacks.study.display import Display
from repro_callbacks.study.engines import Engine
from repro_callbacks.study.journal import Journal
from repro_callbacks.study.problems import StudyError
from repro_callbacks.study.task import LOG, Outcome, Task

_HOPELESS: Final = 3  # so many runs that all fail, and none that doesn't: not the seeds' fault
_TABLES_EVERY: Final = 1.0  # seconds between two writings of the tables,
_TABLES_REST: Final = 20  # and so many times as long as a writing took: many runs make long tables


class Drive:
    """Takes a study from what is recorded to where every run has ended.

    Args:
        journal: What is recorded, and where outcomes are recorded.
        engine: The engine's name, for the record.
        retries: How often a run that failed is tried again.
    """

    def __init__(self, journal: Journal, engine: str, retries: int) -> None:
        self._journal, self._engine, self._retries = journal, engine, retries
        self._allowed: dict[str, int] = {}
        self._done = self._failed = 0
        self._unwritten = True
        self._write_at = 0.0

    def open_tasks(self, wanted: Iterable[Task], retry_failed: bool) -> deque[Task]:
        """Return what is still to be run, each with the number of its next try.

        A run that had ended when the study was killed, before that was recorded, is recorded now.
        """
        found: deque[Task] = deque()
        for task in wanted:
            last = self._journal.last(task.name)
            if last is not None:
                if last["final"] and not (retry_failed and last["status"] == "failed"):
                    continue
                task = task.at(last["attempt"] + 1)
            self._allowed[task.name] = 1 + self._retries + (last["attempt"] if last and last["final"] else 0)
            outcome = Outcome.load(task.folder, self._journal.identity["id"], task.name, task.attempt)
            if outcome is None or not self._record(task, outcome):
                found.append(task if outcome is None else task.at(task.attempt + 1))
        return found

    def run(self, engine: Engine, tasks: deque[Task], shown: Display) -> None:
        """Run tasks until all have ended.

        Raises:
            StudyError: If the first runs all fail.
        """
        running: dict[str, Task] = {}
        while tasks or running:
            while tasks and len(running) < engine.slots:
                task = tasks.popleft()
                running[task.name] = task
                engine.submit(task)
                shown.begin(task)
            for outcome in engine.wait(0.5):
                task = running.pop(outcome.name)
                final = self._record(task, outcome)
                shown.end(task, outcome, final)
                if not final:
                    tasks.appendleft(task.at(task.attempt + 1))
                elif not task.fresh:
                    self._give_up_if_hopeless(task, outcome)
                self._say_if_different(task, shown)
            if self._unwritten and time.monotonic() >= self._write_at:
                self._write_tables()
            shown.refresh()

    def _write_tables(self) -> None:
        begun = time.monotonic()
        tables.write(self._journal)
        ended = time.monotonic()
        self._unwritten, self._write_at = False, ended + max(_TABLES_EVERY, _TABLES_REST * (ended - begun))

    def _record(self, task: Task, outcome: Outcome) -> bool:
        """Record an outcome, and say whether the run is through."""
        # What a run hands back would be the same the next time; what killed it or raised need not be.
        through = outcome.status == "done" or outcome.cause == "metric" or task.attempt >= self._allowed[task.name]
        self._journal.append(task, outcome, through, self._engine)
        self._unwritten = True
        return through

    def _give_up_if_hopeless(self, task: Task, outcome: Outcome) -> None:
        if outcome.status == "done":
            self._done += 1
        else:
            self._failed += 1
        recorded = any(entry["status"] == "done" for entry in self._journal.entries)
        if not recorded and self._failed >= _HOPELESS:
            raise StudyError(
                f"the first {self._failed} runs all failed, the last one so: {outcome.error}\n"
                f"What it said is in {Path(task.folder, LOG)}. Once that is mended, go on with retry_failed=True"
            )

    def _say_if_different(self, task: Task, shown: Display) -> None:
        name = task.name.removesuffix(tables.AGAIN)
        first = self._journal.last(name)
        if first is not None and first["final"] and tables.check_of(self._journal, first) == "differs":
            shown.say(f"{name} was run twice and gave DIFFERENT results: this training does not repeat")
