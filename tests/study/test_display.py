"""What is shown of a study: little in a pipe, a few live lines on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from repro_callbacks.study import display
from repro_callbacks.study.task import Outcome, Task


def task(seed: int, variant: str = "") -> Task:
    return Task(f"{variant}seed-{seed}", variant, "all", seed, seed, {}, "")


def done(seed: int, score: float) -> Outcome:
    return Outcome(f"seed-{seed}", 1, "done", metrics={"dice": score})


def test_a_pipe_gets_the_beginning_the_end_and_what_fails() -> None:
    stream = io.StringIO()
    shown = display.make_display("dice", 3, {"": [0.7]}, 2, stream=stream)
    with shown:
        for seed in range(3):
            shown.begin(task(seed))
        shown.end(task(0), done(0, 0.8), True)
        shown.end(task(1), Outcome("seed-1", 1, "failed", "killed", "killed by SIGKILL"), False)
        shown.end(task(1), Outcome("seed-1", 2, "failed", "killed", "killed by SIGKILL"), True)
        shown.refresh()
    assert stream.getvalue().splitlines() == [
        "repro-callbacks: study of dice: 3 runs to go, 1 done before",
        "repro-callbacks: seed-1 failed, is tried again: killed by SIGKILL",
        "repro-callbacks: seed-1 failed, killed by SIGKILL",
        "repro-callbacks: 2 runs done, 1 failed (1 killed)",
    ]


def test_the_live_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    shown = display.LiveDisplay("dice", 6, {"A": [], "B": []}, 2, stream=io.StringIO())
    for seed in range(4):
        shown.begin(task(seed, "A"))
    assert shown.lines() == ["0 done, 2 running, 0 failed; 6 to go, time unknown yet"], "two of the four wait"
    now[0] += 60
    for seed, score in enumerate((0.1, 0.1, 0.3)):
        shown.end(task(seed, "A"), done(seed, score), True)
    assert shown.lines() == [
        "3 done, 1 running, 0 failed; 3 to go, 1 min",
        "A: dice  0.1 █                      ▄ 0.3",
    ]


@pytest.mark.slow
def test_a_terminal_gets_the_live_lines(tmp_path: Path) -> None:
    """A real one; and without rich, plain lines."""
    for hide_rich in (False, True):
        text = on_a_terminal(tmp_path / str(hide_rich), hide_rich)
        assert "study of score: 4 runs to go" in text
        assert ("4 done, 0 running, 0 failed; 0 to go" in text) is not hide_rich
        assert re.search(r"score +0 .+█.+ 3", text) is not None or hide_rich


def on_a_terminal(out: Path, hide_rich: bool) -> str:
    code = (
        "import sys; sys.modules.update({'rich': None} if sys.argv[2] else {}); "
        "from repro_callbacks.study import SeedStudy; "
        "SeedStudy(lambda seed: seed, range(4), metric='score', out=sys.argv[1], check=0).run(workers=1, report=False)"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out), "yes" if hide_rich else ""],
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert process.wait(timeout=60) == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
