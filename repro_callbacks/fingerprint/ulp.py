"""How far two tensors are apart, element by element, in units in the last place."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Distance:
    """How far the outputs of an operator are apart.

    Attributes:
        differing: How many elements differ.
        elements: How many there are.
        ulps: The largest distance; infinite where one is NaN alone, or where shape or dtype differ.
    """

    differing: int = 0
    elements: int = 0
    ulps: float = 0.0


def measure(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> Distance:
    """Return how far the outputs of one operator are apart in two runs."""
    differing, elements, most = 0, 0, 0.0
    for one, two in zip(ours, theirs, strict=False):
        elements += one.numel()
        if one.shape != two.shape or one.dtype != two.dtype:
            return Distance(elements, elements, float("inf"))
        values = [torch.view_as_real(own.cpu()) if own.is_complex() else own.cpu() for own in (one, two)]
        distance = ulps(*values)
        differing += int((distance > 0).sum())
        most = max(most, float(distance.max()) if distance.numel() else 0.0)
    return Distance(differing, elements, most)


def ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the distance of each pair of numbers in units in the last place, as float64 of the same shape.

    Neighbouring numbers have distance 1; -0.0 and 0.0 as well, so that a difference in bits is never 0. Infinite where
    only one of them is NaN. Of integers and bools it is the difference.

    Args:
        a: Of any dtype.
        b: Of the same shape and dtype.

    Example:
        >>> ulps(torch.tensor([1.0, 0.0]), torch.tensor([1.0000001, -0.0]))
        tensor([1., 1.], dtype=torch.float64)
    """
    if not a.is_floating_point():
        return (a.double() - b.double()).abs()
    raw = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    lowest = torch.iinfo(raw).min
    # Sign and magnitude, put on one line: the negative numbers, which count downwards, are turned round.
    bits = [own.contiguous().view(raw).long() for own in (a, b)]
    ours, theirs = (torch.where(own < 0, lowest - own - 1, own) for own in bits)
    same_sign = (ours < 0) == (theirs < 0)
    exact = torch.where(same_sign, ours - theirs, 0).abs().double()
    distance = torch.where(same_sign, exact, (ours.double() - theirs.double()).abs())
    distance = torch.where(a.isnan() != b.isnan(), float("inf"), distance)
    return torch.where(a.isnan() & b.isnan(), (bits[0] != bits[1]).double(), distance)
