"""The engines: the same seed gives the same bits whichever runs it, in a process that nothing has run in before."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks.study import NotRepeatableWarning, SeedStudy, StudyError
from repro_callbacks.study.engines import ENGINES, Site, make_engine
from repro_callbacks.study.engines.processes import ProcessEngine
from tests.study import fits

ALL = {
    "processes": {},
    "debug": {},
    "dask": {},
    "slurm": {"cluster": "local", "runs_per_job": 3},
}
BITS = ("name", "status", "metrics", "weights", "cases")


def run(
    out: Path, fit: Any, engine: Any = "processes", seeds: Any = range(4), metric: str = "loss", **keywords: Any
) -> Any:
    options = {**ALL.get(engine, {}), **keywords.pop("options", {})} if isinstance(engine, str) else {}
    study = SeedStudy(fit, seeds, metric=metric, out=out, **{"check": 0, **keywords})
    return study.run(engine, workers=2, report=False, display=False, **options)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


def bits(out: Path) -> list[list[Any]]:
    return sorted([line[key] for key in BITS] for line in lines(out))


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """A Dask cluster that a test starts by itself leaves variables behind, for the tests after it in this process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
def test_every_engine_gives_the_same_bits(tmp_path: Path) -> None:
    """In runs.csv, in the digests of the weights and in the score of every case; check=1 adds a new interpreter."""
    __import__("torch._inductor.config")  # torch sets a variable, too

    environment = dict(os.environ)
    for engine in ALL:
        result = run(tmp_path / engine, fits.train, engine, check=1)
        assert (result.done, dict(result.failed), result.differing) == (4, {}, ())
        assert dict(os.environ) == environment, "Dask sets variables for its workers in this process"
    processes, *others = (bits(tmp_path / engine) for engine in ALL)
    assert len(processes) == 5
    assert len({weights for _, _, _, weights, _ in processes}) == 4, "seeds differ from each other"
    assert all(other == processes for other in others)


@pytest.mark.slow
def test_bits_differ_where_a_fit_is_not_repeatable(tmp_path: Path) -> None:
    """Negative control of the one above, and of the check that every study makes."""
    with pytest.warns(NotRepeatableWarning, match="seed-0: run twice, with different results"):
        result = run(tmp_path / "a", fits.unseeded, seeds=[0, 1], metric="score", check=1)
    assert result.differing == ("seed-0",)
    assert result.table()["check"].tolist() == ["differs", ""]
    run(tmp_path / "b", fits.unseeded, seeds=[0, 1], metric="score")
    assert bits(tmp_path / "a") != bits(tmp_path / "b")


HEAVY = """
import os, sys
from tests.study.heavy import train
print(train(int(sys.argv[1]))["weights"])
"""


@pytest.mark.slow
def test_a_fork_is_as_good_as_a_new_interpreter(tmp_path: Path) -> None:
    """A Lightning training with MONAI transforms, dropout and loader workers, against interpreters of its own."""
    from tests.study import heavy

    run(tmp_path / "fork", heavy.train, seeds=range(2), metric="val_loss")
    run(tmp_path / "spawn", heavy.train, seeds=range(2), metric="val_loss", start="spawn")
    assert bits(tmp_path / "fork") == bits(tmp_path / "spawn")
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    *_, (name, _, _, weights, _) = bits(tmp_path / "fork")  # the one that ran beside another, or after it
    words = [sys.executable, "-c", HEAVY, name.removeprefix("seed-")]
    alone = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert alone.stdout.split()[-1:] == [weights], alone.stderr


def leaves_a_trace(seed: int) -> float:
    """What a warm worker would betray: the number of runs that this process has seen."""
    import torch

    count = getattr(torch, "_test_count", 0)
    torch._test_count = count + 1  # type: ignore[attr-defined]
    return float(count)


@pytest.mark.slow
def test_nothing_of_a_run_is_left_for_the_next(tmp_path: Path) -> None:
    run(tmp_path, leaves_a_trace, metric="score")
    assert [line["metrics"]["score"] for line in lines(tmp_path)] == [0.0] * 4


@pytest.mark.slow
def test_a_warm_process_would_leave_something(tmp_path: Path) -> None:
    """Negative control: the debug engine runs all in this process, and the check of the study says so."""
    with pytest.warns(NotRepeatableWarning):
        result = run(tmp_path, leaves_a_trace, "debug", metric="score", check=2)
    assert result.table()["score"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert result.differing == ("seed-1",)


def around(seed: int) -> dict[str, float]:
    """What a run finds around it."""
    import random

    import numpy as np
    import torch

    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED")
    return {
        "threads": torch.get_num_threads(),
        **{name: float(os.environ[name]) for name in pools},
        "hash": hash("repro"),
        "random": random.random(),
        "numpy": np.random.rand(),
        "torch": torch.rand(()).item(),
        "leader": float(os.getsid(0) == os.getpid()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_hash_seed_and_generators_are_pinned(tmp_path: Path, threads: int) -> None:
    import random

    import numpy as np
    import torch

    from repro_callbacks import generators

    run(tmp_path, around, seeds=[5], metric="threads", threads=threads, check=1)
    first, again = (line["metrics"] for line in lines(tmp_path))
    with generators.isolate():
        generators.seed_all(5)
        drawn = {"random": random.random(), "numpy": np.random.rand(), "torch": torch.rand(()).item()}
    assert first == again
    assert first["threads"] == first["OMP_NUM_THREADS"] == first["MKL_NUM_THREADS"] == threads
    assert first["OPENBLAS_NUM_THREADS"] == 1
    assert first["PYTHONHASHSEED"] == 0
    assert {name: first[name] for name in drawn} == drawn


def monai_entropy(seed: int) -> float:
    """A transform that nobody seeds."""
    from monai.transforms import RandFlip

    return float(RandFlip().R.rand())


@pytest.mark.slow
def test_forks_do_not_share_monais_entropy(tmp_path: Path) -> None:
    """Or an unseeded pipeline would draw the same in every run, and look repeatable."""
    run(tmp_path, monai_entropy, metric="score", imports=["monai.transforms"])
    assert len({line["metrics"]["score"] for line in lines(tmp_path)}) == 4


ENDS = {
    "raise": ("raised", "RuntimeError: the disk is on fire"),
    "sys.exit": ("exit", "left by sys.exit(3)"),
    "os._exit": ("exit", "ended with exit code 7 and left no result"),
    "SIGKILL": ("killed", "killed by SIGKILL; the kernel counts no OOM kill"),
    "SIGSEGV": ("killed", "killed by SIGSEGV"),
    "hang": ("timeout", "killed because it took longer than 5 s"),
    "nan": ("metric", "score is nan, which is no score"),
}


@pytest.mark.slow
def test_what_ends_a_run_is_told_apart(tmp_path: Path) -> None:
    fit = functools.partial(fits.end, how=tuple(ENDS))
    result = run(tmp_path, fit, seeds=range(len(ENDS) + 1), metric="score", retries=1, timeout=5)
    assert result.done == 1, "seed 0"
    assert dict(result.failed) == {f"seed-{seed}": error for seed, (_, error) in enumerate(ENDS.values(), 1)}
    for seed, (cause, _) in enumerate(ENDS.values(), 1):
        tries = [line for line in lines(tmp_path) if line["seed"] == seed]
        assert {line["cause"] for line in tries} == {cause}
        assert len(tries) == (1 if cause == "metric" else 2), "a run that ends without a score isn't tried again"
    table = result.table()
    assert table["status"].tolist() == ["done"] + ["failed"] * len(ENDS)
    assert table["attempts"].tolist() == [1] + [2] * (len(ENDS) - 1) + [1]
    assert "in end" in (tmp_path / "runs/seed-1/log.txt").read_text(), "the traceback"


def workers_of_its_own(seed: int, marks: str) -> float:
    """Is killed while two loader workers of it sleep."""
    import signal

    import torch

    class Slow(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> int:
            Path(marks, f"worker-{os.getpid()}").touch()
            time.sleep(0.05 if index < 2 else 600)
            return index

    for _ in torch.utils.data.DataLoader(Slow(), num_workers=2):
        if len(list(Path(marks).glob("worker-*"))) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


@pytest.mark.slow
def test_a_killed_run_leaves_no_loader_workers(tmp_path: Path) -> None:
    fit = functools.partial(workers_of_its_own, marks=str(tmp_path))
    result = run(tmp_path / "out", fit, seeds=[0], metric="score", retries=0)
    assert "killed by SIGKILL" in result.failed["seed-0"]
    pids = [int(mark.name.removeprefix("worker-")) for mark in tmp_path.glob("worker-*")]
    assert len(pids) == 2
    until = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def kills_the_nursery(seed: int, marks: str) -> float:
    """Seed 1 kills, once, the process that it was forked from."""
    import signal

    mark = Path(marks, "nursery-killed")
    if seed == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return float(seed)


@pytest.mark.slow
def test_runs_outlive_the_process_that_starts_them(tmp_path: Path) -> None:
    """They die with it, are reported as lost, and are run again from another one."""
    result = run(tmp_path / "out", functools.partial(kills_the_nursery, marks=str(tmp_path)), metric="score")
    assert result.done == 4
    lost = [line for line in lines(tmp_path / "out") if line["cause"] == "lost"]
    assert "seed-1" in {line["name"] for line in lost}
    assert all("was killed by SIGKILL" in line["error"] for line in lost)


@pytest.mark.slow
def test_an_import_that_starts_threads_is_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(RuntimeWarning, match="an import has started the thread 'Thread-1"):
        result = run(tmp_path / "out", fits.train, seeds=[3], imports=["starts_a_thread"])
    forked = run(tmp_path / "forked", fits.train, seeds=[3])
    assert result.table()["weights"].tolist() == forked.table()["weights"].tolist()


@pytest.mark.slow
def test_what_a_run_imports_late_is_imported_once(tmp_path: Path) -> None:
    """A module that a training imports while it runs costs the first run only."""

    def fit(seed: int) -> float:
        import sys

        known = "wsgiref.handlers" in sys.modules
        __import__("wsgiref.handlers")  # not seen in the code
        return float(known)

    study = SeedStudy(fit, range(4), metric="score", out=tmp_path, check=0)
    assert study.run(workers=1, report=False, display=False).table()["score"].tolist() == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.slow
def test_a_target_that_cannot_be_loaded_stops_the_study_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goes_away.py").write_text("def fit(seed):\n    return 0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import goes_away  # type: ignore[import-not-found]

    (tmp_path / "goes_away.py").unlink()
    with pytest.raises(StudyError, match=r"can't be started in another process(.|\n)*No module named 'goes_away'"):
        run(tmp_path / "out", goes_away.fit, metric="score")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "slurm"])
def test_clusters_retry_what_was_killed(tmp_path: Path, engine: str) -> None:
    fit = functools.partial(fits.killed_once, marks=str(tmp_path))
    result = run(tmp_path / "out", fit, engine, seeds=[0, 1, 2], metric="score")
    assert (result.done, dict(result.failed)) == (3, {})
    assert sorted((line["name"], line["attempt"], line["cause"]) for line in lines(tmp_path / "out")) == [
        ("seed-0", 1, ""),
        ("seed-1", 1, "killed"),
        ("seed-1", 2, ""),
        ("seed-2", 1, ""),
    ]


def kills_its_grandparent(seed: int, marks: str) -> float:
    """Seed 1 kills, once, the worker of the cluster that looks after its nursery."""
    import signal

    mark = Path(marks, "worker-killed")
    if seed == 1 and not mark.exists():
        mark.touch()
        status = Path(f"/proc/{os.getppid()}/status").read_text()
        os.kill(int(status.split("PPid:")[1].split()[0]), signal.SIGKILL)
        time.sleep(600)
    return float(seed)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "slurm"])
def test_a_worker_of_a_cluster_that_dies_loses_no_run(tmp_path: Path, engine: str) -> None:
    fit = functools.partial(kills_its_grandparent, marks=str(tmp_path))
    result = run(tmp_path / "out", fit, engine, metric="score")
    assert (result.done, dict(result.failed)) == (4, {})
    assert [line["name"] for line in lines(tmp_path / "out") if line["cause"] == "lost"] == ["seed-1"]


@pytest.mark.slow
def test_dask_takes_a_client_and_an_address(tmp_path: Path) -> None:
    import distributed

    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            one = run(tmp_path / "client", fits.train, "dask", options={"client": client})
            assert client.status == "running", "it is the caller's, and left open"
        two = run(tmp_path / "address", fits.train, "dask", options={"address": cluster.scheduler_address})
    assert one.table()["weights"].tolist() == two.table()["weights"].tolist()
    with pytest.raises(ValueError, match="one of client, address and cluster"):
        run(tmp_path / "both", fits.train, "dask", options={"address": "tcp://x", "cluster": {}})


def hang(seed: int, marks: str) -> float:
    Path(marks, f"hangs-{os.getpid()}").touch()
    time.sleep(600)
    return 0.0


@pytest.mark.slow
def test_a_study_that_is_stopped_stops_its_runs_on_a_cluster_of_others(tmp_path: Path) -> None:
    import distributed

    from repro_callbacks.study.engines.dask import DaskEngine

    class Stopped(DaskEngine):
        def wait(self, timeout: float) -> Any:
            if list(tmp_path.glob("hangs-*")):
                raise KeyboardInterrupt
            return super().wait(timeout)

    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        study = SeedStudy(
            functools.partial(hang, marks=str(tmp_path)), [0], metric="score", out=tmp_path / "out", check=0
        )
        with pytest.raises(KeyboardInterrupt):
            study.run(Stopped, client=client, report=False, display=False)
        (mark,) = tmp_path.glob("hangs-*")
        process = Path("/proc", mark.name.removeprefix("hangs-"))
        until = time.monotonic() + 20
        while process.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not process.exists()
        assert cluster.workers, "the cluster is there; only the run is gone"
        assert run(tmp_path / "next", fits.train, "dask", seeds=[0], options={"client": client}).done == 1


@pytest.mark.slow
def test_an_engine_of_your_own(tmp_path: Path) -> None:
    """A class with the interface of Engine; here one that counts what it is given."""
    seen: list[str] = []

    class Counting(ProcessEngine):
        def submit(self, task: Any) -> None:
            seen.append(task.name)
            super().submit(task)

    assert run(tmp_path, fits.train, Counting).done == 4
    assert sorted(seen) == [f"seed-{seed}" for seed in range(4)]
    assert {line["engine"] for line in lines(tmp_path)} == {"Counting"}


def test_unknown_engines_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine must be one of 'processes', 'debug', 'dask', 'slurm', not 'ray'"):
        run(tmp_path, fits.train, "ray")
    with pytest.raises(TypeError, match="unexpected keyword argument 'nodes'"):
        run(tmp_path, fits.train, "processes", options={"nodes": 3})


@pytest.mark.parametrize(
    ("engine", "module", "extra"), [("dask", "distributed", "dask"), ("slurm", "submitit", "slurm")]
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, engine: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    site: Any = Site(None, 1, Path())  # type: ignore[arg-type]
    with pytest.raises(
        ImportError, match=rf"engine='{engine}' needs {module}.*pip install 'repro-callbacks\[{extra}\]'"
    ):
        make_engine(engine, site)


def test_engines_import_nothing_before_they_are_used() -> None:
    heavy = ("distributed", "submitit", "torch", "pandas", "lightning", "monai")
    code = f"import sys; import repro_callbacks.study.runs; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
    assert set(ENGINES) == set(ALL)


def test_debug_raises_and_refuses_commands(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the disk is on\nfire"):
        run(tmp_path / "a", functools.partial(fits.end, how=("raise",)), "debug", seeds=[1], metric="score")
    with pytest.raises(ValueError, match=r"repro-callbacks run --seed 0 -- python train\.py"):
        run(tmp_path / "b", ["python", "train.py"], "debug")


def test_debug_puts_generators_and_threads_back(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run(tmp_path, fits.train, "debug", threads=2 if threads != 2 else 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
