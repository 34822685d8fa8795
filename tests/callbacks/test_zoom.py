"""The zoom through a Trainer: a step in the middle, from a checkpoint, in two settings."""

import logging

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from repro_callbacks import Determinism, Fingerprint, compare
from repro_callbacks.callbacks.zoom import zoom_fit


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.dropout = nn.Dropout(0.4)
        self.head = nn.Linear(16 * 64, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.dropout(torch.relu(self.stem(batch[0]))).flatten(1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Fault(L.Callback):
    """From one step on, convolutions take another kernel."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.backends.mkldnn.set_flags((trainer.current_epoch, batch_idx) < (1, 2))

    def on_train_end(self, trainer, pl_module):
        torch.backends.mkldnn.set_flags(True)

    def on_exception(self, trainer, pl_module, exception):
        torch.backends.mkldnn.set_flags(True)


class Save(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 0):
            trainer.save_checkpoint(self.path)


def fit(*callbacks, ckpt_path=None):
    torch.manual_seed(0)
    module, data = Module(), TensorDataset(torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    trainer = L.Trainer(
        callbacks=[Determinism(5, deterministic=False, log=False), *callbacks],
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, 4, shuffle=True), ckpt_path=ckpt_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model's weights were made before")
def test_from_the_divergence_to_the_operator(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    fit(Fingerprint(tmp_path / "a"), Save(checkpoint))
    fit(Fingerprint(tmp_path / "b"), Fault())
    found = compare(tmp_path / "a", tmp_path / "b").divergence
    assert (found.cause, found.epoch, found.batch) == ("forward", 1, 2)
    operator = zoom_fit(
        lambda record: fit(record, ckpt_path=checkpoint),
        lambda record: fit(Fault(), record, ckpt_path=checkpoint),
        epoch=found.epoch,
        batch=found.batch,
    )
    assert operator.kind == "operator"
    assert operator.a.name == "aten.convolution.default"
    assert operator.a.module == "stem"
    assert operator.distance.ulps >= 1
    # The step before is the same in both: so the checkpoint brought the same start, batch and dropout.
    assert zoom_fit(
        lambda record: fit(record, ckpt_path=checkpoint),
        lambda record: fit(Fault(), record),
        epoch=1,
        batch=1,
    ) is None  # fmt: skip


@pytest.mark.filterwarnings("ignore:the model's weights were made before")
def test_a_step_that_is_never_reached(tmp_path):
    with pytest.raises(ValueError, match="epoch 9, batch 0"):
        zoom_fit(fit, fit, epoch=9, batch=0)
