"""Small trainings for the tests of the study. Imported by the processes that run them."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import torch

from repro_callbacks import generators


def digest(model: torch.nn.Module) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for value in model.state_dict().values():
        hashed.update(value.numpy().tobytes())
    return hashed.hexdigest()


def train(seed: int, steps: int = 30) -> dict[str, object]:
    """Weights, order, dropout and data noise all from the process-wide generators, as in a usual script."""
    generators.seed_all(seed)
    x = torch.linspace(-1, 1, 256).reshape(64, 4)
    y = (x.sum(1) > 0).long()
    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(steps):
        batch = torch.randperm(len(x))[:16]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x[batch] + 0.1 * torch.randn(16, 4)), y[batch])
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    return {
        "loss": losses.mean().item(),
        "holdout_loss": losses[::2].mean(),
        "weights": digest(model),
        "cases": {f"case {i}": losses[i].item() for i in range(3)},
    }


def unseeded(seed: int) -> float:
    """Draws from entropy: two runs of a seed differ."""
    return float(torch.rand((), generator=torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))))


def purposes(seed: int, seeds: dict[str, int]) -> dict[str, float]:
    return {
        "score": float(sum(seeds.values())),
        "base": float(seed),
        **{f"got_{k}": float(v) for k, v in seeds.items()},
    }


def slow(seed: int) -> dict[str, object]:
    """Tells by files when it begins and ends, so that a test can count executions; the folder is in the environment."""
    marks = Path(os.environ["TEST_MARKS"])
    (marks / f"begin-{seed}-{os.getpid()}").touch()
    time.sleep(float(os.environ["TEST_SECONDS"]))
    trained = train(seed)
    (marks / f"end-{seed}-{os.getpid()}").touch()
    return trained


def killed_once(seed: int, marks: str) -> float:
    """Seed 1 is killed the first time."""
    mark = Path(marks, "killed")
    if seed == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(seed)


def end(seed: int, how: tuple[str, ...]) -> float:
    """Seed 0 goes well; seed n ends as the n-th of ``how`` says."""
    way = how[seed - 1] if seed else ""
    if way == "raise":
        raise RuntimeError("the disk is on\nfire")
    if way == "sys.exit":
        sys.exit(3)
    if way == "os._exit":
        os._exit(7)
    if way == "hang":
        time.sleep(600)
    if way.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, way))
    return float("nan") if way == "nan" else float(seed)
