"""Run one training under several circumstances, with ``Determinism`` and with bare ``seed_everything``, and compare."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from repro_callbacks.command.demo import train
from repro_callbacks.command.demo.train import BARE, OURS, Training

ONCE = "once, with 2 workers"
Results = dict[tuple[str, str], dict[str, Any]]
"""What :func:`.train.fit` gave, by circumstance and treatment."""


def circumstances(training: Training) -> dict[str, Training]:
    """Give the same training under each of the circumstances that the demo compares, by name."""
    # in the middle of an epoch, and past a checkpoint in the middle of an epoch
    kill_at = 2 * training.epochs // 5 * training.steps_in_epoch + training.steps_in_epoch * 3 // 4
    return {
        ONCE: training,
        "the same again": training,
        "without workers": replace(training, num_workers=0),
        "validated half as often": replace(training, validate_every=2),
        "killed (kill -9), resumed": replace(training, kill_at=kill_at),
    }


def show(folder: Path, epochs: int, patches: int, seed: int, accelerator: str) -> int:
    """Train, repeat and print the table of digests.

    Returns:
        0 when every row of ``Determinism`` has the bits of the first, else 1.

    Raises:
        ValueError: If the training is too short to be killed past a checkpoint, or of an odd length.
        RuntimeError: If a training fails.
    """
    if epochs < 2 or epochs % 2 or patches < 8 or patches % 2:
        raise ValueError(
            f"the demo needs an even number of epochs from 2 and of patches from 8, not {epochs} and {patches}"
        )
    console, started = Console(highlight=False, soft_wrap=True), time.perf_counter()
    console.print(
        f"Brain tissue on the MNI152 template: {epochs} epochs of {patches} random patches, seed {seed}.\n"
        "Each training is a process of its own on one thread; two run side by side.\n"
    )
    results = run_all(Training("", OURS, seed, epochs, patches, accelerator), folder, console)
    console.print(tabulate(results))
    for line in conclude(results):
        console.print(line)
    console.print(f"\nTensorBoard: tensorboard --logdir {os.path.relpath(folder)}")
    console.print(f"The demo took {time.perf_counter() - started:.0f} s.")
    return 0 if all(holds(results, row, OURS) for row, _ in results) else 1


def run_all(base: Training, folder: Path, console: Console) -> Results:
    """Run every circumstance with both treatments, two at a time, the first one in the foreground."""
    pairs = [(row, treatment) for row in circumstances(base) for treatment in (OURS, BARE)]
    jobs: dict[Future[dict[str, Any]], tuple[str, str]] = {}
    _processes()  # here, not in two threads at once
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            for number, (row, treatment) in enumerate(pairs):
                place = folder / f"{number // 2}-{treatment}"
                changed = circumstances(replace(base, folder=str(place), treatment=treatment, shown=number == 0))[row]
                jobs[pool.submit(run_one, replace(changed, shown=number == 0))] = (row, treatment)
            first = next(iter(jobs)).result()
            console.print(f"\n{describe(first)}\nPicture: {os.path.relpath(folder / f'0-{OURS}' / 'picture.png')}\n")
            console.print("The same training again:")
            results: Results = {}
            for job in as_completed(jobs):
                results[jobs[job]] = job.result()
                row, treatment = jobs[job]
                if row != ONCE:
                    console.print(f"  {treatment:16}{row:28}{job.result()['digest'][:8]}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    console.print()
    return {pair: results[pair] for pair in pairs}


def describe(result: dict[str, Any]) -> str:
    """Say what a training reached, and how little that is."""
    return (
        f"Dice on the front of the brain, which it never saw: grey matter {result['dice_grey']:.3f}, white matter "
        f"{result['dice_white']:.3f},\nafter {result['steps']} steps. One average brain and some seconds of training: "
        "this says nothing about patients."
    )


def run_one(training: Training) -> dict[str, Any]:
    """Run a training in a process of its own; if it kills itself, resume it in another."""
    folder = Path(training.folder)
    if folder.exists():
        shutil.rmtree(folder)  # of an earlier demo
    folder.mkdir(parents=True)
    if training.kill_at is not None:
        _start(training, -signal.SIGKILL)
        checkpoint = max((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        training = replace(training, kill_at=None, checkpoint=str(checkpoint))
    _start(training, 0)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def _start(training: Training, expected: int) -> None:
    process = _processes().Process(target=train.main, args=(training,))
    process.start()
    process.join()
    if process.exitcode != expected:
        log = Path(training.folder) / train.OUTPUT
        tail = "".join(f"\n  {line}" for line in log.read_text().splitlines()[-15:]) if log.exists() else " (see above)"
        raise RuntimeError(f"a training of the demo ended with exit code {process.exitcode}, not {expected}:{tail}")


@functools.cache
def _processes() -> ForkServerContext:
    """Return what starts processes from one that has done the imports, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(train.PRELOADED))
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads, which an import may start, would not survive a fork
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def holds(results: Results, row: str, treatment: str) -> bool:
    """Tell whether a row has the bits of the first."""
    return bool(results[row, treatment]["digest"] == results[ONCE, treatment]["digest"])


def tabulate(results: Results) -> Table:
    """Lay out the digest of the final weights and the Dice of grey matter of each run."""
    table = Table(
        "", OURS, f"bare {BARE}", title="Final weights (digest) and Dice of grey matter", title_justify="left"
    )
    for row in dict.fromkeys(row for row, _ in results):
        table.add_row(row, *(_cell(results, row, treatment) for treatment in (OURS, BARE)))
    return table


def _cell(results: Results, row: str, treatment: str) -> str:
    result = results[row, treatment]
    shown = f"{str(result['digest'])[:8]} {result['dice_grey']:.3f}"
    if row == ONCE:
        return shown
    if holds(results, row, treatment):
        return f"{shown} [green]same[/green]"
    return f"{shown} [red]{'does not hold yet' if treatment == OURS else 'differs'}[/red]"


def conclude(results: Results) -> Iterator[str]:
    """Say in words what the table shows, and how far the Dice of the runs lies apart."""
    for treatment in (OURS, BARE):
        repeats = [row for row, kind in results if kind == treatment and row != ONCE]
        kept = sum(holds(results, row, treatment) for row in repeats)
        dice = [result["dice_grey"] for (_, kind), result in results.items() if kind == treatment]
        spread = f"{min(dice):.3f} to {max(dice):.3f}" if max(dice) > min(dice) else f"{dice[0]:.3f} every time"
        yield f"{treatment}: {kept} of {len(repeats)} repeats have the bits of the first run; Dice {spread}."
