"""How long it takes to find the first divergence of two fingerprints of a million steps.

    python -m benchmarks.compare_million [--steps 1000000]

Each file is some 400 MB; they are made in a temporary folder, which takes a few minutes. The bar is a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from repro_callbacks import compare
from repro_callbacks.fingerprint.recorder import check_every
from repro_callbacks.fingerprint.store import Writer
from repro_callbacks.record import RunRecord

EPOCH = 1000
VALIDATION_EVERY = 500


def write(folder: Path, steps: int, differs_from: int | None) -> int:
    """Write a fingerprint whose gradients differ from a step on, and return its size in bytes."""
    head = {
        "rank": 0,
        "world_size": 1,
        "resumed": None,
        "every": check_every(None),
        "state": {"parameters": "0", "buffers": "0", "optimizer": "0", "schedule": "0"},
        "parameters": ["weight float32[10]"],
        "buffers": [],
        "record": RunRecord.capture(seed=1).to_dict(),
        "at": [0, 0],
        "chains": {"step": "", "validation": ""},
        "continues": None,
    }
    path = folder / "fingerprint.rank0.jsonl"
    with Writer(path) as writer:
        writer.head(head, None, head["chains"])
        for number in range(steps):
            epoch, batch = divmod(number, EPOCH)
            same = f"{number:032x}"
            gradient = same if differs_from is None or number < differs_from else f"{number + 1:032x}"
            line = {"epoch": epoch, "batch": batch, "step": number + 1, "number": number, "data": same}
            line |= {"samples": same[:24], "before": {"torch": same[20:]}, "after": {"torch": same[20:]}, "loss": same}
            line |= {"loss_value": 0.5, "gradients": gradient, "each_gradient": gradient[-8:], "rates": [0.1]}
            writer.line("step", {**line, "schedule": "0" * 32, "parameters": gradient, "buffers": "0" * 32})
            if number % VALIDATION_EVERY == VALIDATION_EVERY - 1:
                place = {"epoch": epoch, "batch": batch, "step": number + 1}
                writer.line("validation", {**place, "metrics": {"loss": (number * 0.1).hex()}})
        writer.line("end", {"state": head["state"]})
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    steps = arguments.steps
    places = {"equal": None, "the last step": steps - 1, "the middle": steps // 2 + 7, "the first step": 0}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        size = write(base, steps, None)
        for name, place in places.items():
            other = Path(scratch) / "other"
            write(other, steps, place)
            times = []
            for _ in range(5):
                begin = time.perf_counter()
                found = compare(base, other)
                times.append(time.perf_counter() - begin)
            expected = None if place is None else divmod(place, EPOCH)
            at = None if found.divergence is None else (found.divergence.epoch, found.divergence.batch)
            if at != expected:
                raise SystemExit(f"{name}: found {at}, not {expected}")
            rows.append({"divergence": name, "seconds": statistics.median(times), "first": times[0]})
            (other / "fingerprint.rank0.jsonl").unlink()
    print(f"two fingerprints of {steps} steps, {size / 1e6:.0f} MB each; the bar is 1 s")
    print(f"{'they part at':<16}{'median':>10}{'first time':>12}")
    for row in rows:
        print(f"{row['divergence']:<16}{row['seconds']:>8.3f} s{row['first']:>10.3f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
