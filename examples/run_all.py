"""Run every example that needs no download, at a small size; fail if one fails or if its promise does not hold.

python examples/run_all.py
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SMALL = ["--epochs", "2", "--patches", "16"]
TINY = ["--epochs", "1", "--patches", "8"]
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
    "seed_study": [
        ["seed_study/digits.py", "--seeds", "0:2", "--variants", "short", "--out", "study"],
        ["seed_study/brain.py", "--seeds", "0:2", "--variants", "short", *TINY, "--out", "brain"],
    ],
}
STUDIES = {"seed_study"}  # whose runs have other seeds, and print no digest
NOT_HERE = {
    "decathlon.py": "needs a download; its test runs it on a small folder of the same layout",
    "editors": "no programs; a test expands the templates",
}


def run(command: list[str], folder: Path) -> str | None:
    """Run an example in a folder and return the digest that it prints, if any.

    Raises:
        RuntimeError: If it fails; with what it printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with exit code {result.returncode}:\n{result.stdout}{result.stderr}"
        )
    lines = [line for line in result.stdout.splitlines() if line.startswith("digest of the final weights: ")]
    return lines[-1].split(": ")[1] if lines else None


def run_group(name: str) -> tuple[bool, str]:
    """Run a group in a folder of its own, one after the other; tell whether it is well, and in words."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        digests = [run(command, Path(folder)) for command in GROUPS[name]]
    found = [digest for digest in digests if digest is not None]
    if name in STUDIES:
        well, verdict = True, "ran"
    elif len(found) < 2:
        well, verdict = False, f"NOTHING TO COMPARE: {len(found)} of {len(digests)} runs have printed a digest"
    else:
        well = len(set(found)) == 1
        verdict = "the same bits" if well else f"DIFFERENT BITS: {found}"
    return well, f"{name:24}{len(digests)} runs, {time.perf_counter() - started:3.0f} s: {verdict}"


def main() -> int:
    with ThreadPoolExecutor(max_workers=2) as pool:
        well = True
        for group_is_well, line in pool.map(run_group, GROUPS):
            well = well and group_is_well
            print(line, flush=True)
    for name, reason in NOT_HERE.items():
        print(f"{name:24}not run: {reason}")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
