"""A tiny training that logs its record, and TensorBoard's tabs as its own reader shows them."""

import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader

from repro_callbacks import RunRecord
from repro_callbacks.callbacks import logging as room
from repro_callbacks.callbacks.base import Callback

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
RECORD = RunRecord(
    seed=3407,
    seeds={"order": 1},
    initial_weights="abc",
    flags={"cudnn_benchmark": False, "note": "a|b"},
    versions={"torch": "2.13.0", "cuda": None},
    command=["python", "train.py"],
)


class Logging(Callback):
    """Calls the room as ``Determinism`` does."""

    def __init__(self, record: RunRecord = RECORD) -> None:
        self.record, self.waiting = record, []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.waiting = room.log_record(trainer, self.record, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        room.log_waiting(self.waiting, self.record)
        self.waiting = []


def make_module(pl, *, save: bool = True, logger: bool = True, by_hand: str | None = None):
    class Module(pl.LightningModule):
        def __init__(self, lr: float = 0.125, width: int = 3, record: int = 5) -> None:
            super().__init__()
            if save:
                self.save_hyperparameters(logger=logger)
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def log_by_hand(self, hook: str) -> None:
            if by_hand == hook:
                self.logger.log_hyperparams({"by_hand": 1})

        def on_fit_start(self):
            self.log_by_hand("on_fit_start")

        def on_train_start(self):
            self.log_by_hand("on_train_start")

    return Module()


def make_datamodule(pl):
    class Data(pl.LightningDataModule):
        def __init__(self, patch: int = 96) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self):
            return DataLoader(torch.zeros(4, 2))

    return Data()


def fit(pl, folder, logger, callbacks=None, module=None, **options):
    trainer = pl.Trainer(
        default_root_dir=folder,
        logger=logger,
        max_epochs=2,
        callbacks=[Logging()] if callbacks is None else callbacks,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    module = make_module(pl) if module is None else module
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*run record.*")
        trainer.fit(module, datamodule=make_datamodule(pl))
    return trainer


def hparams_tab(log_dir: str) -> dict[str, Any]:
    """What TensorBoard's HParams tab shows: the first session of the run, as its own reader keeps it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(log_dir).Reload()
    content = events.summary_metadata.get("_hparams_/session_start_info")
    if content is None:
        return {}
    start = HParamsPluginData.FromString(content.plugin_data.content).session_start_info
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def text_tab(log_dir: str) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event,) = EventAccumulator(log_dir).Reload().Tensors("repro/run_record/text_summary")
    return event.tensor_proto.string_val[0].decode()


USERS = {"lr": 0.125, "width": 3, "record": 5, "patch": 96}
OURS = {"repro/seed": 3407, "repro/seeds/order": 1, "repro/initial_weights": "abc", "repro/versions/torch": "2.13.0"}
