"""The sub-commands and where each lives. A sub-command's module is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import repro_callbacks

# name -> (module with add_arguments(parser) and run(arguments) -> exit code, one line of help)
COMMANDS = {
    "demo": ("repro_callbacks.command.demo", "train on real brain images, repeat it, and show what holds"),
    "run": ("repro_callbacks.command.run", "start an unmodified training script under our control"),
    "verify": ("repro_callbacks.command.verify", "run a script several times and prove the runs equal"),
    "compare": ("repro_callbacks.command.compare", "compare two runs and name the first divergence"),
    "audit": ("repro_callbacks.command.audit", "what in a model or pipeline can't be deterministic"),
    "study": ("repro_callbacks.command.study", "how a result spreads over seeds"),
    "record": ("repro_callbacks.command.record", "show this environment's record, or how two records differ"),
    "sample": ("repro_callbacks.command.sample", "draw one augmented sample again, alone"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="repro-callbacks", description=repro_callbacks.__doc__)
    parser.add_argument("--version", action="version", version=f"repro-callbacks {repro_callbacks.__version__}")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            home = importlib.import_module(module)
            home.add_arguments(subparser)
            subparser.set_defaults(run=home.run)
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))
