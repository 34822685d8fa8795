"""A study as a whole: stopped at any point it goes on, and nothing is lost, run twice, or mixed up."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import repro_callbacks
from repro_callbacks.record import RunRecord
from repro_callbacks.study import SeedStudy, StudyError, rebuild
from repro_callbacks.study.task import Outcome
from tests.study import fits

STUDY = """
import sys
from repro_callbacks.study import SeedStudy
from tests.study import fits
if __name__ == "__main__":
    out, engine, count = sys.argv[1:]
    options = {"cluster": "local", "runs_per_job": 2} if engine == "slurm" else {}
    SeedStudy(fits.slow, range(int(count)), metric="loss", out=out, check=1).run(engine, workers=2, **options)
"""


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_bytes().split(b"\n")[:-1]]


def quick(out: Path, seeds: Any = range(3), fit: Any = fits.train, run: Any = None, **keywords: Any) -> Any:
    study = SeedStudy(fit, seeds, metric=keywords.pop("metric", "loss"), out=out, **{"check": 0, **keywords})
    return study.run(**{"workers": 2, "report": False, "display": False, **(run or {})})


class Main:
    """A study in a process of its own, in the middle of which something happens to it."""

    def __init__(self, folder: Path, engine: str = "processes", count: int = 6, seconds: float = 0.6) -> None:
        self.out, self.marks = folder / "out", folder / "marks"
        self.marks.mkdir(exist_ok=True)
        script = folder / "study.py"
        script.write_text(STUDY)
        self.command = [sys.executable, str(script), str(self.out), engine, str(count)]
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.env |= {"TEST_MARKS": str(self.marks), "TEST_SECONDS": str(seconds)}
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, env=self.env, stderr=subprocess.PIPE, text=True)

    def wait_for(self, count: int) -> None:
        """Wait until ``count`` runs are recorded and another has begun."""
        until = time.monotonic() + 240
        while time.monotonic() < until and self.process.poll() is None:
            recorded = len(lines(self.out)) if (self.out / "runs.jsonl").exists() else 0
            if recorded >= count and len(self.begun()) > len(self.ended()):
                return
            time.sleep(0.02)
        raise AssertionError(self.process.communicate()[1])

    def begun(self) -> list[tuple[str, int]]:
        """The executions that have begun: seed and process."""
        return [self._read(mark) for mark in self.marks.glob("begin-*")]

    def ended(self) -> list[tuple[str, int]]:
        """Those that have come to their end."""
        return [self._read(mark) for mark in self.marks.glob("end-*")]

    @staticmethod
    def _read(mark: Path) -> tuple[str, int]:
        _, seed, process = mark.name.split("-")
        return seed, int(process)

    def finish(self) -> str:
        self.process = self.start()
        _, said = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, said
        return said


def gone(pids: list[int], within: float = 20) -> bool:
    until = time.monotonic() + within
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def without_times(table: bytes) -> list[list[str]]:
    rows = [line.split(",") for line in table.decode().splitlines()]
    column = rows[0].index("seconds")
    return [row[:column] + row[column + 1 :] for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Main:
    """A study that nothing happens to."""
    study = Main(tmp_path_factory.mktemp("whole"), seconds=0)
    assert study.process.wait(timeout=300) == 0, study.process.communicate()[1]
    return study


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "dask", "slurm"])
def test_killed_in_the_middle_it_goes_on(tmp_path: Path, engine: str, undisturbed: Main) -> None:
    """kill -9 of the main process, twice: no run lost, none run twice, the same tables and report to the byte."""
    study = Main(tmp_path, engine)
    for recorded in (1, 3):
        study.wait_for(recorded)
        study.process.kill()
        study.process.communicate()
        running = [
            process for execution in study.begun() if execution not in study.ended() for process in execution[1:]
        ]
        if engine != "slurm":  # whose jobs go on, and are taken over
            assert gone(running), "runs die with their study"
        assert not gone([os.getpid()], within=0.1), "negative control"
        finished = {path.parent.name for path in study.out.glob("runs/*/result.json")}
        begun = set(study.begun())
        study.process = study.start()
    _, said = study.process.communicate(timeout=300)
    assert study.process.returncode == 0, said
    recorded_runs = Counter(line["name"] for line in lines(study.out))
    assert recorded_runs == Counter([*(f"seed-{seed}" for seed in range(6)), "seed-0-again"]), "each recorded once"
    again = {f"seed-{seed}" for seed, _ in set(study.begun()) - begun}
    assert not (again & (finished - {"seed-0"})), "what had ended is not run again"
    if engine == "slurm":
        assert Counter(seed for seed, _ in study.begun()) == {"0": 2, **dict.fromkeys("12345", 1)}
    for name in ("report.html", "cases.csv"):
        assert (study.out / name).read_bytes() == (undisturbed.out / name).read_bytes()
    tables = [without_times((main.out / "runs.csv").read_bytes()) for main in (study, undisturbed)]
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM stop the runs, keep what has ended, and leave nothing running."""
    study = Main(tmp_path)
    study.wait_for(1)
    study.process.send_signal(number)
    _, said = study.process.communicate(timeout=60)
    assert study.process.returncode != 0
    assert f"what has ended is kept in {study.out}, and the same call goes on from there" in said
    assert gone([process for _, process in study.begun()])
    kept = {line["name"] for line in lines(study.out)}
    assert kept
    begun = set(study.begun())
    study.finish()
    assert not kept & {f"seed-{seed}" for seed, _ in set(study.begun()) - begun} - {"seed-0"}
    assert len(lines(study.out)) == 7


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_study(tmp_path: Path) -> None:
    study = Main(tmp_path, count=3, seconds=25)
    study.wait_for(0)
    with pytest.raises(StudyError, match="another process is working on the study in"):
        quick(study.out)
    study.process.kill()
    study.process.communicate()


@pytest.mark.slow
def test_a_run_that_ended_unrecorded_is_recorded_and_not_run_again(tmp_path: Path, monkeypatch: Any) -> None:
    """The moment between a result and its line, and a line that was cut off."""
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TEST_MARKS", str(marks))
    monkeypatch.setenv("TEST_SECONDS", "0")
    quick(tmp_path / "out", fit=fits.slow)
    journal = tmp_path / "out/runs.jsonl"
    whole = sorted(lines(tmp_path / "out"), key=lambda line: line["seed"])
    kept = [json.dumps(line) + "\n" for line in whole]
    journal.write_text(kept[0] + kept[1][:-30])  # seed 1 cut off, seed 2 not begun
    table = (tmp_path / "out/runs.csv").read_bytes()
    rebuild(tmp_path / "out", report=False)
    assert (tmp_path / "out/runs.csv").read_bytes() != table
    result = quick(tmp_path / "out", fit=fits.slow)
    assert result.done == 3
    assert len(list(marks.glob("begin-*"))) == 3, "nothing ran again"
    assert (tmp_path / "out/runs.csv").read_bytes() == table, "written though nothing was left to run"
    strip = {"ended", "engine"}
    now = sorted(lines(tmp_path / "out"), key=lambda line: line["seed"])
    assert [{k: v for k, v in line.items() if k not in strip} for line in now] == [
        {**{k: v for k, v in line.items() if k not in strip}, "peak_memory_bytes": now[i]["peak_memory_bytes"]}
        for i, line in enumerate(whole)
    ]


def test_a_result_of_another_study_or_try_is_not_taken(tmp_path: Path) -> None:
    """Negative control of the one above."""
    outcome = Outcome("seed-1", 1, "done", metrics={"loss": 0.5})
    outcome.save(str(tmp_path), "this")
    assert Outcome.load(str(tmp_path), "this", "seed-1", 1) == outcome
    assert Outcome.load(str(tmp_path), "other", "seed-1", 1) is None
    assert Outcome.load(str(tmp_path), "this", "seed-1", 2) is None
    (tmp_path / "result.json").write_bytes(b"")
    assert Outcome.load(str(tmp_path), "this", "seed-1", 1) is None


@pytest.mark.slow
def test_more_seeds_extend_a_study(tmp_path: Path) -> None:
    quick(tmp_path / "a", range(2))
    first = {line["name"]: line for line in lines(tmp_path / "a")}
    result = quick(tmp_path / "a", range(4))
    quick(tmp_path / "b", range(4))
    assert result.done == 4
    assert {line["name"]: line for line in lines(tmp_path / "a")}.items() >= first.items()
    tables = [without_times((tmp_path / name / "runs.csv").read_bytes()) for name in "ab"]
    assert tables[0] == tables[1]
    assert quick(tmp_path / "a", range(1)).done == 4, "what is recorded stays part of the study"


@pytest.mark.slow
def test_tables(tmp_path: Path) -> None:
    """Every float to the bit, metrics and cases in their columns, and each run's record beside it."""
    result = quick(tmp_path, check=1)
    table = result.table()
    assert table.columns.tolist() == [
        "seed", "status", "loss", "holdout_loss", "weights", "seconds", "attempts", "error", "check"
    ]  # fmt: skip
    expected = [fits.train(seed) for seed in range(3)]
    assert table["check"].tolist() == ["same", "", ""]
    assert table["loss"].tolist() == [values["loss"] for values in expected]
    assert table["weights"].tolist() == [values["weights"] for values in expected]
    cases = (tmp_path / "cases.csv").read_text().splitlines()
    assert cases[0] == "seed,case,loss"
    assert cases[1] == f"0,case 0,{expected[0]['cases']['case 0']!r}"
    assert len(cases) == 10
    record = RunRecord.load(tmp_path / "runs/seed-1/run_record.json")
    assert (record.seed, record.extra) == (1, {"study": "tests.study.fits.train", "run": "seed-1"})
    assert record.flags["PYTHONHASHSEED_in_force"] is True
    assert record.command == sys.orig_argv


@pytest.mark.slow
def test_what_differs_is_another_study(tmp_path: Path) -> None:
    quick(tmp_path)
    for change, message in (
        ({"metric": "holdout_loss"}, "metric = 'loss', and this one has metric = 'holdout_loss'"),
        ({"threads": 2}, "threads = 1, and this one has threads = 2"),
        ({"fit": fits.killed_once}, "targets = {'': 'tests.study.fits.train'}"),
        ({"fit": functools.partial(fits.train, steps=3)}, r"'tests.study.fits.train\(steps=3\)'"),
        ({"fit": fits.purposes, "vary": "order"}, "targets = "),
    ):
        with pytest.raises(StudyError, match=message):
            quick(tmp_path, **change)
    with pytest.raises(StudyError, match="there is no study in"):
        rebuild(tmp_path / "elsewhere")


@pytest.mark.slow
def test_a_changed_function_is_refused_while_results_are_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "changing.py"

    def fit_of(body: str) -> Any:
        import importlib
        import linecache

        module.write_text(f"def fit(seed):\n    {body}\n")
        os.utime(module, (time.time(), fit_of.stamp))  # type: ignore[attr-defined]
        fit_of.stamp += 10  # type: ignore[attr-defined]
        linecache.clearcache()
        sys.modules.pop("changing", None)
        importlib.invalidate_caches()
        return importlib.import_module("changing").fit

    fit_of.stamp = time.time() - 1000  # type: ignore[attr-defined]
    with pytest.raises(StudyError, match="the first 3 runs all failed, the last one so: NameError"):
        quick(tmp_path / "out", fit=fit_of("return sed / 2"), metric="score", retries=0)
    mended = quick(tmp_path / "out", fit=fit_of("return seed / 2"), metric="score", run={"retry_failed": True})
    assert mended.table()["score"].tolist() == [0.0, 0.5, 1.0]
    changed = fit_of("return seed / 3")
    with pytest.raises(StudyError, match=r"changing\.fit has changed since the first runs"):
        quick(tmp_path / "out", range(4), fit=changed, metric="score")
    result = quick(tmp_path / "out", range(4), fit=changed, metric="score", run={"changed_code": True})
    assert result.table()["score"].tolist() == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.slow
def test_failed_runs_stay_failed_until_asked(tmp_path: Path) -> None:
    fit = functools.partial(fits.end, how=("raise",))
    assert dict(quick(tmp_path, range(2), fit=fit, metric="score").failed) == {
        "seed-1": "RuntimeError: the disk is on fire"
    }
    assert [line["attempt"] for line in lines(tmp_path) if line["seed"] == 1] == [1, 2]
    quick(tmp_path, range(2), fit=fit, metric="score")
    assert len(lines(tmp_path)) == 3
    again = quick(tmp_path, range(2), fit=fit, metric="score", run={"retry_failed": True})
    assert again.table()["attempts"].tolist() == [1, 4]


@pytest.mark.slow
def test_hopeless_studies_end_early(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"the first 3 runs all failed(.|\n)*the run gave no metric 'los'; it gave holdout_loss, loss"
    ):
        quick(tmp_path, range(20), metric="los")
    assert len(lines(tmp_path)) <= 4
    assert rebuild(tmp_path, report=False).done == 0


@pytest.mark.slow
def test_vary_gives_the_seed_to_some_purposes(tmp_path: Path) -> None:
    result = quick(tmp_path, range(2), fit=fits.purposes, metric="score", vary="init,order+step,all", fixed=9, check=1)
    table = result.table()
    assert table[["seed", "vary"]].values.tolist() == [
        [0, "init"], [0, "order+step"], [0, "all"], [1, "init"], [1, "order+step"], [1, "all"]
    ]  # fmt: skip
    columns = ["seed_order", "seed_augment", "seed_init", "seed_step"]
    assert table.columns.tolist()[:7] == ["seed", "vary", *columns, "status"]
    assert table[columns].values.tolist() == [
        [9, 9, 0, 9], [0, 9, 9, 0], [0, 0, 0, 0], [9, 9, 1, 9], [1, 9, 9, 1], [1, 1, 1, 1]
    ]  # fmt: skip
    got = table[[f"got_{purpose}" for purpose in ("order", "augment", "init", "step")]]
    assert got.values.tolist() == table[columns].values.tolist(), "what fit was given"
    assert table["base"].tolist() == [9, 9, 0, 9, 9, 1]
    assert table["check"].tolist() == ["same", "", "", "", "", ""]


def test_vary_is_refused_where_it_would_vary_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"needs a function with a parameter 'seeds'.*fits\.train has none"):
        SeedStudy(fits.train, vary="order", out=tmp_path)
    with pytest.raises(ValueError, match="fixed=7 is one of the seeds"):
        SeedStudy(fits.purposes, vary="each", fixed=7, out=tmp_path)
    with pytest.raises(ValueError, match="not 'init\\+colour'"):
        SeedStudy(fits.purposes, vary="init+colour", out=tmp_path)


def half(seed: int) -> float:
    return seed / 2


def third(seed: int) -> float:
    return seed / 3


@pytest.mark.slow
def test_variants_are_paired_and_reported(tmp_path: Path) -> None:
    study = {"A": half, "B": third}
    result = quick(tmp_path, range(8), fit=study, metric="score", check=1, run={"report": True})
    table = result.table()
    assert table[["seed", "variant"]].values.tolist() == [[seed, name] for seed in range(8) for name in "AB"]
    assert table["score"].tolist() == [value for seed in range(8) for value in (seed / 2, seed / 3)]
    assert table["check"].tolist() == ["same", "same", *[""] * 14]
    page = result.report.read_text()
    assert "A: tests.study.test_study.half" in page
    before = result.report.read_bytes()
    result.report.unlink()
    assert rebuild(tmp_path).report.read_bytes() == before  # type: ignore[union-attr]
    assert result.summary()
    journal = tmp_path / "runs.jsonl"
    journal.write_text(journal.read_text().replace('"score": 3.5', '"score": 4.5'))
    assert rebuild(tmp_path).report.read_bytes() != before, "negative control: one score is another"  # type: ignore[union-attr]


@pytest.mark.slow
def test_functions_that_cannot_be_imported_are_sent_along(tmp_path: Path) -> None:
    scale = 3
    assert quick(tmp_path, fit=lambda seed: seed * scale, metric="score").table()["score"].tolist() == [0, 3, 6]
    import threading

    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"can't be sent to another process: cannot pickle '_thread\.lock' object"):
        quick(tmp_path / "b", fit=lambda seed: lock, metric="score")


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"seeds": [1, -1]}, ValueError, "a seed of a study must be an integer from 0 to 4294967295, not -1"),
        ({"seeds": [1, 2, 1]}, ValueError, "seeds has 1 twice"),
        ({"seeds": []}, ValueError, "seeds is empty"),
        ({"seeds": "0:3"}, TypeError, "seeds must be integers such as range"),
        ({"fit": 3}, TypeError, "fit must be a function of the seed or a command"),
        ({"fit": "python train.py"}, TypeError, "a command such as"),
        ({"fit": {}}, ValueError, "fit names no variant"),
        ({"fit": {"../a": half}}, ValueError, "a variant's name is made of letters"),
        ({"threads": 0}, ValueError, "threads must be an integer from 1 on, not 0"),
        ({"retries": -1}, ValueError, "retries must be an integer from 0 on, not -1"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds"),
        ({"start": "thread"}, ValueError, "start must be 'fork' or 'spawn', not 'thread'"),
        ({"highlight": [-3]}, ValueError, "highlight must be an integer from 0"),
    ],
)
def test_arguments_are_checked_before_anything_runs(keywords: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SeedStudy(**{"fit": half, "metric": "score", **keywords})


def test_it_is_public() -> None:
    assert repro_callbacks.SeedStudy is SeedStudy
