"""Jobs of a Slurm cluster, through submitit. Its local executor runs the same jobs on this machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from repro_callbacks.study.engines.base import Site
from repro_callbacks.study.engines.launcher import Nursery, run_one
from repro_callbacks.study.problems import require
from repro_callbacks.study.task import Context, Outcome, Task

JOBS: Final = "jobs.jsonl"
_SIGHT: Final = 60.0
"""Seconds after which a network file system has shown what a job on another machine wrote before it ended."""


@dataclass
class _Job:
    """A job that was submitted, now or by an earlier session of the study, and what it has still to run."""

    job: Any
    pending: dict[str, Task]
    over_since: float | None = None


class SlurmEngine:
    """Runs seeds in Slurm jobs, several in each job, so that a job imports once. The file system must be shared.

    A job goes on when the study's own process dies; a study that goes on takes such jobs over, and does not run their
    seeds again. Stopping it with Ctrl-C cancels them.

    Args:
        site: What to run. ``workers`` is the number of jobs at a time.
        runs_per_job: How many runs a job does at most, one after the other.
        cluster: As submitit's ``AutoExecutor`` takes it: None to detect it, ``"slurm"``, or ``"local"`` for processes
            of this machine.
        parameters: For ``AutoExecutor.update_parameters``, such as ``timeout_min=60`` (of a whole job),
            ``slurm_partition="gpu"``, ``gpus_per_node=1``.

    Raises:
        ImportError: If submitit is not installed.
    """

    def __init__(self, site: Site, runs_per_job: int = 10, cluster: str | None = None, **parameters: Any) -> None:
        if runs_per_job < 1:
            raise ValueError(f"runs_per_job must be 1 or more, not {runs_per_job}")
        submitit = require("submitit", "slurm", "engine='slurm'")
        self._context, self._workers, self._runs_per_job = site.context, site.workers, runs_per_job
        self._folder = site.out / "jobs"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._executor = submitit.AutoExecutor(folder=self._folder, cluster=cluster)
        defaults = {"name": "seed-study", "cpus_per_task": site.context.threads, "timeout_min": 24 * 60}
        self._executor.update_parameters(**{**defaults, **parameters})
        # A job on another machine is seen through a network file system and sacct; both are to be asked rarely.
        self._local = self._executor.cluster == "local"
        self._pause, self._sight = (0.05, 0.0) if self._local else (5.0, _SIGHT)
        self._buffer: list[Task] = []
        self._jobs: list[_Job] = []
        self._earlier = self._recorded_jobs(submitit)

    @property
    def slots(self) -> int:
        """Enough for all jobs, and for those that an earlier session has left."""
        return self._workers * self._runs_per_job + sum(len(runs) for _, runs in self._earlier)

    def submit(self, task: Task) -> None:
        """Take a run: wait for it if a job of an earlier session has it, else put it into a new job."""
        for known, runs in self._earlier:
            if (task.name, task.attempt) in runs and not known.job.done():
                known.pending[task.name] = task
                if known not in self._jobs:
                    self._jobs.append(known)
                return
        self._buffer.append(task)

    def wait(self, timeout: float) -> list[Outcome]:
        """Submit jobs while there is room for them, and return the runs that have ended."""
        until = time.monotonic() + timeout
        while True:
            self._submit_jobs()
            ended = [outcome for known in list(self._jobs) for outcome in self._collect(known)]
            if ended or time.monotonic() >= until:
                return ended
            time.sleep(self._pause)

    def close(self) -> None:
        """Cancel the jobs; on this machine, wait until they are gone."""
        for known in self._jobs:
            known.job.cancel(check=False)
        until = time.monotonic() + 10
        while self._local and time.monotonic() < until and not all(known.job.done() for known in self._jobs):
            time.sleep(0.05)

    def _submit_jobs(self) -> None:
        while self._buffer and len(self._jobs) < self._workers:
            size = min(self._runs_per_job, math.ceil(len(self._buffer) / (self._workers - len(self._jobs))))
            tasks, self._buffer = self._buffer[:size], self._buffer[size:]
            job = self._executor.submit(run_in_job, self._context, tasks, str(self._folder))
            entry = {"job": job.job_id, "local": self._local, "runs": [[task.name, task.attempt] for task in tasks]}
            with (self._folder / JOBS).open("a") as file:
                file.write(json.dumps(entry) + "\n")
            self._jobs.append(_Job(job, {task.name: task for task in tasks}))

    def _collect(self, known: _Job) -> list[Outcome]:
        over = known.job.done()  # asked before looking: what it wrote until then is there to be found
        ended = []
        for name, task in list(known.pending.items()):
            outcome = Outcome.load(task.folder, self._context.study, name, task.attempt)
            if outcome is not None:
                ended.append(outcome)
                del known.pending[name]
        if not over:
            return ended
        known.over_since = known.over_since or time.monotonic()
        if known.pending and time.monotonic() - known.over_since < self._sight:
            self._folder.chmod(self._folder.stat().st_mode)  # has a network file system look again
            return ended
        self._jobs.remove(known)
        # The job died. What it had not begun is not to blame and goes into another; if it began nothing, all of it is.
        begun = [task for task in known.pending.values() if _mark(str(self._folder), task).exists()]
        blamed = begun or ([] if ended else list(known.pending.values()))
        self._buffer[:0] = [task for task in known.pending.values() if task not in blamed]
        return ended + [self._lost(known.job, task) for task in blamed]

    def _lost(self, job: Any, task: Task) -> Outcome:
        said = " ".join((job.stderr() or "").split())[-300:]
        error = f"Slurm job {job.job_id} ended without a result of this run{': ' if said else ''}{said}"
        return Outcome(task.name, task.attempt, "failed", "lost", error)

    def _recorded_jobs(self, submitit: Any) -> list[tuple[_Job, set[tuple[str, int]]]]:
        """Read which jobs earlier sessions submitted that are not over, and what each was to run."""
        path = self._folder / JOBS
        found = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):  # cut off when the study was killed
                entry = json.loads(line)
                job = _LocalProcess(entry["job"]) if entry["local"] else submitit.SlurmJob(self._folder, entry["job"])
                if not job.done():
                    found.append((_Job(job, {}), {(name, attempt) for name, attempt in entry["runs"]}))
        return found


class _LocalProcess:
    """A job of submitit's local executor that another process of this machine has started: its id is a process's."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id

    def done(self) -> bool:
        """Say whether the process is gone; one that has got its number since is not taken for it."""
        listed = subprocess.run(
            ["ps", "-o", "command=", "-p", self.job_id], capture_output=True, text=True, check=False
        )
        return "submitit" not in listed.stdout

    def cancel(self, check: bool = True) -> None:
        """Interrupt it, as submitit does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(self.job_id), signal.SIGINT)

    def stderr(self) -> str | None:
        """Nothing is known of what it said."""
        return None


def run_in_job(context: Context, tasks: Sequence[Task], folder: str) -> None:
    """Run tasks one after the other and leave the outcome of each beside it. This is what a job does.

    Args:
        context: What all runs have in common.
        tasks: The runs.
        folder: Where it marks those that it has begun.
    """
    nursery = Nursery(context)
    try:
        for task in tasks:
            # A study that was killed just after submitting doesn't know of this job, and may have submitted another.
            if Outcome.load(task.folder, context.study, task.name, task.attempt) is not None:
                continue
            _mark(folder, task).touch()
            outcome = run_one(nursery, task)
            if outcome is not None:
                outcome.save(task.folder, context.study)
    finally:
        nursery.close()


def _mark(folder: str, task: Task) -> Path:
    return Path(folder, f"begun-{task.name.replace('/', '-')}-{task.attempt}")
