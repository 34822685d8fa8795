import dataclasses
import json
import math
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from repro_callbacks import RunRecord, flags


def run_python(code: str, *, cwd: Path | None = None, **env: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    return answer.stdout


CAPTURE = "from repro_callbacks import RunRecord; print(RunRecord.capture(seed=1).to_json())"


def test_capture_holds_all_that_the_run_depends_on():
    record = RunRecord.capture(seed=3407, seeds={"order": 1}, initial_weights="abc", extra={"world_size": 2})

    assert (record.seed, record.seeds, record.initial_weights, record.extra) == (
        3407,
        {"order": 1},
        "abc",
        {"world_size": 2},
    )
    assert record.flags == flags.read()
    assert record.versions["torch"] == torch.__version__
    assert record.versions["numpy"] == np.__version__
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"cuda", "cudnn", "lightning", "pytorch-lightning", "monai"} <= set(record.versions)
    assert record.hardware["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert record.hardware["cpu"]
    assert record.system["os"]
    assert record.command == sys.orig_argv
    assert set(record.code) == {"commit", "dirty", "changes", "repository"}


def test_flags_are_those_in_force_not_those_asked_for():
    before = RunRecord.capture()
    states = flags.snapshot()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        during = RunRecord.capture()
    finally:
        flags.restore(states)
    changed = {difference.field for difference in during.diff(before)}
    assert {"flags/deterministic_algorithms", "flags/deterministic_algorithms_warn_only"} <= changed
    assert RunRecord.capture().diff(before) == []


@pytest.mark.slow
def test_capture_changes_nothing():
    code = """
import os, random, sys, numpy, torch
from repro_callbacks import RunRecord, flags
random.seed(0); numpy.random.seed(0); torch.manual_seed(0)
before = flags.read(), dict(os.environ), os.getcwd(), random.getstate(), torch.get_rng_state().tolist()
stream = numpy.random.get_state()[1].tolist()
RunRecord.capture(seed=1)
assert before == (flags.read(), dict(os.environ), os.getcwd(), random.getstate(), torch.get_rng_state().tolist())
assert stream == numpy.random.get_state()[1].tolist()
torch.set_num_interop_threads(3)  # torch refuses this once the threads have started
assert not {"lightning", "pytorch_lightning", "monai"} & set(sys.modules)
print("unchanged")
"""
    assert run_python(code).strip() == "unchanged"


@pytest.mark.slow
def test_capture_takes_less_than_50_ms_in_a_fresh_process_and_hardly_any_after():
    """In time of the processor, git's too: the clock on the wall tells of the machine's load as well."""
    code = """
import resource, torch
from repro_callbacks import RunRecord
def spent():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
for _ in range(2):
    start = spent(); RunRecord.capture(seed=1); print(spent() - start)
"""
    first, second = (
        min(times) for times in zip(*(map(float, run_python(code).split()) for _ in range(3)), strict=True)
    )
    assert first < 0.050
    assert second < 0.005


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"seed": -1}, ValueError, "seed must be an integer from 0 to 4294967295, not -1"),
        ({"seed": True}, TypeError, "seed must be an integer from 0 to 4294967295, not True"),
        ({"seed": 1, "seeds": {"order": 2**32}}, ValueError, r"seeds\['order'\] must be an integer"),
        (
            {"extra": {"layers": [1, 2]}},
            TypeError,
            r"extra\['layers'\] must be a string, a number, a bool or None, not \[",
        ),
    ],
)
def test_capture_refuses_what_cannot_be_recorded(arguments, error, text):
    with pytest.raises(error, match=text):
        RunRecord.capture(**arguments)


def test_numpy_values_become_plain():
    record = RunRecord.capture(seed=np.int64(3), extra={"a": np.float32(0.5), "b": np.int8(1), "c": np.bool_(True)})
    assert type(record.seed) is int
    assert [(type(value), value) for value in record.extra.values()] == [(float, 0.5), (int, 1), (bool, True)]


def test_record_goes_through_a_checkpoint_loaded_with_weights_only(tmp_path):
    record = RunRecord.capture(seed=1, extra={"note": "é", "ratio": 0.1})
    torch.save({"record": record.to_dict()}, tmp_path / "a.ckpt")
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert RunRecord.from_dict(loaded["record"]) == record


def test_record_goes_through_a_file(tmp_path):
    record = RunRecord.capture(seed=1, extra={"note": "é", "ratio": 0.1, "nothing": None, "nan": math.nan})
    record.save(tmp_path / "new" / "folder" / "record.json")
    loaded = RunRecord.load(tmp_path / "new" / "folder" / "record.json")
    assert loaded.diff(record) == []
    assert loaded.to_json() == record.to_json()


def test_what_was_read_is_a_copy():
    record = RunRecord.capture()
    values = record.to_dict()
    values["versions"]["torch"] = "0.0"
    assert record.versions["torch"] == RunRecord.capture().versions["torch"] == torch.__version__
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seed = 3


def test_save_replaces_whole_files_and_respects_the_umask(tmp_path):
    path = tmp_path / "record.json"
    previous = os.umask(0o027)
    try:
        RunRecord(seed=1).save(path)
        RunRecord(seed=2).save(path)
    finally:
        os.umask(previous)
    assert RunRecord.load(path).seed == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_save_that_fails_leaves_the_older_file_and_no_other(tmp_path):
    path = tmp_path / "record.json"
    RunRecord(seed=1).save(path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        RunRecord(seed=2, extra={"a": object()}).save(path)  # type: ignore[dict-item]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        RunRecord(seed=2).save(tmp_path / "folder")
    assert RunRecord.load(path).seed == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "record.json"]


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file(tmp_path):
    """One process replaces the file again and again while this one reads it."""
    path = tmp_path / "record.json"
    RunRecord.capture(seed=1).save(path)
    code = f"""
from repro_callbacks import RunRecord
record = RunRecord.capture(seed=1)
for _ in range(300): record.save({str(path)!r})
"""
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        reads = 0
        while writer.poll() is None:
            assert RunRecord.load(path).seed == 1
            reads += 1
    assert writer.returncode == 0
    assert reads > 100


def test_fields_of_a_newer_version_are_kept(tmp_path):
    newer = {
        **RunRecord(seed=1, versions={"torch": "2.13.0"}).to_dict(),
        "schema": 7,
        "containers": {"image": "sha256:1"},
    }
    newer["versions"] = {**newer["versions"], "future": "1.0"}
    record = RunRecord.from_dict(newer)
    assert record.to_dict() == newer
    record.save(tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == newer
    assert record.flat()["containers/image"] == "sha256:1"
    (difference,) = record.diff(RunRecord.from_dict({**newer, "containers": {"image": "sha256:2"}}))
    assert difference.can_change_bits
    assert difference.sentence == "image is sha256:1 here and sha256:2 there: can change bits"


def test_a_record_of_an_older_version_says_what_it_did_not_record():
    record = RunRecord.capture(seed=1)
    older = record.to_dict()
    del older["versions"]["numpy"], older["versions"]["itk"]
    (difference,) = record.diff(RunRecord.from_dict(older))  # no itk here, and none recorded there: no difference
    assert difference.sentence == f"NumPy is {np.__version__} here and not recorded there: can change bits"


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (None, TypeError, "a run record is a mapping of fields, not None"),
        ([1], TypeError, r"a run record is a mapping of fields, not \[1\] of type list"),
        ({}, ValueError, "not a run record: it has no field 'schema', only nothing"),
        ({"schema": "1"}, TypeError, "field 'schema' of a run record is int, not '1' of type str"),
        ({"schema": 1, "seed": -3}, ValueError, "seed must be an integer from 0 to 4294967295, not -3"),
        ({"schema": 1, "versions": 3}, TypeError, "field 'versions' of a run record is dict"),
        ({"schema": 1, "command": "python"}, TypeError, "field 'command' of a run record is list"),
        ({"schema": 1, "initial_weights": 3}, TypeError, "field 'initial_weights' of a run record is str"),
    ],
)
def test_nonsense_is_refused(values, error, text):
    with pytest.raises(error, match=text):
        RunRecord.from_dict(values)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 1, "flags": 3}', "\x00\xff"])
def test_a_file_that_is_no_record_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"broken\.json can't be read as a run record: "):
        RunRecord.load(path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        RunRecord.load(tmp_path / "absent.json")


def test_flat_holds_scalars_only_and_every_value():
    record = RunRecord.capture(seed=1, seeds={"order": 2}, extra={"a": 1})
    flat = record.flat()
    assert all(value is None or type(value) in (str, int, float, bool) for value in flat.values())
    assert flat["seed"] == 1
    assert flat["seeds/order"] == 2
    assert flat["extra/a"] == 1
    assert flat["versions/torch"] == torch.__version__
    assert flat["flags/cudnn_deterministic"] is torch.backends.cudnn.deterministic


@pytest.mark.slow
def test_two_processes_of_one_environment_have_one_record(tmp_path):
    first, second = (RunRecord.from_dict(json.loads(run_python(CAPTURE, cwd=tmp_path))) for _ in range(2))
    assert first.diff(second) == []


@pytest.mark.slow
def test_what_differs_between_two_processes_is_said(tmp_path):
    """The negative control of the test above: the environment of one is changed."""
    plain = RunRecord.from_dict(json.loads(run_python(CAPTURE, cwd=tmp_path, OMP_NUM_THREADS="1", PYTHONHASHSEED="0")))
    other = RunRecord.from_dict(
        json.loads(run_python(CAPTURE, cwd=tmp_path, OMP_NUM_THREADS="2", PYTHONHASHSEED="random"))
    )
    sentences = {difference.sentence for difference in plain.diff(other)}
    assert sentences == {
        "OMP_NUM_THREADS is 1 here and 2 there: can change bits",
        "torch's number of threads inside an operator is 1 here and 2 there: can change bits",
        "PYTHONHASHSEED is 0 here and random there: can change bits",
        "PYTHONHASHSEED_in_force is True here and False there: can change bits",
        "hash_randomization is False here and True there: can change bits",
    }


def test_generators_are_not_drawn_from(tmp_path):
    random.seed(0)
    state = random.getstate()
    RunRecord.capture().save(tmp_path / "a.json")
    assert random.getstate() == state
