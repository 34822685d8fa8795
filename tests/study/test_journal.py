"""The journal: whole lines on the disk, and nothing else believed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks.study.journal import Journal, locked
from repro_callbacks.study.problems import StudyError
from repro_callbacks.study.task import Outcome, Task

IDENTITY = {"targets": {"": "fit"}, "metric": "dice", "vary": ["all"], "code": {"": "a"}, "software": {}}


def task(seed: int) -> Task:
    return Task(f"seed-{seed}", "", "all", seed, seed, {}, "")


def journal_of(out: Path, count: int = 2) -> Journal:
    journal = Journal.start(out, IDENTITY)
    for seed in range(count):
        outcome = Outcome(f"seed-{seed}", 1, "done", metrics={"dice": 0.1 + 0.2, "nan": float("nan")})
        journal.append(task(seed), outcome, True, "processes")
    return journal


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = journal_of(tmp_path)
    read = Journal.read(tmp_path)
    assert str(read.entries) == str(written.entries), "as text, for the NaN"
    assert read.identity == written.identity
    assert read.entries[0]["metrics"]["dice"] == 0.1 + 0.2


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_that_was_cut_off_is_no_line(tmp_path: Path, cut: int) -> None:
    """At any byte; reading leaves it, for a study may be running, and starting takes it away."""
    journal_of(tmp_path)
    path = tmp_path / "runs.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [entry["name"] for entry in Journal.read(tmp_path).entries] == ["seed-0"]
    assert path.read_bytes() == whole[:-cut]
    journal = Journal.start(tmp_path, IDENTITY)
    assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
    journal.append(task(1), Outcome("seed-1", 1, "done"), True, "processes")
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["seed-0", "seed-1"]


def test_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    journal_of(tmp_path)
    path = tmp_path / "runs.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(StudyError, match=r"line 1 of .*runs\.jsonl is damaged"):
        Journal.read(tmp_path)


def test_another_format_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"format": 99}')
    with pytest.raises(StudyError, match="is of format 99, and this version reads format 1"):
        Journal.read(tmp_path)


def test_the_lock_is_held_by_whoever_inherits_it(tmp_path: Path, monkeypatch: Any) -> None:
    """A study that was killed is not free before the processes that start its runs are gone."""
    monkeypatch.setattr("repro_callbacks.study.journal._PATIENCE", 0.3)
    with locked(tmp_path) as descriptor:
        heir = subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[descriptor], stdin=subprocess.PIPE)
    with pytest.raises(StudyError, match="another process is working on the study in"), locked(tmp_path):
        pass
    heir.communicate(b"\n")
    with locked(tmp_path):
        pass
