"""Pictures of brain slices: image, label, prediction, and where the brain is split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from repro_callbacks.command.demo.brain import BACK, FRONT, TISSUES, Volume

Labels = np.ndarray[Any, Any]

_COLOURS = np.array([[0, 0, 0], [224, 139, 62], [240, 234, 222]], dtype=np.uint8)  # of TISSUES


def draw_prediction(model: torch.nn.Module, back: Volume, front: Volume, position: int = 14) -> Figure:
    """Draw where the brain is split, and one slice of the front: image, label, prediction and where they differ.

    Args:
        model: Gives logits of shape (1, 3, x, y, z) for an image of shape (1, 1, x, y, z).
        back: The part that was trained on.
        front: The part that was not.
        position: Of the slice, in voxels from the cut towards the front.
    """
    image, label = (front[name][0].numpy()[:, position] for name in ("image", "label"))
    predicted = predict(model, front)[:, position]

    figure = Figure(figsize=(14, 3.6), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[94 / 76, 1, 1, 1, 1])
    _draw_split(axes[0], back, front, position)
    _draw(axes[1], image, "slice")
    _draw(axes[2], _coloured(label), "label")
    _draw(axes[3], _coloured(predicted), "prediction")
    _draw(axes[4], _marked(label, predicted != label), "wrong")
    for tissue in (1, 2):
        axes[2].plot([], [], "s", color=_COLOURS[tissue] / 255, label=TISSUES[tissue])
    axes[2].legend(loc="lower center", ncols=2, fontsize=7, facecolor="black", labelcolor="white", framealpha=1)
    return figure


def draw_difference(first: Labels, second: Labels, titles: tuple[str, str], position: int = 14) -> Figure:
    """Draw the same slice of two predictions, and in red where they differ.

    Args:
        first, second: Tissues of shape (x, y, z), as :func:`predict` gives them.
        titles: Of the two.
        position: Of the slice, along the second axis.
    """
    first, second = first[:, position], second[:, position]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    _draw(axes[0], _coloured(first), titles[0])
    _draw(axes[1], _coloured(second), titles[1])
    _draw(axes[2], _marked(first, first != second), "where they differ")
    return figure


def predict(model: torch.nn.Module, volume: Volume) -> Labels:
    """Give the most likely tissue of each voxel, of shape (x, y, z); the model stays in the mode that it is in."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(volume["image"][None].to(next(model.parameters()).device))
    model.train(was_training)
    labels: Labels = logits.argmax(1)[0].cpu().numpy()
    return labels


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
        _draw(axes[1, column], _coloured(np.asarray(sample["label"])[:, :, middle].argmax(0)), "")
    return figure


def _coloured(labels: Labels) -> Labels:
    coloured: Labels = _COLOURS[labels.astype(int)]
    return coloured


def _marked(labels: Labels, where: Labels) -> Labels:
    return np.where(where[..., None], [200, 40, 40], _coloured(labels) // 3)


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
