"""A Lightning training with MONAI transforms and loader workers. Its imports take seconds."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import lightning
import monai
import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

from tests.study.fits import digest


class Net(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = monai.networks.nets.UNet(2, 1, 2, (4, 8), (2,), dropout=0.2)
        self.loss = monai.losses.DiceCELoss(softmax=True, to_onehot_y=True)

    def training_step(self, batch: Any, index: int) -> Any:
        return self.loss(self.net(batch["x"]), batch["y"])

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(self.net(batch["x"]), batch["y"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)


def train(seed: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    monai.utils.set_determinism(seed)
    transform = Compose([RandFlipd(["x", "y"], prob=0.5), RandGaussianNoised("x", prob=1.0)])
    items = [{"x": torch.rand(1, 16, 16), "y": torch.randint(0, 2, (1, 16, 16)).float()} for _ in range(8)]
    data = monai.data.Dataset(items, transform)
    net = Net()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", enable_progress_bar=False, default_root_dir=tempfile.mkdtemp()
    )
    trainer.fit(
        net, monai.data.DataLoader(data, 1, batch_size=4, shuffle=True), monai.data.DataLoader(data, batch_size=8)
    )
    return {"val_loss": trainer.callback_metrics["val_loss"], "weights": digest(net)}
