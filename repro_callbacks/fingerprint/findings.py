"""What a comparison hands on: where two runs of a rank differ, and what was made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from repro_callbacks.fingerprint.causes import STAGES
from repro_callbacks.fingerprint.differences import FirstDifference
from repro_callbacks.fingerprint.runs import position_of
from repro_callbacks.fingerprint.store import Position

Line: TypeAlias = dict[str, Any]


class Place(NamedTuple):
    """A step of a rank: epoch and batch from 0, and how many times an optimizer has stepped at its end."""

    epoch: int | None = None
    batch: int | None = None
    step: int | None = None
    rank: int | None = None

    def __str__(self) -> str:
        return f"Epoch {self.epoch}, batch {self.batch} (optimizer step {self.step}), rank {self.rank}"


@dataclass(frozen=True)
class Finding:
    """Where two runs first differ in one rank: in a training step, or in a validation before it.

    Attributes:
        step: The first step that differs.
        validation: The two lines of a validation before it that differs, and the metric.
    """

    rank: int
    step: FirstDifference | None
    validation: tuple[Line, Line, str] | None

    @property
    def position(self) -> Position:
        """Epoch and batch."""
        if self.validation is not None:
            return position_of(self.validation[0])
        assert self.step is not None
        return self.step.position

    @property
    def order(self) -> tuple[int, int, int, int]:
        """For sorting: epoch, batch, place in the course of a step, rank."""
        stages = list(STAGES)
        if self.validation is not None:
            stage = len(stages)
        else:
            stage = stages.index(self.step.fields[0]) if self.step is not None and self.step.fields else -1
        return *self.position, stage, self.rank


@dataclass
class Diagnosis:
    """A class of causes, and what to say about it. Where ``likely`` or ``remedy`` is empty, that of the class holds."""

    cause: str
    sentence: str
    place: Place = field(default_factory=Place)
    fields: tuple[str, ...] = ()
    details: list[str] = field(default_factory=list)
    likely: str = ""
    remedy: str = ""


def short(values: Sequence[Any]) -> str:
    """Return a list in words, cut after some members."""
    shown = ", ".join(map(str, values[:6]))
    return shown if len(values) <= 6 else f"{shown} and {len(values) - 6} more"
