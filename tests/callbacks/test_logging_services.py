"""The same with tracking services: MLflow on SQLite, W&B offline, and several loggers at once."""

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from repro_callbacks import RunRecord
from repro_callbacks.callbacks import logging as room
from tests.callbacks.logged import NAMESPACES, OURS, RECORD, USERS, Logging, fit, hparams_tab


@pytest.fixture(params=NAMESPACES)
def pl(request):
    return importlib.import_module(request.param)


def mlflow_logger(pl, tmp_path, **options):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return pl.loggers.MLFlowLogger("test", tracking_uri=uri, artifact_location=str(tmp_path / "artifacts"), **options)


def mlflow_data(tmp_path, run: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(run).data


@pytest.mark.slow
def test_mlflow_keeps_params_and_what_a_resume_changes_in_tags(pl, tmp_path):
    logger = mlflow_logger(pl, tmp_path)
    fit(pl, tmp_path, logger)
    first = mlflow_data(tmp_path, logger.run_id)
    as_text = {name: str(value) for name, value in {**USERS, **OURS}.items()}
    assert as_text.items() <= first.params.items()
    assert not [name for name in first.tags if name.startswith("repro/")]

    changed = RunRecord.from_dict({**RECORD.to_dict(), "versions": {"torch": "2.14.0", "numpy": "2.4.6"}})
    fit(pl, tmp_path, mlflow_logger(pl, tmp_path, run_id=logger.run_id), callbacks=[Logging(changed)])
    second = mlflow_data(tmp_path, logger.run_id)
    assert second.params == {**first.params, "repro/versions/numpy": "2.4.6"}
    assert {name: value for name, value in second.tags.items() if name.startswith("repro/")} == {
        "repro/versions/torch": "2.14.0"
    }


@pytest.mark.slow
def test_mlflow_refuses_a_changed_param(tmp_path):
    """The negative control: why a changed value goes into a tag."""
    from mlflow.exceptions import MlflowException

    pl = importlib.import_module("lightning.pytorch")
    logger = mlflow_logger(pl, tmp_path)
    logger.log_hyperparams({"repro/versions/torch": "2.13.0"})
    with pytest.raises(MlflowException, match="repro/versions/torch"):
        mlflow_logger(pl, tmp_path, run_id=logger.run_id).log_hyperparams({"repro/versions/torch": "2.14.0"})


@pytest.mark.slow
def test_mlflow_takes_brackets_long_values_and_many_fields(pl, tmp_path):
    logger = mlflow_logger(pl, tmp_path)
    words = ["python", "train.py", "x" * 9000]
    record = RunRecord(
        seed=1,
        command=[*words[:2], "y" * 300],
        extra={"model[0]": "a", "long": words[2], **{f"n{number}": number for number in range(250)}},
    )
    fit(pl, tmp_path, logger, callbacks=[Logging(record)])
    data = mlflow_data(tmp_path, logger.run_id)
    assert data.params["repro/extra/model_0_"] == "a"
    assert data.tags["repro/command"] == "python train.py " + "y" * 300
    assert data.tags["repro/extra/long"] == "x" * room.MLFLOW_TAG_LENGTH
    assert sum(name.startswith("repro/extra/n") for name in data.params) == 250


@pytest.mark.slow
def test_wandb_keeps_all_in_its_config_and_takes_changed_values(pl, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    logger = pl.loggers.WandbLogger(project="test", save_dir=str(tmp_path), id="run1")
    try:
        fit(pl, tmp_path, logger)
        changed = RunRecord.from_dict({**RECORD.to_dict(), "versions": {"torch": "2.14.0"}})
        fit(pl, tmp_path, logger, callbacks=[Logging(changed)])
    finally:
        wandb.finish()
        wandb.teardown()  # finish() can return before the file is written; this waits for W&B's own process to end
    config = wandb_config(next(tmp_path.glob("wandb/offline-run-*")))
    assert (USERS.items() | OURS.items()) - {("repro/versions/torch", "2.13.0")} <= config.items()
    assert config["repro/versions/torch"] == "2.14.0"
    assert RunRecord.load(tmp_path / "test" / "run1" / "run_record.json") == RECORD
    assert RunRecord.load(tmp_path / "test" / "run1" / "run_record.1.json") == changed


def wandb_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of an offline run out of its .wandb file: W&B's records in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    content, position, record = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    config: dict[str, Any] = {}
    while position < len(content):
        if (left := 32768 - position % 32768) < 7:  # the end of a block is padded
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            entry, record = wandb_internal_pb2.Record.FromString(record), b""
            updates = [*entry.config.update, *entry.run.config.update]
            config.update({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates})
    return config


@pytest.mark.slow
def test_several_loggers_at_once(pl, tmp_path):
    loggers = [
        pl.loggers.CSVLogger(tmp_path / "csv"),
        pl.loggers.TensorBoardLogger(tmp_path / "tensorboard"),
        mlflow_logger(pl, tmp_path),
    ]
    fit(pl, tmp_path, loggers)
    assert USERS.items() | OURS.items() <= hparams_tab(loggers[1].log_dir).items()
    assert OURS.items() <= yaml.safe_load(Path(loggers[0].log_dir, "hparams.yaml").read_text()).items()
    assert mlflow_data(tmp_path, loggers[2].run_id).params["repro/seed"] == "3407"
    assert [path.parent for path in tmp_path.rglob("run_record*.json")] == [Path(loggers[0].log_dir)]
