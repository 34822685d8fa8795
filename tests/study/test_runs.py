"""Which runs a study consists of, and how what it runs is named."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks.study import plan, targets
from repro_callbacks.study.problems import require
from tests.study import fits


def test_tasks_are_paired_and_the_first_seeds_repeated() -> None:
    tasks = plan.make_tasks(Path("/out"), ["A", "B"], ["order", "all"], [5, 3], fixed=9, check=1)
    assert [task.name for task in tasks] == [
        "A/order/seed-5", "A/order/seed-5-again", "A/all/seed-5",
        "B/order/seed-5", "B/order/seed-5-again", "B/all/seed-5",
        "A/order/seed-3", "A/all/seed-3", "B/order/seed-3", "B/all/seed-3",
    ]  # fmt: skip
    first, again, together = tasks[:3]
    assert (first.base, dict(first.seeds)) == (9, {"order": 5, "augment": 9, "init": 9, "step": 9})
    assert (together.base, set(together.seeds.values())) == (5, {5})
    assert (again.seeds, again.fresh, first.fresh) == (first.seeds, True, False)
    assert len({task.folder for task in tasks}) == len(tasks)
    assert first.folder == "/out/runs/A/order/seed-5"


def test_one_training_needs_no_names() -> None:
    (task,) = plan.make_tasks(Path("/out"), [""], ["all"], [7], fixed=9, check=0)
    assert (task.name, task.folder) == ("seed-7", "/out/runs/seed-7")


def name(fit: Any) -> str:
    (target,) = targets.make_targets(fit).values()
    return target.name


def test_names_are_the_same_in_another_process() -> None:
    assert name(fits.train) == "tests.study.fits.train"
    assert name(functools.partial(fits.train, steps=3)) == "tests.study.fits.train(steps=3)"
    assert name([sys.executable, "train.py", "--name", "a b"]) == "python train.py --name 'a b'"


def test_digests_follow_the_source(tmp_path: Path) -> None:
    train, other = targets.FunctionTarget(fits.train), targets.FunctionTarget(fits.slow)
    assert train.digest() == targets.FunctionTarget(functools.partial(fits.train, steps=3)).digest()
    assert train.digest() != other.digest()
    assert targets.FunctionTarget(len).digest() is None
    script = tmp_path / "train.py"
    command = targets.CommandTarget(("python", str(script)))
    assert command.digest() is None
    script.write_text("a = 1\n")
    before = command.digest()
    script.write_text("a = 2\n")
    assert command.digest() not in (None, before)


def test_the_arguments_of_a_command() -> None:
    order, together = plan.make_tasks(Path("/out"), [""], ["order", "all"], [5], fixed=9, check=0)
    command = targets.CommandTarget(("python", "train.py"))
    assert command.arguments(order) == ["run", "--seed", "9", "--seeds", "order=5", "--", "python", "train.py"]
    assert command.arguments(together) == ["run", "--seed", "5", "--", "python", "train.py"]


def test_a_missing_extra_is_told_from_a_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"a study needs not_there.*pip install 'repro-callbacks\[study\]'"):
        require("not_there", "study", "a study")
    (tmp_path / "broken_extra.py").write_text("import what_it_needs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="No module named 'what_it_needs'"):
        require("broken_extra", "study", "a study")
