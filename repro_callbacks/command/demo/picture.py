"""Pictures of brain slices: image, label, prediction, and where the brain is split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from repro_callbacks.command.demo.brain import BACK, FRONT, TISSUES, Volume

_COLOURS = np.array([[0, 0, 0], [224, 139, 62], [240, 234, 222]], dtype=np.uint8)  # of TISSUES


def draw_prediction(model: torch.nn.Module, back: Volume, front: Volume, position: int = 14) -> Figure:
    """Draw where the brain is split, and one slice of the front: image, label, prediction and where they differ.

    Args:
        model: Gives logits of shape (1, 3, x, y, z) for an image of shape (1, 1, x, y, z).
        back: The part that was trained on.
        front: The part that was not.
        position: Of the slice, in voxels from the cut towards the front.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        device = next(model.parameters()).device
        predicted = model(front["image"][None].to(device)).argmax(1)[0].cpu().numpy()
    model.train(was_training)
    image, label = (front[name][0].numpy()[:, position] for name in ("image", "label"))
    predicted = predicted[:, position]

    figure = Figure(figsize=(14, 3.6), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[94 / 76, 1, 1, 1, 1])
    _draw_split(axes[0], back, front, position)
    _draw(axes[1], image, "slice")
    _draw(axes[2], _COLOURS[label.astype(int)], "label")
    _draw(axes[3], _COLOURS[predicted], "prediction")
    _draw(axes[4], np.where((predicted != label)[..., None], [200, 40, 40], _COLOURS[label.astype(int)] // 3), "wrong")
    for tissue in (1, 2):
        axes[2].plot([], [], "s", color=_COLOURS[tissue] / 255, label=TISSUES[tissue])
    axes[2].legend(loc="lower center", ncols=2, fontsize=7, facecolor="black", labelcolor="white", framealpha=1)
    return figure


def draw_samples(samples: list[Volume], titles: list[str]) -> Figure:
    """Draw the middle slice of training samples: the image, and below it the label.

    Args:
        samples: ``image`` of shape (1, x, y, z) and ``label`` one-hot of shape (3, x, y, z).
        titles: One for each sample.
    """
    figure = Figure(figsize=(1.9 * len(samples), 4.1), layout="constrained")
    axes = figure.subplots(2, len(samples), squeeze=False)
    for column, (sample, title) in enumerate(zip(samples, titles, strict=True)):
        middle = sample["image"].shape[2] // 2
        _draw(axes[0, column], np.asarray(sample["image"])[0, :, middle], title)
        _draw(axes[1, column], _COLOURS[np.asarray(sample["label"])[:, :, middle].argmax(0)], "")
    return figure


def _draw_split(axis: Any, back: Volume, front: Volume, position: int) -> None:
    gap = np.full((1, back["image"].shape[1], FRONT.start - BACK.stop, back["image"].shape[3]), np.nan, np.float32)
    whole = np.concatenate([back["image"].numpy(), gap, front["image"].numpy()], axis=2)[0]
    _draw(axis, whole[whole.shape[0] // 2 + 4], "")
    axis.set_title("trained on", loc="left", fontsize=9)
    axis.set_title("validated on", loc="right", fontsize=9)
    axis.axvspan(BACK.stop - 0.5, FRONT.start - 0.5, color="tab:red")
    axis.axvline(FRONT.start + position, color="tab:cyan", linewidth=1)


def _draw(axis: Any, values: Any, title: str) -> None:
    colours = {"cmap": "gray", "vmin": 0, "vmax": 1} if values.ndim == 2 else {}
    axis.imshow(values.swapaxes(0, 1), origin="lower", interpolation="nearest", **colours)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
