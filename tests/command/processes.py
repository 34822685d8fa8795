"""Starts the command line as a user does, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"
COMMAND = [sys.executable, "-m", "repro_callbacks"]

_OURS = ("REPRO_CALLBACKS_", "PL_GLOBAL_SEED", "PL_SEED_WORKERS", "PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG")


def environment(**changes: str) -> dict[str, str]:
    """The environment of a user who has set nothing: what the tests of this process have set is left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def call(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run ``repro-callbacks`` to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        cwd=cwd,
        env=dict(env or environment()),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write(folder: Path, name: str, text: str) -> Path:
    """Write a script of a test's own."""
    path = folder / name
    path.write_text(text)
    return path


def ends(pid: int, seconds: float = 20) -> bool:
    """Say whether a process has ended, or ends within some seconds; one that nobody has waited for yet has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False
