"""How much faster a seed study is on two cores than one training after the other: at least 1.8 times.

The same small Lightning training is run with the same seeds in four ways, start-up included in each:

- ``study``: ``SeedStudy`` with two workers, each run in a process of its own;
- ``one``: the same study with one worker;
- ``loop``: a plain loop in one process, which imports once and gives every run what the one before left behind. The
  hardest to beat, and not what anyone should do;
- ``scripts``: a new interpreter for each run, as a shell loop does it. Some of the runs are timed, and the time of all
  is what that makes.

Run ``python benchmarks/study_throughput.py [--runs 200]``. The bar is checked against ``one`` and ``loop``; the exit
code is 1 if it isn't met.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

BAR = 1.8
SCRIPTS = 5  # how many new interpreters are timed
PINNED = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ROOT = Path(__file__).resolve().parents[1]


class Times(NamedTuple):
    """Seconds: of wall time, and of all processors together, which other work on the machine changes less."""

    wall: float
    cpu: float


def fit(seed: int, epochs: int = 24) -> dict[str, Any]:
    """A small convolutional network on noisy bars, with Lightning, dropout and random order: about a second."""
    import logging
    import warnings

    import lightning
    import torch
    from torch.nn.functional import cross_entropy

    from repro_callbacks import generators

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    generators.seed_all(0)
    labels = torch.randint(0, 2, (512,))
    images = torch.randn(512, 1, 16, 16)
    images[labels == 1, :, 6:10] += 0.6
    generators.seed_all(seed)

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Conv2d(1, 16, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv2d(16, 16, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(4),
                torch.nn.Flatten(),
                torch.nn.Dropout(0.2),
                torch.nn.Linear(256, 2),
            )

        def training_step(self, batch: Any, index: int) -> Any:
            return cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    data = torch.utils.data.TensorDataset(images, labels)
    train, val = torch.utils.data.Subset(data, range(384)), torch.utils.data.Subset(data, range(384, 512))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Net(),
        torch.utils.data.DataLoader(train, 32, shuffle=True),
        torch.utils.data.DataLoader(val, 128),
    )
    return {"val_accuracy": trainer.callback_metrics["val_accuracy"].item()}


def study(runs: int, workers: int, check: int = 0) -> tuple[Times, list[float]]:
    """Run a study in a new interpreter. Return its times and its scores."""
    code = (
        "import sys; from benchmarks.study_throughput import fit; from repro_callbacks import SeedStudy; "
        "runs, workers, check, out = sys.argv[1:]; "
        "SeedStudy(fit, range(int(runs)), metric='val_accuracy', out=out, check=int(check))"
        ".run(workers=int(workers), report=False, display=False)"
    )
    with tempfile.TemporaryDirectory() as out:
        times = timed(code, str(runs), str(workers), str(check), out)
        lines = [json.loads(line) for line in Path(out, "runs.jsonl").read_text().splitlines()]
    assert all(line["status"] == "done" for line in lines), lines
    lines.sort(key=lambda line: line["seed"])
    return times, [line["metrics"]["val_accuracy"] for line in lines if not line["check"]]


def loop(runs: int) -> tuple[Times, list[float]]:
    """Run the seeds in a loop in a new interpreter. Return its times and its scores."""
    code = (
        "import json, sys; from benchmarks.study_throughput import fit; runs, out = sys.argv[1:]; "
        "json.dump([fit(seed)['val_accuracy'] for seed in range(int(runs))], open(out, 'w'))"
    )
    with tempfile.TemporaryDirectory() as out:
        times = timed(code, str(runs), f"{out}/scores")
        return times, json.loads(Path(out, "scores").read_text())


def timed(code: str, *arguments: str) -> Times:
    """Run code in a new interpreter with pinned threads, and return its times and those of all that it started."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT, env={**os.environ, **PINNED})
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Times(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> int:
    """Measure, print, and return 1 if the bar isn't met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    runs, workers = (arguments := parser.parse_args()).runs, arguments.workers
    timed("import lightning.pytorch, torch._dynamo")  # whoever comes first would pay for the disk
    looped, loop_scores = loop(runs)
    many, scores = study(runs, workers)
    one, one_scores = study(runs, 1)
    checked, _ = study(runs, workers, check=2)
    script = "from benchmarks.study_throughput import fit; import sys; fit(int(sys.argv[1]))"
    each = [timed(script, str(seed)) for seed in range(SCRIPTS)]
    scripts = Times(*(sum(column) / SCRIPTS * runs for column in zip(*each, strict=True)))
    print(f"{runs} trainings on {os.cpu_count()} processors, {platform.processor() or platform.machine()}")
    print(f"{'':38}{'wall s':>8}{'a run':>8}{'CPU s':>8}{'study is':>11}")
    for name, times in (
        (f"study, {workers} workers", many),
        (f"study, {workers} workers, 2 seeds checked", checked),
        ("study, one worker", one),
        ("a loop in one process", looped),
        (f"a new interpreter each ({SCRIPTS} timed)", scripts),
    ):
        ratio = times.wall / many.wall
        print(f"{name:38}{times.wall:8.1f}{times.wall / runs:8.3f}{times.cpu:8.1f}{ratio:10.2f}x")
    same = scores == one_scores == loop_scores
    print(f"scores of study, one worker and loop: {'the same bits' if same else 'DIFFERENT'}")
    return 0 if same and min(one.wall, looped.wall) / many.wall >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
