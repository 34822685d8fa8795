"""Every benchmark, one after the other: ``python -m benchmarks`` (on a machine that does nothing else)."""

from __future__ import annotations

import runpy
from pathlib import Path

HELPERS = {"__init__", "__main__", "timing"}

if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in HELPERS:
            print(f"\n== python -m benchmarks.{path.stem}", flush=True)
            runpy.run_module(f"benchmarks.{path.stem}", run_name="__main__")
