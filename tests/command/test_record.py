import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from repro_callbacks import RunRecord
from repro_callbacks.command import record as command
from repro_callbacks.command.main import main


@pytest.fixture(scope="module")
def here() -> RunRecord:
    return RunRecord.capture(seed=1, initial_weights="abc")


def changed(record: RunRecord, section: str, **values: object) -> RunRecord:
    fields = record.to_dict()
    fields[section] = {**fields[section], **values}
    return RunRecord.from_dict(fields)


def call(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["record", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_without_a_record_this_environment_is_shown(capsys):
    code, out, _ = call(capsys)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["versions"] in lines
    assert ["torch", torch.__version__] in lines
    assert ["cudnn_benchmark", str(torch.backends.cudnn.benchmark)] in lines
    assert ["cuda", torch.version.cuda or "absent"] in lines


def test_json_is_a_record(capsys):
    code, out, _ = call(capsys, "--json")
    assert code == 0
    assert RunRecord.from_dict(json.loads(out)).versions["torch"] == torch.__version__


def test_out_writes_a_record_which_then_does_not_differ(capsys, tmp_path):
    file = tmp_path / "folder" / "here.json"
    assert call(capsys, "--out", file) == (0, f"written to {file}\n", "")
    assert RunRecord.load(file).versions["torch"] == torch.__version__
    code, out, _ = call(capsys, file)
    assert (code, out.splitlines()[-1]) == (0, "no differences")


def test_two_records_that_differ(capsys, tmp_path, here):
    here.save(tmp_path / "a.json")
    changed(here, "versions", torch="2.12.0").save(tmp_path / "b.json")
    code, out, _ = call(capsys, tmp_path / "a.json", tmp_path / "b.json")
    assert code == 1
    assert out.splitlines() == [
        f"here: {tmp_path / 'a.json'}; there: {tmp_path / 'b.json'}",
        f"torch is {torch.__version__} here and 2.12.0 there: can change bits "
        "(bits are not promised between releases, nor between builds)",
    ]
    code, out, _ = call(capsys, "--json", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 1
    (difference,) = json.loads(out)
    assert difference["field"] == "versions/torch"
    assert (difference["ours"], difference["theirs"]) == (torch.__version__, "2.12.0")
    assert difference["can_change_bits"] is True
    assert difference["sentence"] == f"torch is {torch.__version__} here and 2.12.0 there: can change bits"


def test_what_cannot_change_bits_is_shown_and_is_no_failure(capsys, tmp_path, here):
    here.save(tmp_path / "a.json")
    changed(here, "hardware", cpu_count=999).save(tmp_path / "b.json")
    code, out, _ = call(capsys, tmp_path / "a.json", tmp_path / "b.json")
    assert code == 0
    assert "999 there: can't change bits" in out


def test_a_record_is_compared_with_this_environment_but_for_what_is_the_runs_own(capsys, tmp_path, here):
    own = changed(changed(here, "seeds", order=3), "flags", deterministic_algorithms="set by the run")
    own.save(tmp_path / "a.json")
    code, out, _ = call(capsys, tmp_path / "a.json")
    assert (code, out.splitlines()[-1]) == (0, "no differences")
    for section, field, value, said in [
        ("versions", "monai", "0.1", "0.1 there: can change bits"),
        ("flags", "num_threads", 999, "999 there: can change bits"),
        ("environment", "MKL_CBWR", "AVX2", "MKL_CBWR is not set here and AVX2 there: can change bits"),
        ("code", "commit", "0" * 40, f"{'0' * 40} there: can change bits"),
    ]:
        changed(here, section, **{field: value}).save(tmp_path / "b.json")
        code, out, _ = call(capsys, tmp_path / "b.json")
        assert code == 1
        assert said in out


def test_code_of_another_repository_is_not_compared_and_that_is_said(capsys, tmp_path, here):
    for repository, said in [
        ("other", "the run's repository 'other'"),
        (None, "the run's code, which was in no repository"),
    ]:
        changed(here, "code", commit="0" * 40, repository=repository).save(tmp_path / "a.json")
        code, out, _ = call(capsys, tmp_path / "a.json")
        assert code == 0
        assert out.splitlines()[2:] == [f"(the code is not compared: this folder is not of {said})", "no differences"]


@pytest.mark.slow
def test_the_command_line_itself(tmp_path, here):
    """In a fresh process: what the shell sees."""
    here.save(tmp_path / "a.json")
    changed(here, "build", mkl="2023.1").save(tmp_path / "b.json")
    answer = subprocess.run(
        [sys.executable, "-m", "repro_callbacks", "record", "a.json", "b.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (1, "")
    assert answer.stdout.splitlines()[1].startswith(f"MKL is {here.build['mkl'] or 'absent'} here and 2023.1 there:")


class Determinism(pl.Callback):
    """Keeps a record as the real callback does, under the same name."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def state_dict(self):
        return {"record": self.record.to_dict()}


class Other(pl.Callback):
    def state_dict(self):
        return {"record": "of another kind"}


def write_checkpoint(folder: Path, *callbacks: pl.Callback) -> Path:
    trainer = pl.Trainer(
        default_root_dir=folder,
        logger=False,
        max_steps=1,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(BoringModel())
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def test_a_checkpoint_is_read_as_a_record(capsys, tmp_path, here):
    checkpoint = write_checkpoint(tmp_path, Other(), Determinism(changed(here, "versions", numpy="1.0")))
    assert command.read(checkpoint).seed == here.seed
    here.save(tmp_path / "a.json")
    code, out, _ = call(capsys, tmp_path / "a.json", checkpoint)
    assert code == 1
    assert "NumPy is" in out
    assert "1.0 there" in out


def test_a_checkpoint_without_a_record_is_said(capsys, tmp_path):
    checkpoint = write_checkpoint(tmp_path, Other())
    code, out, err = call(capsys, checkpoint)
    assert (code, out) == (2, "")
    assert err == (
        f"repro-callbacks record: {checkpoint} holds no run record: "
        "it was not written by a run with the callback Determinism\n"
    )


class Unsafe:
    pass


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_cannot_be_loaded_safely_is_said(capsys, tmp_path, legacy):
    torch.save({"callbacks": {}, "a": Unsafe()}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    code, _, err = call(capsys, tmp_path / "a.ckpt")
    assert code == 2
    assert "a.ckpt can't be loaded with weights_only=True" in err
    assert err.endswith("use the run_record.json beside the run's logs\n")


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "{"), ("a.json", "{}"), ("a.ckpt", "nonsense"), ("a.ckpt", "")]
)
def test_a_file_that_is_no_record_is_named(capsys, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    code, out, err = call(capsys, tmp_path / name)
    assert (code, out) == (2, "")
    assert str(tmp_path / name) in err


def test_a_record_in_a_checkpoint_that_makes_no_sense_is_named(capsys, tmp_path):
    torch.save({"callbacks": {"Determinism": {"record": {"schema": "x"}}}}, tmp_path / "a.ckpt")
    code, _, err = call(capsys, tmp_path / "a.ckpt")
    assert code == 2
    assert f"the record in {tmp_path / 'a.ckpt'} can't be read: field 'schema' of a run record is int" in err


def test_a_missing_file_and_wrong_arguments(capsys, tmp_path, here):
    assert call(capsys, tmp_path / "absent.json")[0] == 2
    here.save(tmp_path / "a.json")
    code, _, err = call(capsys, *[tmp_path / "a.json"] * 3)
    assert (code, err) == (2, "repro-callbacks record: two records at most\n")
    code, _, err = call(capsys, tmp_path / "a.json", "--out", tmp_path / "b.json")
    assert code == 2
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "folder").mkdir()
    code, _, err = call(capsys, "--out", tmp_path / "folder")
    assert code == 2
    assert "folder can't be written" in err
