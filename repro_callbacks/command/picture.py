"""A picture of what is an image in a sample: one row each, with the three middle slices of a volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

SMALLEST: Final = 8
"""Fewer pixels than this along a side are no image, but a table of numbers."""

Plane = npt.NDArray[Any]


def planes(value: object) -> list[tuple[str, Plane]]:
    """Return what to show of a tensor or an array: nothing, if it is no image.

    Args:
        value: ``(H, W)``, ``(C, H, W)`` with at most 4 channels, a volume ``(D, H, W)`` or ``(C, D, H, W)``. A picture
            of 3 channels is shown in colour, of the others the first channel.

    Returns:
        Titles and planes, ``(H, W)`` or ``(H, W, 3)``.

    Example:
        >>> [title for title, _ in planes(torch.zeros(1, 16, 32, 32))]
        ['slice 8 of axis 0', 'slice 16 of axis 1', 'slice 16 of axis 2']
        >>> planes(torch.zeros(3))
        []
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().as_subclass(torch.Tensor)
        value = (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return []
    image: Plane = value
    if image.ndim == 4 or (image.ndim == 3 and image.shape[0] <= 4):
        if image.ndim == 3 and image.shape[0] == 3 and min(image.shape[1:]) >= SMALLEST:
            return [("", _unit(np.moveaxis(image, 0, -1)))]
        image = image[0]
    if image.ndim not in (2, 3) or min(image.shape) < SMALLEST:
        return []
    if image.ndim == 2:
        return [("", image)]
    return [(f"slice {size // 2} of axis {axis}", image.take(size // 2, axis)) for axis, size in enumerate(image.shape)]


def write(named: Mapping[str, object], path: Path) -> None:
    """Write a picture of the images among named values.

    Raises:
        TypeError: If none of them is an image.
        ImportError: If matplotlib is not installed.
    """
    rows = {name: found for name, value in named.items() if (found := planes(value))}
    if not rows:
        raise TypeError("there is no image in this sample: a tensor or array with two or three sides of 8 or more")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a picture needs matplotlib; install it with: pip install matplotlib") from None
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(3.2 * columns, 3.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, found) in zip(axes, rows.items(), strict=True):
        for axis in row:
            axis.set_axis_off()
        values = np.concatenate([plane.ravel() for _, plane in found])
        for axis, (title, plane) in zip(row, found, strict=False):
            axis.imshow(plane, cmap="gray", vmin=values.min(), vmax=values.max(), interpolation="nearest")
            axis.set_title(f"{name} {title}".strip(), fontsize=9)
    figure.savefig(path, dpi=120)


def _unit(picture: Plane) -> Plane:
    """Scale a picture in colour to 0 to 1, as it is shown."""
    low, high = picture.min(), picture.max()
    return (picture - low) / (high - low) if high > low else picture * 0.0
