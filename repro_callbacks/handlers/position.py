"""Where an engine is in its data.

Ignite counts iterations. One of its epochs need not be one pass over the data: with ``epoch_length`` it is shorter or
longer, and an iterator that is not used up is used on in the next epoch. So a pass is what is counted here: it begins
where Ignite makes a new iterator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Position:
    """Which pass over which loader an engine is in.

    Attributes:
        loader: How often the loader was replaced by ``Engine.set_data``.
        number: How many passes came before this one.
        start: How many iterations the engine had done when this pass began.
    """

    loader: int = 0
    number: int = 0
    start: int = 0

    def begin_pass(self, iteration: int) -> None:
        """Begin a new pass, unless none of the batches of this one was handed out yet.

        Example:
            >>> position = Position()
            >>> position.begin_pass(6); position.begin_pass(6); position
            Position(loader=0, number=1, start=6)
        """
        if iteration > self.start:
            self.number, self.start = self.number + 1, iteration

    def suppose(self, iteration: int, length: int | None) -> None:
        """Suppose that all passes before this iteration were whole ones, of ``length`` batches each.

        Example:
            >>> position = Position()
            >>> position.suppose(20, length=6); position
            Position(loader=0, number=3, start=18)
        """
        if length:
            self.number, rest = divmod(iteration, length)
            self.start = iteration - rest

    def state_dict(self) -> dict[str, int]:
        """Return plain values, as a checkpoint holds them."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Position:
        """Make a position from what :meth:`state_dict` returned."""
        return cls(**{name: int(state[name]) for name in ("loader", "number", "start")})
