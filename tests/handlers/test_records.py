"""A run's record beside its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro_callbacks import RunRecord
from repro_callbacks.handlers.records import difference, write_record


def test_a_folder_or_a_file_is_written(tmp_path: Path) -> None:
    record = RunRecord(seed=1)
    assert write_record(tmp_path / "logs", record) == tmp_path / "logs" / "run_record.json"
    assert write_record(tmp_path, record) == tmp_path / "run_record.json"
    assert write_record(tmp_path / "a.json", record) == tmp_path / "a.json"
    assert RunRecord.load(tmp_path / "a.json") == record


def test_an_earlier_record_is_kept(tmp_path: Path) -> None:
    names = [write_record(tmp_path, RunRecord(seed=seed)).name for seed in (1, 1, 2, 2, 1)]
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
        write_record(tmp_path / "file" / "record.json", RunRecord())


def test_what_can_change_bits_is_told() -> None:
    here, there = RunRecord(versions={"torch": "2"}), RunRecord(versions={"torch": "3"}, initial_weights="a", seed=3)
    assert difference(here, RunRecord(versions={"torch": "2"}, initial_weights="a", command=["x"]).to_dict()) is None
    told = difference(here, there.to_dict())
    assert told is not None
    assert len(told.splitlines()) == 2
    assert told.splitlines()[1].startswith("  torch is 2 here and 3 there: can change bits")


def test_what_is_no_record_is_told() -> None:
    assert difference(RunRecord(), {"seed": 1}) == (
        "the record in the checkpoint can't be compared with this run: not a run record: it has no field 'schema', "
        "only 'seed'"
    )
