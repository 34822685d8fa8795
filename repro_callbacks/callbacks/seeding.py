"""Which seed a run has: the one given, else the one that was seeded with before, else one that is drawn."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Mapping
from typing import Any

from repro_callbacks import determinism, keys
from repro_callbacks.callbacks.settings import Settings

_DRAWN = "REPRO_CALLBACKS_DRAWN_SEED"
"""Hands a drawn seed to the processes that Lightning starts for the other ranks."""


class Seeding:
    """The base seed of a callback and those of its purposes.

    Args:
        seed: 0 to 2³²-1, or None: to be found or drawn when a run begins.
        seeds: Another seed for some purposes.
    """

    def __init__(self, seed: int | None, seeds: Mapping[str, int] | None) -> None:
        self.given = None if seed is None else keys.check_seed(seed)
        self.given_seeds = dict(seeds or {})
        keys.check_seeds(0, self.given_seeds)
        self.seed = self.given
        self.drawn = False
        self._draw = _draw() if seed is None else 0
        self._found: tuple[int, str] | None = None
        self._seeded: str | None = None

    @property
    def known(self) -> int:
        """The seed, once it is known."""
        if self.seed is None:
            raise RuntimeError("the seed is not known before the run begins")
        return self.seed

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each purpose, once it is known."""
        return keys.check_seeds(self.known, self.given_seeds)

    def of(self, purpose: str) -> int:
        """The seed of one purpose, once it is known."""
        return self.given_seeds.get(purpose, self.known)

    def resolve(self, trainer: Any) -> None:
        """Find or draw the seed, and say where it comes from."""
        if self.given is not None:
            return
        found = determinism.known_seed() or self._found
        if found is not None:
            self.seed, source = found
            below = Settings.from_environment(os.environ)
            if below is not None and source == determinism.LIGHTNINGS and self.seed == below.start_seed:
                source = "repro-callbacks run"  # which hands its seed on as seed_everything does
            self.drawn = False
            _say(trainer, f"Determinism: seed {self.seed}, from {source}")
            return
        self.seed, self.drawn = self._draw, True
        _say(trainer, f"Determinism: drew seed {self.seed}; give Determinism(seed={self.seed}) to repeat this run")

    def seeded(self) -> str | None:
        """Say what has seeded this process, or the one that started it, before now; None if nothing has."""
        return determinism.seeded() or self._seeded

    def __getstate__(self) -> dict[str, Any]:
        # A process that is spawned for a rank starts with nothing of what was seeded here.
        return {**self.__dict__, "_found": determinism.known_seed() or self._found, "_seeded": self.seeded()}

    def agree(self, trainer: Any) -> None:
        """Let every rank have the seed of rank 0."""
        if not self.drawn or trainer.world_size == 1:
            return
        agreed = trainer.strategy.broadcast(self.seed)
        if agreed != self.seed:
            warnings.warn(
                f"rank {trainer.global_rank} had drawn another seed than rank 0 and takes rank 0's, {agreed}; what "
                "DataModule.setup drew before was not the same on each rank. Give Determinism a seed.",
                stacklevel=2,
            )
        self.seed = agreed


def _draw() -> int:
    # Lightning starts the other ranks before any hook runs: so the seed is drawn, and handed on, at once.
    if "LOCAL_RANK" not in os.environ or _DRAWN not in os.environ:
        os.environ[_DRAWN] = str(secrets.randbelow(keys.MAX_SEED + 1))
    return int(os.environ[_DRAWN])


def _say(trainer: Any, message: str) -> None:
    if trainer.is_global_zero:
        print(message, flush=True)
