"""Promise 5: several processes. Gloo on the CPU, with real processes started in each of Lightning's three ways.

Order and augmentation of the samples are the same for any number of ranks with the same global batch. The weights are
not: the gradients of the ranks are summed in another order, so that the last bits of a sum differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "scripts_ddp" / "train.py"
STEPS = 3  # in an epoch, of two

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Ranks:
    """What each rank of a job has written."""

    def __init__(self, folder: Path, name: str) -> None:
        files = sorted(folder.glob(f"{name}-[0-9].json"))
        self.ranks: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
        assert self.ranks, f"job {name} has left nothing"
        assert [rank["world"] for rank in self.ranks] == [len(self.ranks)] * len(self.ranks)

    def of(self, name: str) -> list[Any]:
        return [rank[name] for rank in self.ranks]

    @property
    def end(self) -> list[Any]:
        return [self.of("weights"), self.of("state")]

    def tail(self, steps: int) -> list[Any]:
        return [rank["seen"][-steps:] if steps else [] for rank in self.ranks]

    def samples(self) -> list[list[str]]:
        """The digests of the samples of each global step, whichever rank had them."""
        return [
            sorted(digest for step in steps for digest in step[2])
            for steps in zip(*self.of("seen"), strict=True)
        ]  # fmt: skip


def launch(folder: Path, *jobs: dict[str, Any]) -> dict[str, Ranks]:
    file = folder / f"{jobs[0]['name']}-jobs.json"
    file.write_text(json.dumps(jobs))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "REPRO_", "LOCAL_RANK"))}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), str(folder)], capture_output=True, text=True, env=env, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return {job["name"]: Ranks(folder, job["name"]) for job in jobs}


def job(name: str, *, strategy: str = "ddp", world: int = 2, **kwargs: Any) -> dict[str, Any]:
    return {"name": name, "strategy": strategy, "world": world, **kwargs}


RESUMES = {  # what is resumed, and how many steps of the run are still to come
    "in the middle of an epoch": ("steps/step=2.ckpt", 4),
    "from the last batch of an epoch": ("steps/step=3.ckpt", 3),
    "from the end of an epoch": ("epochs/epoch=0.ckpt", 3),
    "in the middle of the last epoch": ("steps/step=5.ckpt", 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ddp(folder: Path) -> dict[str, Ranks]:
    """Run all that one launch of ``strategy="ddp"`` can: the script is started again for each further rank."""
    resumes = [
        job(name, resume=checkpoint, workers=number % 3)
        for number, (name, (checkpoint, _)) in enumerate(RESUMES.items())
    ]
    return launch(
        folder,
        job("drawn", drawn="rank 0"),
        job("reference", save=True),
        job("again"),
        job("workers", workers=2),
        *resumes,
        job("weighted", weighted=True),
        job("weighted again", weighted=True, workers=2),
        job("drawn late", drawn="each rank alone"),
        job("bare", ours=False),
        job("bare workers", ours=False, workers=2),
        job("bare resumed", ours=False, resume="steps/step=2.ckpt"),
    )


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Ranks]:
    return launch(
        folder, job("single", strategy="auto", world=1), job("single weighted", strategy="auto", world=1, weighted=True)
    )


def test_a_run_repeats(ddp: dict[str, Ranks]) -> None:
    assert ddp["again"].ranks == ddp["reference"].ranks
    assert len(ddp["reference"].ranks) == 2
    first, second = ddp["reference"].of("weights")
    assert first == second


def test_any_number_of_workers(ddp: dict[str, Ranks]) -> None:
    assert ddp["workers"].ranks == ddp["reference"].ranks


@pytest.mark.parametrize("name", RESUMES)
def test_a_run_resumes(ddp: dict[str, Ranks], name: str) -> None:
    resumed, left = ddp[name], RESUMES[name][1]
    assert [len(seen) for seen in resumed.of("seen")] == [left, left]
    assert resumed.of("seen") == ddp["reference"].tail(left)
    assert resumed.end == ddp["reference"].end


def test_ranks_draw_differently_in_the_step_and_share_no_sample(ddp: dict[str, Ranks]) -> None:
    for first, second in zip(*ddp["reference"].of("seen"), strict=True):
        assert first[3] != second[3]
        assert not set(first[2]) & set(second[2])


def test_what_setup_draws_is_the_same_on_each_rank(ddp: dict[str, Ranks]) -> None:
    first, second = ddp["reference"].of("setup")
    assert first == second


def test_a_drawn_seed_is_the_same_on_each_rank(ddp: dict[str, Ranks]) -> None:
    for name in ("drawn", "drawn late"):
        first, second = ddp[name].of("seed")
        assert first == second
        assert len(set(ddp[name].of("weights"))) == 1
    assert ddp["drawn"].of("setup")[0] == ddp["drawn"].of("setup")[1]
    assert ddp["drawn"].of("seed") != ddp["drawn late"].of("seed")
    assert ddp["drawn"].of("seen") != ddp["reference"].of("seen")


def test_a_weighted_sampler(ddp: dict[str, Ranks], single: dict[str, Ranks]) -> None:
    assert ddp["weighted again"].ranks == ddp["weighted"].ranks
    samples = ddp["weighted"].samples()
    assert samples == single["single weighted"].samples()
    assert all(len(step) == 8 == len(set(step)) for step in samples), "a sample that comes twice draws anew"


@pytest.mark.parametrize("world", [2, 4])
def test_order_and_augmentation_do_not_depend_on_the_number_of_ranks(
    world: int, folder: Path, ddp: dict[str, Ranks], single: dict[str, Ranks]
) -> None:
    ranks = ddp["reference"] if world == 2 else launch(folder, job("four", world=4))["four"]
    assert len(ranks.ranks) == world
    assert ranks.samples() == single["single"].samples()
    assert len(ranks.samples()) == 2 * STEPS
    assert len({digest for step in ranks.samples() for digest in step}) == 48


@pytest.fixture(scope="module")
def others(folder: Path, ddp: dict[str, Ranks]) -> dict[str, Ranks]:
    """The same by processes that are forked, and by ones that are spawned and import everything anew."""
    checkpoint = RESUMES["in the middle of an epoch"][0]
    return launch(
        folder,
        job("forked drawn", strategy="ddp_fork", drawn="rank 0"),
        job("forked", strategy="ddp_fork", workers=1),
        job("forked resumed", strategy="ddp_fork", resume=checkpoint),
        job("spawned resumed", strategy="ddp_spawn", resume=checkpoint, workers=1),
    )


def test_processes_started_in_another_way(ddp: dict[str, Ranks], others: dict[str, Ranks]) -> None:
    left = RESUMES["in the middle of an epoch"][1]
    assert others["forked"].ranks == ddp["reference"].ranks
    for name in ("forked resumed", "spawned resumed"):
        assert others[name].of("seen") == ddp["reference"].tail(left)
        assert others[name].end == ddp["reference"].end
    first, second = others["forked drawn"].of("seed")
    assert first == second


def test_bare_lightning_keeps_none_of_it(ddp: dict[str, Ranks]) -> None:
    assert ddp["bare workers"].of("seen") != ddp["bare"].of("seen")
    assert ddp["bare resumed"].of("seen") != ddp["bare"].tail(4)
    first, second = ddp["bare"].of("seen")
    assert [step[3] for step in first] == [step[3] for step in second], "ranks draw the same in the step"
