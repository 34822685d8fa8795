"""A 3D segmentation of synthetic spheres in the manner of MONAI's tutorials, with Lightning. Knows nothing of us."""

import lightning as L
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, create_test_image_3d, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    ScaleIntensityd,
)
from monai.utils import set_determinism


class Segmenter(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = UNet(3, 1, 1, channels=(4, 8), strides=(2,), num_res_units=1, dropout=0.1)
        self.loss = DiceLoss(sigmoid=True)
        self.metric = DiceMetric(include_background=True)
        self.discrete = Compose([AsDiscrete(threshold=0.0)])

    def prepare_data(self) -> None:
        pass

    def setup(self, stage: str) -> None:
        np.random.seed(0)
        images = [create_test_image_3d(32, 32, 32, num_objs=4, rad_max=8, num_seg_classes=1) for _ in range(6)]
        files = [{"image": image, "label": label} for image, label in images]
        keys = ["image", "label"]
        always = [EnsureChannelFirstd(keys, channel_dim="no_channel"), ScaleIntensityd("image")]
        random = [
            RandCropByPosNegLabeld(keys, "label", spatial_size=(16, 16, 16), num_samples=2),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandRotate90d(keys, prob=0.5, spatial_axes=(0, 2)),
            RandGaussianNoised("image", prob=0.5),
        ]
        self.train_set = CacheDataset(files[:4], Compose([*always, *random]), progress=False)
        self.val_set = CacheDataset(files[4:], Compose(always), progress=False)

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=2, shuffle=True, num_workers=2)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=1)

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.net(batch["image"]), batch["label"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        outputs = sliding_window_inference(batch["image"], (16, 16, 16), 4, self.net)
        self.metric([self.discrete(one) for one in decollate_batch(outputs)], decollate_batch(batch["label"]))

    def on_validation_epoch_end(self) -> None:
        self.log("val_dice", self.metric.aggregate().item())
        self.metric.reset()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def main() -> None:
    set_determinism(seed=0)
    model = Segmenter()
    checkpoints = L.pytorch.callbacks.ModelCheckpoint(monitor="val_dice", mode="max")
    trainer = L.Trainer(max_epochs=4, accelerator="cpu", callbacks=[checkpoints], enable_progress_bar=False)
    trainer.fit(model)


if __name__ == "__main__":
    main()
