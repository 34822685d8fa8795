"""Runs on several processes: which rank differs, and what another number of them means."""

import subprocess
import sys
from pathlib import Path

import pytest

from repro_callbacks import compare
from repro_callbacks.fingerprint.runs import find_runs

ROOT = Path(__file__).parents[2]


def train(folder, devices, *fault):
    script = ROOT / "tests" / "fingerprint" / "ranks.py"
    command = [sys.executable, str(script), str(folder), str(devices), *fault]
    subprocess.run(command, check=True, cwd=ROOT, env=None, timeout=300)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {
        "two": train(folder / "two", 2),
        "again": train(folder / "again", 2),
        "one": train(folder / "one", 1),
        "plain": train(folder / "plain", 2, "plain"),
        "seed": train(folder / "seed", 2, "seed"),
        "flip": train(folder / "flip", 2, "flip"),
    }


@pytest.mark.slow
def test_each_rank_writes_its_own_file(runs):
    found = find_runs(runs["two"])
    assert sorted(found) == [0, 1]
    assert {run.head["world_size"] for run in found.values()} == {2}
    assert found[0].first()["indices"] != found[1].first()["indices"]
    assert found[0].first()["before"] != found[1].first()["before"]
    assert found[0].last()["parameters"] == found[1].last()["parameters"]


@pytest.mark.slow
def test_equal_on_two_ranks(runs):
    found = compare(runs["two"], runs["again"])
    assert found.equal, str(found)


@pytest.mark.slow
def test_the_seed_of_one_rank(runs):
    found = compare(runs["plain"], runs["seed"]).divergence
    assert (found.cause, found.epoch, found.batch, found.rank) == ("generator state", 1, 1, 1)


@pytest.mark.slow
def test_a_sample_of_one_rank(runs):
    found = compare(runs["two"], runs["flip"]).divergence
    assert (found.cause, found.epoch, found.batch, found.rank) == ("content of a sample", 1, 1, 1)
    assert "rank 0 differs as well" in str(found.details)  # its gradients are those of both


@pytest.mark.slow
def test_another_number_of_processes(runs):
    found = compare(runs["one"], runs["two"])
    assert found.divergence.cause == "world size"
    assert found.exit_code == 1
    assert "agree in all 6 steps" in str(found)  # keyed: the samples of a step don't depend on the number of ranks


@pytest.mark.slow
def test_a_file_of_a_rank_is_missing(runs, tmp_path):
    (tmp_path / "fingerprint.rank0.jsonl").write_bytes((runs["two"] / "fingerprint.rank0.jsonl").read_bytes())
    found = compare(runs["two"], tmp_path)
    assert found.divergence.cause == "world size"
    assert "B has no fingerprint of rank 1" in str(found)
