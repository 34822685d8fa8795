"""Run every example that needs no download, at a small size; fail if one fails or if its promise does not hold.

python examples/run_all.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SMALL = ["--epochs", "2", "--patches", "16"]
CLI = ["lightning_cli/train.py", "fit", "--config", str(HERE / "lightning_cli" / "config.yaml")]
CLI += ["--trainer.max_epochs", "2", "--data.patches", "16"]

# Each group is one training under several circumstances: all that print a digest must print the same one.
GROUPS: dict[str, list[list[str]]] = {
    "brain_segmentation.py": [
        ["brain_segmentation.py", *SMALL],
        ["brain_segmentation.py", *SMALL, "--num-workers", "0"],
    ],
    "monai_loop.py": [
        ["monai_loop.py", *SMALL, "--save-every", "3"],
        ["monai_loop.py", *SMALL, "--save-every", "3", "--stop-after", "11"],
        ["monai_loop.py", *SMALL, "--save-every", "3", "--num-workers", "0", "--resume"],
    ],
    "monai_engine.py": [
        ["monai_engine.py", *SMALL],
        ["monai_engine.py", *SMALL, "--num-workers", "0"],
    ],
    "lightning_cli": [CLI, [*CLI, "--data.num_workers", "0"]],
}
NOT_HERE = {
    "decathlon.py": "needs a download; its test runs it on a small folder of the same layout",
    "seed_study": "many trainings; it has tests of its own",
    "editors": "no programs; a test expands the templates",
}


def run(command: list[str], folder: Path) -> str | None:
    """Run an example in a folder and return the digest that it prints, if any."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with exit code {result.returncode}:\n{result.stdout}{result.stderr}"
        )
    lines = [line for line in result.stdout.splitlines() if line.startswith("digest of the final weights: ")]
    return lines[-1].split(": ")[1] if lines else None


def main() -> int:
    failed = 0
    for name, commands in GROUPS.items():
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            digests = [run(command, Path(folder)) for command in commands]
        found = {digest for digest in digests if digest is not None}
        verdict = "the same bits" if len(found) == 1 else f"DIFFERENT BITS: {digests}"
        failed += len(found) != 1
        print(f"{name:24}{len(commands)} runs, {time.perf_counter() - started:3.0f} s: {verdict}", flush=True)
    for name, reason in NOT_HERE.items():
        print(f"{name:24}not run: {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
