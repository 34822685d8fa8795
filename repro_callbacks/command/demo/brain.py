"""The training of the demo and of most examples: brain tissue on the MNI152 template, small enough for two cores.

The volumes come with nilearn (``nilearn.datasets.load_mni152_template`` and its two tissue maps), so nothing is
downloaded: the T1-weighted average of 152 healthy brains, without its skull, and maps of grey and of white matter.
nilearn is under the BSD licence; its own description of the template (``icbm_152_template``) gives the template's
licence as "unknown". The volumes are not copied into this package. References: Fonov et al., NeuroImage 2011 and 2009.

There is only one brain here, so it is split in space: the network trains on the back and is validated on the front.
Not on the left and the right half: this template is symmetric to the last bit, one half is the other's mirror image.
Dice on the front of the same average brain says that a training worked, and nothing about patients.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureTyped,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandSpatialCropd,
)
from torch.nn.functional import avg_pool3d

TISSUES = ("background", "grey matter", "white matter")

BACK, FRONT = slice(0, 52), slice(54, 94)
"""Where the brain is cut, along the axis from back to front, in voxels of 2 mm."""

Volume = dict[str, torch.Tensor]
"""``image`` and ``label``, each float32 of shape (1, x, y, z), 2 mm voxels."""


def load_brain() -> tuple[Volume, Volume]:
    """Load the template at 2 mm and split it.

    Returns:
        The back of the brain, to train on, and its front, to validate on, with 4 mm between them that belong to
        neither. Labels are 0, 1, 2 for :data:`TISSUES`: whichever map is largest, background being what is left.
    """
    from nilearn import datasets

    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    volumes = [load(resolution=1).get_fdata(dtype=np.float32) for load in loaders]
    image, grey, white = avg_pool3d(torch.from_numpy(np.stack(volumes)), 2)[:, 11:87, 12:106, 0:80]  # the brain's box
    label = torch.stack([1 - grey - white, grey, white]).argmax(0).float()
    back, front = ({"image": image[None, :, part], "label": label[None, :, part]} for part in (BACK, FRONT))
    return back, front


def train_transforms(patch: int = 32) -> Compose:
    """Random crop, flip, rotation and scale, noise, contrast and brightness; the label becomes one-hot.

    One-hot targets, because ``DiceCELoss(to_onehot_y=True)`` uses an operator that is not deterministic on CUDA.
    """
    both = ["image", "label"]
    return Compose(
        [
            RandSpatialCropd(both, roi_size=(patch,) * 3, random_size=False),
            RandFlipd(both, prob=0.5, spatial_axis=0),
            RandAffined(
                both,
                prob=0.5,
                rotate_range=(0.2,) * 3,
                scale_range=(0.1,) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandGaussianNoised("image", prob=0.5, std=0.05),
            RandAdjustContrastd("image", prob=0.5, gamma=(0.7, 1.4)),
            RandScaleIntensityd("image", factors=0.2, prob=0.5),
            AsDiscreted("label", to_onehot=len(TISSUES)),
            EnsureTyped(both, track_meta=False),  # plain tensors: nothing reads the affine, and tracking it takes time
        ]
    )


def build_network(dropout: float = 0.1) -> UNet:
    """Build a 3D UNet of 35 thousand parameters: one channel in, a channel for each tissue out.

    Batch normalisation rather than MONAI's default: a patch and the whole front hold different shares of background,
    and normalising each image by itself would carry that into the result.
    """
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(TISSUES),
        channels=(8, 16, 32),
        strides=(2, 2),
        num_res_units=1,
        norm="batch",
        dropout=dropout,
    )


def one_hot_prediction(logits: torch.Tensor) -> torch.Tensor:
    """Give the most likely tissue of each voxel as one-hot floats, from logits of shape (batch, 3, x, y, z)."""
    label = logits.argmax(1, keepdim=True)
    return torch.cat([label == tissue for tissue in range(len(TISSUES))], 1).float()


class BrainPatches(L.LightningDataModule):  # type: ignore[misc]
    """Random patches of the back of the brain for training, the whole front for validation.

    Args:
        patches: Training patches in an epoch.
        batch_size: Patches in a batch.
        num_workers: Worker processes of the training loader.
        patch: Edge of a patch in voxels of 2 mm, a multiple of 4.
    """

    def __init__(self, patches: int = 64, batch_size: int = 2, num_workers: int = 2, patch: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Load the volumes."""
        self.back, self.front = load_brain()

    def train_dataloader(self) -> DataLoader:
        """Give MONAI's own loader, as MONAI's tutorials use it: it seeds its transforms in every worker."""
        wanted = self.hparams
        dataset = Dataset([self.back] * wanted["patches"], train_transforms(wanted["patch"]))
        return DataLoader(dataset, wanted["num_workers"], batch_size=wanted["batch_size"], shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Give the front as one sample."""
        transform = Compose(
            [AsDiscreted("label", to_onehot=len(TISSUES)), EnsureTyped(["image", "label"], track_meta=False)]
        )
        return DataLoader(Dataset([self.front], transform), batch_size=1)


class BrainSegmenter(L.LightningModule):  # type: ignore[misc]
    """A small 3D UNet with dropout, Dice and cross-entropy, AdamW and a one-cycle schedule.

    Args:
        learning_rate: The peak of the schedule.
        dropout: Probability of dropout in the UNet.
    """

    def __init__(self, learning_rate: float = 1e-2, dropout: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = build_network(dropout)
        self.loss = DiceCELoss(softmax=True)
        self.dice = DiceMetric(include_background=False, reduction="mean_batch")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Give logits of shape (batch, 3, x, y, z) for images of shape (batch, 1, x, y, z)."""
        return self.network(image)  # type: ignore[no-any-return]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        """Give the loss of a batch of patches."""
        loss = self.loss(self(batch["image"]), batch["label"])
        self.log("loss", loss, prog_bar=True)
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Measure Dice on the front of the brain."""
        self.dice(one_hot_prediction(self(batch["image"])), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Log Dice of each tissue."""
        grey, white = self.dice.aggregate().tolist()
        self.dice.reset()
        self.log_dict({"dice_grey": grey, "dice_white": white}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule over the whole training."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"])
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams["learning_rate"], total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
