"""``repro-callbacks demo``: train on real brain images, then repeat that training under other circumstances."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

NEEDED = ("lightning", "monai", "nilearn", "tensorboard", "matplotlib", "rich")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the demo."""
    parser.add_argument(
        "--folder", type=Path, default=Path("demo_output"), help="where to write (default: %(default)s); emptied first"
    )
    parser.add_argument("--epochs", type=int, default=8, help="length of each training (default: %(default)s)")
    parser.add_argument("--patches", type=int, default=64, help="training patches in an epoch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=3407, help="seed of every training (default: %(default)s)")
    parser.add_argument(
        "--accelerator", default="cpu", help="what to train on, as Lightning names it (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. The exit code is 0 when every row of ``Determinism`` holds, else 1."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"The demo needs {', '.join(missing)}: python -m pip install 'repro-callbacks[demo]'")
        return 2
    from repro_callbacks.command.demo.show import show

    folder = arguments.folder.resolve()
    try:
        return show(folder, arguments.epochs, arguments.patches, arguments.seed, arguments.accelerator)
    except KeyboardInterrupt:
        print("\nStopped. What was written is in", arguments.folder)
        return 130
