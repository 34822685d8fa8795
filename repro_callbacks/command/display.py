"""Shows how far the runs of a verification are: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Any, TextIO

from repro_callbacks.callbacks.settings import PROGRESS


class Display:
    """One line for each run, begun and ended.

    Args:
        stream: Where to write; standard error if ``None``.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._began = 0.0
        self._done: dict[int, int] = {}

    def begin(self, name: str, total: int | None) -> None:
        """Begin a run; ``total`` is how many steps it will take, where that is known."""
        self._began = time.monotonic()
        self._done = {}

    def watch(self, state: Any) -> None:
        """Read how far the run is."""
        try:
            fit, step = map(int, (state / PROGRESS).read_text().split())
        except FileNotFoundError:  # not yet at its first step
            return
        self._done[fit] = step
        self.update(sum(self._done.values()))

    def update(self, step: int) -> None:
        """Show the step."""

    def end(self, name: str, outcome: str) -> None:
        """Show how a run ended."""
        print(f"{name}: {outcome} ({time.monotonic() - self._began:.0f} s)", file=self._stream, flush=True)

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Bars(Display):
    """A bar for each run, on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[outcome]}"),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def begin(self, name: str, total: int | None) -> None:
        """Begin a bar."""
        super().begin(name, total)
        self._task = self._progress.add_task(name, total=total, outcome="")

    def update(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def end(self, name: str, outcome: str) -> None:
        """Complete the bar."""
        done = sum(self._done.values())
        self._progress.update(self._task, total=done or None, completed=done, outcome=outcome)
        self._progress.stop_task(self._task)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Silent(Display):
    """Shows nothing."""

    def end(self, name: str, outcome: str) -> None:
        """Show nothing."""


def choose() -> Display:
    """Return bars on a terminal where rich is installed, else plain lines."""
    return Bars() if sys.stderr.isatty() and find_spec("rich") is not None else Display()


def total_steps(steps: Mapping[int, int]) -> int | None:
    """Return how many steps a run like the reference takes, once there is a reference."""
    return sum(steps.values()) or None
