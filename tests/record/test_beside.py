"""A run's record beside its logs, and compared with that of the run that is resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from repro_callbacks import RunRecord
from repro_callbacks.record.beside import compare_at_resume, record_file, write_record


def test_a_folder_or_a_file_is_written(tmp_path: Path) -> None:
    record = RunRecord(seed=1)
    assert record_file(tmp_path / "logs") == str(tmp_path / "logs" / "run_record.json")
    (tmp_path / "v1.5").mkdir()
    assert record_file(tmp_path / "v1.5") == str(tmp_path / "v1.5" / "run_record.json")
    assert write_record(record_file(tmp_path / "a.json"), record) == str(tmp_path / "a.json")
    assert RunRecord.load(tmp_path / "a.json") == record


def test_an_earlier_record_is_kept(tmp_path: Path) -> None:
    names = [os.path.basename(write_record(record_file(tmp_path), RunRecord(seed=seed))) for seed in (1, 1, 2, 2, 1)]
    assert names == [
        "run_record.json",
        "run_record.json",
        "run_record.1.json",
        "run_record.1.json",
        "run_record.2.json",
    ]
    assert [RunRecord.load(tmp_path / name).seed for name in names] == [1, 1, 2, 2, 1]


def test_a_folder_that_can_t_be_written_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_record(str(tmp_path / "file" / "record.json"), RunRecord())


def test_what_can_change_bits_is_told() -> None:
    here, there = RunRecord(versions={"torch": "2"}), RunRecord(versions={"torch": "3"}, initial_weights="a", seed=3)
    assert (
        compare_at_resume(here, RunRecord(versions={"torch": "2"}, initial_weights="a", command=["x"]).to_dict())
        is None
    )
    told = compare_at_resume(here, there.to_dict())
    assert told is not None
    assert len(told.splitlines()) == 2
    assert told.splitlines()[1].startswith("  torch is 2 here and 3 there: can change bits")


def test_what_is_no_record_is_told() -> None:
    assert compare_at_resume(RunRecord(), {"seed": 1}) == (
        "the record in the checkpoint can't be compared with this run: not a run record: it has no field 'schema', "
        "only 'seed'"
    )


def test_the_file_can_be_written_to_a_remote_folder() -> None:
    import fsspec

    paths = [write_record("memory://bucket/logs/run_record.json", RunRecord(seed=seed)) for seed in (1, 2, 2)]
    filesystem = fsspec.filesystem("memory")
    assert [json.loads(filesystem.cat_file(path))["seed"] for path in paths] == [1, 2, 2]
    assert sorted(filesystem.ls("/bucket/logs", detail=False)) == [
        "/bucket/logs/run_record.1.json",
        "/bucket/logs/run_record.json",
    ]
    filesystem.rm("/bucket", recursive=True)


def test_a_record_in_a_checkpoint_is_compared(tmp_path: Path) -> None:
    here = RunRecord.capture(seed=1, initial_weights="a")
    torch.save({"record": here.to_dict()}, tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["record"]
    assert compare_at_resume(here, state) is None

    harmless = {**state, "initial_weights": "b", "command": ["resume"], "system": {**state["system"], "kernel": "1"}}
    assert compare_at_resume(here, harmless) is None

    text = compare_at_resume(here, {**harmless, "versions": {**state["versions"], "torch": "2.12.0"}})
    assert text is not None
    assert text.splitlines() == [
        "this run differs from the one that wrote the checkpoint, so it may not go on with the same bits:",
        f"  torch is {torch.__version__} here and 2.12.0 there: can change bits "
        "(bits are not promised between releases, nor between builds)",
    ]
