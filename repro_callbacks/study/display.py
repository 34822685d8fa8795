"""Shows how far a study is: live on a terminal, and little elsewhere."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from repro_callbacks.study.task import Outcome, Task

_BLOCKS = " ▁▂▃▄▅▆▇█"


class Display:
    """Says when a study begins and ends, and what goes wrong. For logs and pipes.

    Args:
        metric: The score that is studied.
        total: How many runs are to be run, repeated ones too.
        done: Scores that are recorded already, by variant.
        workers: How many runs at a time.
        stream: Where to write; standard error if None.
    """

    def __init__(
        self,
        metric: str,
        total: int,
        done: Mapping[str, Sequence[float]],
        workers: int,
        *,
        stream: TextIO | None = None,
    ) -> None:
        self.metric, self.total, self.workers = metric, total, workers
        self.scores = {variant: list(scores) for variant, scores in done.items()}
        self.running: dict[str, float] = {}
        self.causes: collections.Counter[str] = collections.Counter()
        self.finished_here = 0
        self.started = time.monotonic()
        self.stream = sys.stderr if stream is None else stream

    def __enter__(self) -> Display:
        self.say(f"study of {self.metric}: {self.total} runs to go, {self.done} done before")
        return self

    def __exit__(self, *error: object) -> None:
        self.say(f"{self.done} runs done, {self.failed} failed{self._causes()}")

    @property
    def done(self) -> int:
        """How many runs have given a score, repeated runs left out."""
        return sum(map(len, self.scores.values()))

    @property
    def failed(self) -> int:
        """How many runs have failed for good, since the display began."""
        return sum(self.causes.values())

    def begin(self, task: Task) -> None:
        """A run was given to the engine."""
        self.running[task.name] = time.monotonic()

    def end(self, task: Task, outcome: Outcome, final: bool) -> None:
        """A run has ended."""
        self.running.pop(task.name, None)
        if outcome.status == "failed":
            self.say(f"{task.name} failed, {'' if final else 'is tried again: '}{outcome.error}")
        if final:
            self.finished_here += 1
            if outcome.status == "failed":
                self.causes[outcome.cause] += 1
            elif not task.fresh:
                self.scores.setdefault(task.variant, []).append(outcome.metrics[self.metric])

    def say(self, message: str) -> None:
        """Write a line that stays."""
        print(f"repro-callbacks: {message}", file=self.stream, flush=True)

    def refresh(self) -> None:
        """Show the state now."""

    def _causes(self) -> str:
        return f" ({', '.join(f'{n} {cause}' for cause, n in self.causes.items())})" if self.causes else ""

    def seconds_left(self) -> float | None:
        """Return how long the rest takes at the pace so far; None before the first run has ended."""
        if not self.finished_here:
            return None
        return (time.monotonic() - self.started) / self.finished_here * (self.total - self.finished_here)


class LiveDisplay(Display):
    """A few lines that are kept up to date, on a terminal."""

    def __init__(self, *arguments: Any, stream: TextIO | None = None) -> None:
        import rich.console
        import rich.live

        super().__init__(*arguments, stream=stream)
        self._console = rich.console.Console(file=self.stream)
        self._live = rich.live.Live(console=self._console, auto_refresh=False, transient=False)

    def __enter__(self) -> Display:
        super().__enter__()
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.refresh()
        self._live.stop()
        super().__exit__(*error)

    def say(self, message: str) -> None:
        """Write a line above those that change."""
        self._console.print(f"repro-callbacks: {message}", markup=False, highlight=False)

    def refresh(self) -> None:
        """Show the state now."""
        import rich.text

        self._live.update(rich.text.Text("\n".join(self.lines())), refresh=True)  # text: a name may look like markup

    def lines(self) -> list[str]:
        """Return what is shown: counts, time left, and the distribution of each variant."""
        left = self.seconds_left()
        lines = [
            f"{self.done} done, {min(len(self.running), self.workers)} running, {self.failed} failed{self._causes()}; "
            f"{self.total - self.finished_here} to go, {'time unknown yet' if left is None else duration(left)}"
        ]
        for variant, scores in self.scores.items():
            if scores:
                label = f"{variant}: " if variant else ""
                lines.append(f"{label}{self.metric}  {min(scores):.4g} {histogram(scores)} {max(scores):.4g}")
        return lines


def make_display(*arguments: Any, stream: TextIO | None = None, quiet: bool = False) -> Display:
    """Return a live display on a terminal where rich is installed, lines elsewhere or where ``quiet`` asks for it."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty() and not quiet:
        try:
            return LiveDisplay(*arguments, stream=stream)
        except ImportError:
            pass  # rich is an extra; lines will do
    return Display(*arguments, stream=stream)


def histogram(scores: Sequence[float], bins: int = 24) -> str:
    """Return a histogram in one line of characters, from the least to the largest score.

    Example:
        >>> histogram([1, 1, 1, 1, 3, 3, 5], bins=5)
        '█ ▄ ▂'
    """
    low, high = min(scores), max(scores)
    if low == high:
        return _BLOCKS[-1]
    counts = [0] * bins
    for score in scores:
        counts[min(bins - 1, int((score - low) / (high - low) * bins))] += 1
    top = max(counts)
    return "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // top)] for count in counts)


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> duration(42), duration(3 * 3600 + 20 * 60)
        ('42 s', '3 h 20 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
