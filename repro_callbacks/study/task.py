"""One run of a study: what is asked for, what came of it, and what all runs have in common. Plain, picklable data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

RESULT: Final = "result.json"
LOG: Final = "log.txt"
RECORD: Final = "run_record.json"


@dataclass(frozen=True)
class Task:
    """One run that is asked for.

    Attributes:
        name: Names the run in the study, and its folder: ``"seed-7"``, ``"A/order/seed-7"``.
        variant: Which of the compared trainings; ``""`` if there is only one.
        vary: Which purposes take ``seed``: ``"all"``, or some of them, ``"order+augment"``.
        seed: The seed that is studied, 0 to 2³²-1.
        base: The seed of everything that has no purpose of its own.
        seeds: The seed of each purpose.
        folder: Absolute path where the run's record, log and result are written.
        attempt: 1 for the first try.
        fresh: Run it in a new interpreter, never in a fork: the second run of a seed that is checked.
    """

    name: str
    variant: str
    vary: str
    seed: int
    base: int
    seeds: Mapping[str, int]
    folder: str
    attempt: int = 1
    fresh: bool = False

    def at(self, attempt: int) -> Task:
        """Return another try of the same run."""
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class Outcome:
    """How one try of a run ended.

    Attributes:
        name, attempt: Of the task.
        status: ``"done"`` or ``"failed"``.
        cause: ``""`` if done, else ``"raised"`` (an exception), ``"exit"`` (it left the interpreter), ``"killed"``
            (a signal), ``"oom"`` (by the kernel, out of memory), ``"timeout"``, ``"lost"`` (the process or machine
            that looked after it is gone) or ``"metric"`` (it ended, but without a finite score).
        error: The cause in one line.
        metrics: Name to value.
        weights: A digest of the final weights.
        cases: Case to (metric to value).
        seconds: Wall time of the training itself.
        peak_memory_bytes: The largest resident set of the run's process.
    """

    name: str
    attempt: int
    status: str
    cause: str = ""
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: str | None = None
    cases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None

    def save(self, folder: str, study: str) -> None:
        """Write the outcome beside the run, whole or not at all."""
        write_atomically(Path(folder, RESULT), json.dumps({"study": study, **asdict(self)}).encode())

    @classmethod
    def load(cls, folder: str, study: str, name: str, attempt: int) -> Outcome | None:
        """Read what this try of this run of this study wrote, or return None if it wrote nothing whole."""
        try:
            values = json.loads(Path(folder, RESULT).read_bytes())
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):  # after a power cut it can be empty
            return None
        if (values.pop("study"), values["name"], values["attempt"]) != (study, name, attempt):
            return None
        return cls(**values)


@dataclass(frozen=True)
class Context:
    """What all runs of a study have in common, and every process that runs one must know.

    Attributes:
        study: The study's own name, made once.
        payload: The pickled targets, variant to target.
        metric: The score that is studied.
        threads: Threads of torch, OpenMP and MKL in each run.
        environment: Variables set before the interpreter of a run starts.
        directory: The working directory.
        path: ``sys.path``.
        preload: Modules that are imported once, before the first fork.
        start: ``"fork"`` from a process that has done the imports, or ``"spawn"``: a new interpreter for each run.
        timeout: Seconds after which a run is killed.
        command: The command line of the study.
    """

    study: str
    payload: bytes
    metric: str
    threads: int
    environment: Mapping[str, str]
    directory: str
    path: tuple[str, ...]
    preload: tuple[str, ...]
    start: str
    timeout: float | None
    command: tuple[str, ...]

    def full_environment(self) -> dict[str, str]:
        """Return the environment in which a process that runs seeds is started."""
        return {**os.environ, **thread_variables(self.threads), **self.environment}


def thread_variables(threads: int) -> dict[str, str]:
    """Return the variables that pin the thread pools. They are read when a library is loaded, not later."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    # NumPy's OpenBLAS starts its threads when it is imported, and a process that has threads should not be forked.
    return {**dict.fromkeys(pools, str(threads)), "OPENBLAS_NUM_THREADS": "1"}


def write_atomically(path: Path, content: bytes) -> None:
    """Put a file in place, whole or not at all, and on the disk when this returns."""
    written = path.with_name(f".{path.name}.{os.getpid()}")
    with written.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)
