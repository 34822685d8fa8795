import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repro_callbacks.record import repository

SCRIPT = "import json; from repro_callbacks import RunRecord; print(json.dumps(RunRecord.capture().code))\n"
NOTHING = {"commit": None, "dirty": None, "changes": None, "repository": None}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "train.py").write_text(SCRIPT)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def run(script: Path, cwd: Path, **env: str) -> dict[str, object]:
    answer = subprocess.run(
        [sys.executable, str(script)], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


@pytest.mark.slow
def test_a_clean_repository(project, tmp_path):
    commit = git(project, "rev-parse", "HEAD").strip()
    expected = {"commit": commit, "dirty": False, "changes": None, "repository": "project"}
    # The script's repository is meant, wherever it is started.
    assert run(project / "scripts" / "train.py", cwd=tmp_path) == expected


def fresh_read(folder: Path) -> dict[str, object]:
    repository.read.cache_clear()
    return dict(repository.read(folder))


def test_tracked_changes_make_it_dirty_and_are_told_apart(project):
    script = project / "scripts" / "train.py"
    clean = fresh_read(project)
    (project / "untracked.txt").write_text("logs")
    assert fresh_read(project) == clean
    script.write_text(SCRIPT + "# one\n")
    one = fresh_read(project)
    script.write_text(SCRIPT + "# two\n")
    two = fresh_read(project)
    assert one["dirty"] is two["dirty"] is True
    assert one["commit"] == two["commit"] == clean["commit"]
    assert one["changes"] != two["changes"]
    git(project, "add", "scripts")  # staged or not, it is the same code
    assert fresh_read(project) == two


def test_no_repository_no_commit_no_git_and_no_folder(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    assert repository.read(bare) == NOTHING
    git(bare, "init", "-q")
    repository.read.cache_clear()
    assert repository.read(bare) == NOTHING
    assert repository.read(tmp_path / "absent") == NOTHING


@pytest.mark.slow
def test_without_git_there_is_no_answer_and_no_failure(project, tmp_path):
    assert run(project / "scripts" / "train.py", cwd=project, PATH=str(tmp_path)) == NOTHING


@pytest.mark.slow
def test_a_git_that_hangs_is_not_waited_for(project, tmp_path):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 60\n")
    slow.chmod(0o755)
    start = time.perf_counter()
    assert run(project / "scripts" / "train.py", cwd=project, PATH=str(slow.parent)) == NOTHING
    assert time.perf_counter() - start < 30


@pytest.mark.slow
def test_a_slow_status_does_not_lose_the_commit(project, tmp_path):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    real = shutil.which("git")
    slow.write_text(f'#!/bin/sh\ncase "$*" in *status*) exec {shutil.which("sleep")} 60;; esac\nexec {real} "$@"\n')
    slow.chmod(0o755)
    code = run(project / "scripts" / "train.py", cwd=project, PATH=f"{slow.parent}:{os.environ['PATH']}")
    assert code == {**NOTHING, "commit": git(project, "rev-parse", "HEAD").strip(), "repository": "project"}


def test_git_is_asked_once(project):
    repository.read.cache_clear()
    first = repository.read(project)
    start = time.perf_counter()
    assert repository.read(project) is first
    assert time.perf_counter() - start < 0.001


@pytest.mark.slow
def test_an_installed_script_or_none_means_the_working_directory(project):
    answer = subprocess.run([sys.executable, "-c", SCRIPT], cwd=project, check=True, capture_output=True, text=True)
    assert json.loads(answer.stdout)["repository"] == "project"
    installed = Path(sys.prefix) / "bin" / "pytest"
    code = f"import __main__; __main__.__file__ = {str(installed)!r}\n" + SCRIPT
    answer = subprocess.run([sys.executable, "-c", code], cwd=project, check=True, capture_output=True, text=True)
    assert json.loads(answer.stdout)["repository"] == "project"
