"""How everything here is timed: in one process, the two sides in turn, medians and the ratio of each pair."""

from __future__ import annotations

import platform
import statistics
import time
import timeit
from collections.abc import Callable
from typing import Any

import torch


def paired(ours: Callable[[], Any], plain: Callable[[], Any], rounds: int = 9) -> tuple[float, float, float]:
    """Return the median seconds of ours and of plain, and the median of their ratios, after one round of warm-up."""
    ours_s, plain_s, ratios = [], [], []
    for number in range(rounds + 1):
        first, second = (ours, plain) if number % 2 else (plain, ours)
        times = {}
        for side in (first, second):
            begin = time.perf_counter()
            side()
            times[side] = time.perf_counter() - begin
        if number:
            ours_s.append(times[ours])
            plain_s.append(times[plain])
            ratios.append(times[ours] / times[plain])
    return statistics.median(ours_s), statistics.median(plain_s), statistics.median(ratios)


def machine() -> str:
    """Name the machine that a figure was taken on, and say how fast its Python is: microseconds depend on that."""
    speed = min(timeit.repeat(lambda: sum(range(1000)), number=1000, repeat=5)) * 1e3
    return (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"sum(range(1000)) in {speed:.0f} us"
    )


def row(name: str, ours: str, plain: str, verdict: str) -> None:
    """Print one row of a table."""
    print(f"{name:<46} {ours:>12} {plain:>12}   {verdict}", flush=True)
