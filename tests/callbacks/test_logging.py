import importlib
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from repro_callbacks import RunRecord
from repro_callbacks.callbacks import logging as room
from repro_callbacks.callbacks.base import Callback, namespace_of
from tests.callbacks.logged import (
    NAMESPACES,
    OURS,
    RECORD,
    USERS,
    Logging,
    fit,
    hparams_tab,
    make_datamodule,
    make_module,
    text_tab,
)


@pytest.fixture(params=NAMESPACES)
def pl(request):
    return importlib.import_module(request.param)


def test_tensorboard_shows_the_users_values_and_ours_in_one_tab(pl, tmp_path):
    trainer = fit(pl, tmp_path, pl.loggers.TensorBoardLogger(tmp_path))
    tab = hparams_tab(trainer.logger.log_dir)
    assert USERS.items() | OURS.items() <= tab.items()
    assert tab["repro/flags/cudnn_benchmark"] == 0
    assert "repro/versions/cuda" not in tab
    written = yaml.safe_load(Path(trainer.logger.log_dir, "hparams.yaml").read_text())
    assert USERS.items() | OURS.items() <= written.items()
    text = text_tab(trainer.logger.log_dir)
    assert "| repro/versions/torch | 2.13.0 |" in text
    assert "| repro/flags/note | a&#124;b |" in text


def test_two_calls_would_hide_the_users_values_in_tensorboard(tmp_path):
    """The negative control: ours alone, and Lightning's call after it."""
    pl = importlib.import_module("lightning.pytorch")

    class Naive(Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.logger.log_hyperparams({"repro/seed": 3407})

    trainer = fit(pl, tmp_path, pl.loggers.TensorBoardLogger(tmp_path), callbacks=[Naive()])
    assert hparams_tab(trainer.logger.log_dir) == {"repro/seed": 3407}


def test_ours_are_in_the_tab_when_the_user_logs_nothing(pl, tmp_path):
    module = make_module(pl, logger=False)  # save_hyperparameters(logger=False): theirs must not be logged
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        logger=logger,
        max_epochs=2,
        callbacks=[Logging()],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(torch.zeros(4, 2)))
    tab = hparams_tab(logger.log_dir)
    assert OURS.items() <= tab.items()
    assert all(name.startswith("repro/") for name in tab)
    assert OURS.items() <= yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text()).items()


@pytest.mark.parametrize("hook", ["before", "on_fit_start", "on_train_start"])
def test_what_the_user_logs_by_hand_stays_in_the_tab(pl, tmp_path, hook):
    module = make_module(pl, save=False, by_hand=hook)
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    if hook == "before":
        logger.log_hyperparams({"by_hand": 1})
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        logger=logger,
        max_epochs=1,
        callbacks=[Logging()],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(torch.zeros(4, 2)))
    assert hparams_tab(logger.log_dir) == {"by_hand": 1}
    assert "| repro/seed | 3407 |" in text_tab(logger.log_dir)
    assert yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())["repro/seed"] == 3407


def test_csv_keeps_all_in_hparams_yaml(pl, tmp_path):
    trainer = fit(pl, tmp_path, pl.loggers.CSVLogger(tmp_path))
    written = yaml.safe_load(Path(trainer.logger.log_dir, "hparams.yaml").read_text())
    assert USERS.items() | OURS.items() <= written.items()


def test_without_a_logger_the_file_is_in_the_root(pl, tmp_path):
    fit(pl, tmp_path, logger=False)
    assert RunRecord.load(tmp_path / "run_record.json") == RECORD


def test_fast_dev_run_writes_nothing(pl, tmp_path):
    fit(pl, tmp_path, pl.loggers.CSVLogger(tmp_path), fast_dev_run=True)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger"])
def test_the_file_lies_beside_the_logs(pl, tmp_path, kind):
    trainer = fit(pl, tmp_path, getattr(pl.loggers, kind)(tmp_path))
    assert RunRecord.load(Path(trainer.logger.log_dir, "run_record.json")) == RECORD


def test_a_logger_that_refuses_is_named_in_one_warning_and_costs_nothing_else(pl, tmp_path):
    class Refusing(pl.loggers.CSVLogger):
        def log_hyperparams(self, params=None):
            if params and any(name.startswith("repro/") for name in params):
                raise RuntimeError("no such thing")

    class AlsoRefusing(Refusing):
        pass

    csv = pl.loggers.CSVLogger(tmp_path / "good")
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        logger=[Refusing(tmp_path / "bad"), csv, AlsoRefusing(tmp_path / "worse")],
        max_epochs=1,
        callbacks=[Logging()],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with pytest.warns(UserWarning, match="run record could not be logged") as caught:
        trainer.fit(make_module(pl), datamodule=make_datamodule(pl))
    (said,) = [str(item.message) for item in caught if "run record" in str(item.message)]
    assert said.startswith(
        "the run record could not be logged to Refusing (RuntimeError: no such thing) and "
        "AlsoRefusing (RuntimeError: no such thing); it is kept in "
    )
    assert said.endswith("run_record.json")
    assert RunRecord.load(said.rpartition(" ")[2]) == RECORD
    assert yaml.safe_load(Path(csv.log_dir, "hparams.yaml").read_text())["repro/seed"] == 3407


def test_a_logger_that_keeps_only_its_first_call_still_gets_the_users_values(pl, tmp_path):
    class First(pl.loggers.CSVLogger):
        kept = None

        def log_hyperparams(self, params=None):
            self.kept = self.kept or dict(params)

    trainer = fit(pl, tmp_path, First(tmp_path))
    assert USERS.items() | OURS.items() <= trainer.logger.kept.items()


def test_only_the_first_process_logs(tmp_path):
    pl = importlib.import_module("lightning.pytorch")
    trainer = pl.Trainer(default_root_dir=tmp_path, logger=pl.loggers.CSVLogger(tmp_path), accelerator="cpu")
    trainer.strategy.__class__ = type("Second", (type(trainer.strategy),), {"is_global_zero": False})
    assert room.log_record(trainer, RECORD, make_module(pl)) == []
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
def test_with_two_processes_all_is_logged_once(pl, tmp_path):
    loggers = [pl.loggers.CSVLogger(tmp_path / "csv"), pl.loggers.TensorBoardLogger(tmp_path / "tensorboard")]
    fit(pl, tmp_path, loggers, strategy="ddp_fork", devices=2)
    assert [path.name for path in tmp_path.rglob("run_record*")] == ["run_record.json"]
    assert OURS.items() <= yaml.safe_load(next(tmp_path.rglob("csv/**/hparams.yaml")).read_text()).items()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    assert USERS.items() | OURS.items() <= hparams_tab(str(events.parent)).items()


def test_lightning_still_keeps_whether_hyperparameters_are_logged_where_we_read_it(pl):
    """A private name: if a new version moves it, this fails."""
    assert make_module(pl)._log_hyperparams is True
    assert make_module(pl, logger=False)._log_hyperparams is False
    assert make_module(pl, save=False)._log_hyperparams is False
    assert make_datamodule(pl)._log_hyperparams is True


def test_the_test_trainers_are_of_both_namespaces(pl, tmp_path):
    assert namespace_of(fit(pl, tmp_path, logger=False)) is pl
