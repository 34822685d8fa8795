"""The kernel's OOM killer, told from ``kill -9`` by what the kernel counts."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from repro_callbacks.study import SeedStudy
from repro_callbacks.study.engines import oom


def system(root: Path, group: str, content: str, cgroup: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    file = root / "sys/fs/cgroup" / group
    file.parent.mkdir(parents=True)
    file.write_text(content)
    return file


def test_counters_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    v2 = system(tmp_path / "v2", "user/job/memory.events", "low 0\noom 4\noom_kill 2\n", "0::/user/job\n")
    assert oom.counters(tmp_path / "v2") == [v2, tmp_path / "v2/proc/vmstat"]
    assert oom.read(oom.counters(tmp_path / "v2")) == (2, 3)
    v1 = system(
        tmp_path / "v1", "memory/job/memory.oom_control", "under_oom 0\noom_kill 5\n", "4:cpu,memory:/job\n0::/\n"
    )
    assert oom.counters(tmp_path / "v1") == [v1, tmp_path / "v1/proc/vmstat"]
    assert oom.read([v1, tmp_path / "gone"]) == (5, 0)
    assert oom.counters(tmp_path / "nothing") == []


def test_this_system_has_counters() -> None:
    files = oom.counters()
    assert files
    assert all(count >= 0 for count in oom.read(files))


def die(seed: int, counter: str) -> float:
    """Is killed, as the OOM killer does it: by SIGKILL, and counted. Seed 1 is killed by somebody else."""
    if seed != 1:
        Path(counter).write_text("oom_kill 1\n")
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


@pytest.mark.slow
@pytest.mark.parametrize("certain", [True, False])
def test_a_kill_is_told_by_the_counters(tmp_path: Path, certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters are files of the test: a real OOM kill would need a control group of its own."""
    counter, other = tmp_path / "counter", tmp_path / "other"
    counter.write_text("oom_kill 0\n")
    other.write_text("oom_kill 0\n")
    files = [counter, other] if certain else [other, counter]
    (tmp_path / "with_counters.py").write_text(
        "from pathlib import Path\nfrom repro_callbacks.study.engines import nursery, oom\n"
        f"oom.counters = lambda: [Path(name) for name in {[str(file) for file in files]}]\n"
    )
    monkeypatch.setattr(
        "repro_callbacks.study.engines.launcher._CODE",
        "import sys; sys.path[:] = [" + repr(str(tmp_path)) + ", *{!r}]; import with_counters; "
        "from {} import nursery; nursery.main(*sys.argv[1:])",
    )
    fit = functools.partial(die, counter=str(counter))
    study = SeedStudy(fit, [0, 1], metric="score", out=tmp_path / "out", check=0, retries=0)
    failed = study.run(workers=1, report=False, display=False).failed
    assert failed["seed-0"].startswith("killed by the kernel" if certain else "killed, probably because memory ran out")
    assert failed["seed-1"] == "killed by SIGKILL; the kernel counts no OOM kill"
