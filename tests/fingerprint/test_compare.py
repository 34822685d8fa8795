"""Faults put in on purpose: the step, the class of the cause, and no alarm where there is no fault."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from repro_callbacks import compare
from repro_callbacks.fingerprint import NotComparable
from repro_callbacks.fingerprint.causes import CAUSES
from tests.fingerprint.faults import FAULTS
from tests.fingerprint.training import Training

FAST = {
    "two samples of a batch swapped",
    "one bit of one sample",
    "torch's generator drawn from once more",
    "a sum in another order",
    "one bit of one gradient",
    "another learning rate from a step on",
    "other initial weights",
    "another seed",
    "a parameter renamed",
    "fewer epochs",
    "resumed from older weights",
}
"""One of each kind, for `make quick`."""


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Runs a sound training once for all the faults that are compared with it."""
    folder, done = tmp_path_factory.mktemp("sound"), []

    def run(training: Training) -> Path:
        path = next((path for known, path in done if known == training), None)
        if path is None:
            path = folder / str(len(done))
            training.run(path)
            done.append((training, path))
        return path

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAULTS]
)
def test_fault(name, sound, tmp_path):
    fault = FAULTS[name]
    with fault.under():
        fault.inject(fault.sound, tmp_path).run(tmp_path / "faulty")
    found = compare(sound(fault.sound), tmp_path / "faulty")
    assert found.exit_code == 1
    assert found.divergence.cause == fault.cause, str(found)
    assert fault.position is None or (found.divergence.epoch, found.divergence.batch) == fault.position, str(found)
    assert fault.says in str(found)
    # The other way round it is the same finding.
    back = compare(tmp_path / "faulty", sound(fault.sound))
    assert (back.divergence.cause, back.divergence.epoch, back.divergence.batch) == (
        found.divergence.cause,
        found.divergence.epoch,
        found.divergence.batch,
    )


def test_there_are_faults_of_every_cause():
    assert len(FAULTS) >= 25
    named = {fault.cause for fault in FAULTS.values()}
    assert named == CAUSES.keys() - {"world size"}  # see test_structure.py


@pytest.mark.slow
def test_the_step_does_not_depend_on_the_chain(sound, tmp_path):
    """Runs that recorded with different frequencies can't be bisected, and are compared step by step."""
    for name in ("one bit of one gradient", "another learning rate from a step on", "one bit of one sample"):
        fault = FAULTS[name]
        folder = tmp_path / name.replace(" ", "-")
        faulty = replace(fault.inject(fault.sound, folder), every={"parameters": 5, "optimizer": 0, "validation": 0})
        faulty.run(folder)
        found = compare(sound(fault.sound), folder)
        assert (found.divergence.epoch, found.divergence.batch) == fault.position
        assert found.divergence.cause == fault.cause


def test_equal_runs_are_equal(sound, tmp_path):
    Training().run(tmp_path / "again")
    found = compare(sound(Training()), tmp_path / "again")
    assert found.equal, str(found)
    assert found.exit_code == 0
    assert found.steps == 18
    assert json.loads(json.dumps(found.to_dict()))["equal"] is True


def test_what_was_not_recorded_is_no_difference(sound, tmp_path):
    Training(every={"parameters": 4, "generators": 0, "batch": 3}).run(tmp_path / "less")
    assert compare(sound(Training()), tmp_path / "less").equal


def test_an_environment_that_changed_no_bits_is_a_note(sound, tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    Training().run(tmp_path / "again")
    found = compare(sound(Training()), tmp_path / "again")
    assert found.equal
    assert "could have changed bits, and did not" in str(found)
    assert "MKL_CBWR" in str(found)


def test_paths(sound, tmp_path):
    folder = sound(Training())
    (tmp_path / "logs").mkdir()
    shutil.copy(folder / "fingerprint.rank0.jsonl", tmp_path / "logs")
    file = tmp_path / "logs" / "fingerprint.rank0.jsonl"
    for path in (file, tmp_path / "logs", tmp_path, str(file), tmp_path / "logs" / "fingerprint.jsonl"):
        assert compare(folder, path).equal


def test_what_can_not_be_compared(tmp_path, sound):
    folder = sound(Training())
    for path, words in (
        (tmp_path / "absent", "does not exist"),
        (tmp_path, "holds no fingerprint"),
    ):
        with pytest.raises(NotComparable, match=words):
            compare(folder, path)
    (tmp_path / "a.rank0.jsonl").write_text("some text\n")
    with pytest.raises(NotComparable, match="not a fingerprint"):
        compare(tmp_path, folder)
    (tmp_path / "a.rank0.jsonl").write_text("")
    with pytest.raises(NotComparable, match="is empty"):
        compare(tmp_path, folder)
    text = (folder / "fingerprint.rank0.jsonl").read_text()
    (tmp_path / "a.rank0.jsonl").write_text(text.replace('"format":1', '"format":99', 1))
    with pytest.raises(NotComparable, match="format 99"):
        compare(tmp_path, folder)
    (tmp_path / "b.rank0.jsonl").write_text(text)
    with pytest.raises(NotComparable, match="fingerprints of 2 runs"):
        compare(tmp_path, folder)
