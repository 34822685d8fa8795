"""``SeedStudy``: many seeds, each in a process of its own, every result kept."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from repro_callbacks import hashseed, keys
from repro_callbacks.study import plan, tables, targets
from repro_callbacks.study.display import make_display
from repro_callbacks.study.drive import Drive
from repro_callbacks.study.engines import Engine, Site, make_engine, preload
from repro_callbacks.study.engines.base import processors
from repro_callbacks.study.journal import Journal, locked
from repro_callbacks.study.problems import NotRepeatableWarning, StudyError, require
from repro_callbacks.study.targets import Fit
from repro_callbacks.study.task import Context

_SOFTWARE: Final = ("torch", "numpy", "lightning", "pytorch-lightning", "monai", "repro-callbacks")


@dataclass(frozen=True)
class StudyResult:
    """What a study has found so far. It is all in its folder as well.

    Attributes:
        out: The folder.
        done: How many runs gave a score.
        failed: Run to why it gave none.
        differing: Runs that were run twice and gave different bits, or whose second run failed.
        report: The page, ``report.html``; None if it was not asked for or there is nothing to report.
    """

    out: Path
    done: int
    failed: Mapping[str, str]
    differing: tuple[str, ...]
    report: Path | None

    def table(self) -> Any:
        """Return ``runs.csv`` as a pandas DataFrame, floats to the bit."""
        return tables.read(self.out / tables.RUNS_TABLE)

    def summary(self) -> str:
        """Return what the report says, without its figures, as Markdown."""
        from repro_callbacks.study.report import summary

        return summary(**report_arguments(Journal.read(self.out)))


class SeedStudy:
    """Train with many seeds and keep every result, to learn what seeds do to it.

    Each run has a process of its own, which nothing has run in before, with pinned threads. The process-wide generators
    have its seed when the training starts. A seed gives the same bits whichever engine runs it, and that is checked:
    some seeds are run a second time, in an interpreter started for it, and compared.

    A study can be stopped at any point, also by ``kill -9``, and goes on by the same call; it is extended by a call
    with more seeds.

    Args:
        fit: A function ``fit(seed)``, or ``fit(seed, seeds)`` with a seed for each purpose, that returns the score or a
            dict of names and numbers (``"weights"``: a digest of the final weights; ``"cases"``: case to score;
            ``"holdout_<metric>"``: the score on data that the seed isn't picked on). Or a command,
            ``["python", "train.py"]``: an unmodified script, started by ``repro-callbacks run``. Or a dict of variants
            to compare, ``{"A": fit_a, "B": fit_b}``.
        seeds: 0 to 2³²-1, each once.
        metric: The score: a key of what ``fit`` returns, or of the trainer's ``callback_metrics``.
        out: The folder of the study.
        vary: ``"all"``: every purpose takes the seed. Or only some of them: ``"order"``, ``"init+step"``, several such
            as a list, or ``"each"`` for every purpose alone and all together; the others take ``fixed``.
        fixed: The seed of what isn't varied. Not one of ``seeds``.
        threads: Threads of torch, OpenMP and MKL in each run. More threads can give other bits.
        check: How many seeds are run twice.
        retries: How often a run that failed is tried again; a run that ends without a finite score never is.
        timeout: Seconds after which a run is killed.
        start: ``"fork"`` forks each run from a process that has done the imports and nothing else, ``"spawn"`` starts
            an interpreter for it. The default forks on Linux.
        imports: Modules to import before the first fork, besides those that are found in ``fit``.
        maximize: For the report: whether a high score is a good one; guessed from the metric's name if not given.
        highlight: For the report: seeds to point out, such as 3407.

    Raises:
        TypeError, ValueError: If an argument is not what is described here.

    Example:
        >>> def fit(seed):
        ...     import torch
        ...     return {"accuracy": 0.9 + 0.01 * torch.randn(()).item()}
        >>> import tempfile
        >>> study = SeedStudy(fit, seeds=range(3), metric="accuracy", out=tempfile.mkdtemp(), check=1)
        >>> result = study.run(workers=1, report=False)
        >>> result.done, result.differing, result.table()["accuracy"].round(4).tolist()
        (3, (), [0.9154, 0.9066, 0.9039])
    """

    def __init__(
        self,
        fit: Fit | Mapping[str, Fit],
        seeds: Iterable[int] = range(100),
        *,
        metric: str = "score",
        out: str | os.PathLike[str] = "study",
        vary: str | Sequence[str] = "all",
        fixed: int = 3407,
        threads: int = 1,
        check: int = 2,
        retries: int = 1,
        timeout: float | None = None,
        start: str | None = None,
        imports: Sequence[str] = (),
        maximize: bool | None = None,
        highlight: Sequence[int] = (),
    ) -> None:
        self.targets = targets.make_targets(fit)
        self.seeds = plan.check_study_seeds(seeds)
        self.metric = metric
        self.out = Path(out).absolute()
        self.vary = plan.check_vary(vary)
        self.fixed = keys.check_seed(fixed, "fixed")
        for name, value, least in (("threads", threads, 1), ("check", check, 0), ("retries", retries, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer from {least} on, not {value!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        self.start = start or ("fork" if sys.platform == "linux" else "spawn")
        if self.start not in ("fork", "spawn"):
            raise ValueError(f"start must be 'fork' or 'spawn', not {start!r}")
        self.threads, self.check, self.retries, self.timeout = threads, check, retries, timeout
        self.imports = tuple(imports)
        self.page = {"maximize": maximize, "highlight": [keys.check_seed(seed, "highlight") for seed in highlight]}
        self._check_vary()

    def run(
        self,
        engine: str | Callable[..., Engine] = "processes",
        *,
        workers: int | None = None,
        report: bool = True,
        retry_failed: bool = False,
        changed_code: bool = False,
        display: bool = True,
        **options: Any,
    ) -> StudyResult:
        """Run what isn't recorded yet, and write the tables and the report.

        Args:
            engine: ``"processes"`` (this machine), ``"debug"`` (this process), ``"dask"`` or ``"slurm"``; or a class
                of your own, see :class:`~repro_callbacks.study.engines.base.Engine`.
            workers: How many runs at a time; by default one for each ``threads`` processors.
            report: Write ``report.html``.
            retry_failed: Try again what is recorded as failed.
            changed_code: Go on although the function or script has changed since the first run.
            display: Show how far the study is.
            options: The engine's own, see :mod:`repro_callbacks.study.engines`.

        Raises:
            StudyError: If the folder holds another study, another process works on it, or every run fails.
            ImportError: If an extra is missing; the message names it.
            KeyboardInterrupt: On Ctrl-C, after stopping the runs. The same call goes on.
        """
        if report:
            require("pandas", "study", "the report of a study")
            require("scipy", "study", "the report of a study")
            require("matplotlib", "study", "the report of a study")
        payload = targets.pickled(self.targets)
        workers = max(1, processors() // self.threads) if workers is None else workers
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}")
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out) as lock:
            journal = Journal.start(self.out, self._identity())
            self._check_identity(journal, changed_code)
            journal.replace_identity(page=self.page)
            name = engine if isinstance(engine, str) else engine.__name__
            drive = Drive(journal, name, self.retries)
            wanted = plan.make_tasks(self.out, list(self.targets), self.vary, self.seeds, self.fixed, self.check)
            tasks = drive.open_tasks(wanted, retry_failed)
            if tasks:
                context = self._context(journal, payload)
                shown = make_display(self.metric, len(tasks), _scores(journal), workers, quiet=not display)
                with _stop_on_sigterm(), shown:
                    site = Site(context, workers, self.out, (lock,) if lock >= 0 else ())
                    driven = make_engine(engine, site, **options)
                    try:
                        drive.run(driven, tasks, shown)
                    except KeyboardInterrupt:
                        shown.say(
                            f"stopped; what has ended is kept in {self.out}, and the same call goes on from there"
                        )
                        raise
                    finally:
                        driven.close()
                        tables.write(journal)
            tables.write(journal)  # also where nothing was left to run: it may have ended while no study was there
            return finish(journal, report)

    def _check_vary(self) -> None:
        """Refuse a variation that would vary nothing, or count runs twice."""
        if self.vary == ("all",):
            return
        if self.fixed in self.seeds:
            raise ValueError(
                f"fixed={self.fixed} is one of the seeds, so that its runs would be the same whatever is varied; give "
                "another value for fixed"
            )
        deaf = next((target.name for target in self.targets.values() if not target.takes_seeds), None)
        if deaf is not None:
            raise TypeError(
                f"vary={','.join(self.vary)!r} needs a function with a parameter 'seeds', the seed of each purpose, "
                f"and {deaf} has none"
            )

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for runs to belong together."""
        return {
            "targets": {variant: target.name for variant, target in self.targets.items()},
            "metric": self.metric,
            "vary": list(self.vary),
            "fixed": None if self.vary == ("all",) else self.fixed,
            "threads": self.threads,
            "PYTHONHASHSEED": _hash_seed(),
            "code": {variant: target.digest() for variant, target in self.targets.items()},
            "software": _software(),
        }

    def _check_identity(self, journal: Journal, changed_code: bool) -> None:
        """Look at what has changed since the first run, and refuse to mix the results of two programs."""
        now = self._identity()
        code, software = (
            {
                name: (then, now[key].get(name))
                for name, then in journal.identity[key].items()
                if then != now[key].get(name)
            }
            for key in ("code", "software")
        )
        if not any(entry["status"] == "done" for entry in journal.entries):
            journal.replace_identity(code=now["code"], software=now["software"])
        elif code and changed_code:
            journal.replace_identity(code=now["code"])
        elif code:
            names = ", ".join(self.targets[variant].name for variant in code)
            raise StudyError(
                f"{names} has changed since the first runs in {self.out}, and results of two programs can't be put "
                "together. Choose another folder; or, if the change can't change results, go on with changed_code=True"
            )
        elif software:
            text = ", ".join(f"{name} was {then} and is {there}" for name, (then, there) in software.items())
            warnings.warn(
                f"the software has changed since the first runs in {self.out}, which can change bits: {text}",
                stacklevel=3,
            )

    def _context(self, journal: Journal, payload: bytes) -> Context:
        found = [name for target in self.targets.values() for name in preload.modules(target)]
        commands = all(isinstance(target, targets.CommandTarget) for target in self.targets.values())
        return Context(
            study=journal.identity["id"],
            payload=payload,
            metric=self.metric,
            threads=self.threads,
            environment={hashseed.VARIABLE: _hash_seed()},
            directory=os.getcwd(),
            path=_path_of_scripts() if commands else tuple(os.path.abspath(entry) for entry in sys.path),
            preload=tuple(dict.fromkeys([*self.imports, *found])),
            start=self.start,
            timeout=self.timeout,
            command=tuple(sys.orig_argv),
        )


def rebuild(out: str | os.PathLike[str], report: bool = True) -> StudyResult:
    """Write the tables and the report of a study again, from what is recorded. The study may be running.

    Raises:
        StudyError: If there is no study in ``out``.
    """
    journal = Journal.read(Path(out).absolute())
    tables.write(journal)
    return finish(journal, report)


def finish(journal: Journal, report: bool) -> StudyResult:
    """Write the report, warn of seeds that did not repeat, and return what was found."""
    entries = tables.in_order(journal)
    differing = tuple(entry["name"] for entry in entries if tables.check_of(journal, entry) in ("differs", "failed"))
    if differing:
        warnings.warn(NotRepeatableWarning.of(differing), stacklevel=3)
    done = [entry for entry in entries if entry["status"] == "done"]
    page = None
    if report and done:
        from repro_callbacks.study.report import write_report

        targets = journal.identity["targets"].items()
        names = ", ".join(f"{variant}: {name}" if variant else name for variant, name in targets)
        page = write_report(**report_arguments(journal), out_dir=journal.out, title=f"Seed study: {names}")
    failed = {entry["name"]: entry["error"] for entry in entries if entry["status"] == "failed"}
    return StudyResult(journal.out, len(done), failed, differing, page)


def report_arguments(journal: Journal) -> dict[str, Any]:
    """Return what the report is made of."""
    cases = journal.out / tables.CASES_TABLE
    return {
        "runs": tables.read(journal.out / tables.RUNS_TABLE),
        "metric": journal.identity["metric"],
        "cases": tables.read(cases) if cases.exists() else None,
        **journal.identity["page"],
    }


def _scores(journal: Journal) -> dict[str, list[float]]:
    """Return the scores that are recorded, by variant."""
    scores: dict[str, list[float]] = {variant: [] for variant in journal.identity["targets"]}
    for entry in tables.in_order(journal):
        if entry["status"] == "done":
            scores[entry["variant"]].append(entry["metrics"][journal.identity["metric"]])
    return scores


def _hash_seed() -> str:
    """Return the ``PYTHONHASHSEED`` of the runs: the one in force here, else 0, so that sets have one order in all.

    One that is set but not in force was set for other processes: Dask does so when it starts its workers.
    """
    value = os.environ.get(hashseed.VARIABLE)
    return str(hashseed.parse(value)) if hashseed.in_force(value) else "0"


def _path_of_scripts() -> tuple[str, ...]:
    """Return the ``sys.path`` that a script finds, without its own folder: this process may have another."""
    code = "import sys; print(*sys.path[1:], sep='\\n')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return tuple(shown.splitlines())


def _software() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Have SIGTERM stop the study in order, as Ctrl-C does. Only the main thread can."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
