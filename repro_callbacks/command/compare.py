"""``repro-callbacks compare A B``: are two runs equal, and if not, where do they part first, and why?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from repro_callbacks.fingerprint.compare import NOT_COMPARABLE, compare
from repro_callbacks.fingerprint.page import page
from repro_callbacks.fingerprint.report import text
from repro_callbacks.fingerprint.runs import NotComparable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the sub-command takes."""
    parser.add_argument("a", metavar="A", type=Path, help="a fingerprint (*.jsonl), or the folder that holds it")
    parser.add_argument("b", metavar="B", type=Path, help="the other run's")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write a page with the two timelines")
    parser.epilog = "exit code: 0 equal, 1 different, 2 not comparable"


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, and return 0 if the runs are equal, 1 if they differ, 2 if they can't be compared."""
    try:
        found = compare(arguments.a, arguments.b)
    except NotComparable as error:
        print(f"repro-callbacks compare: {error}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"equal": None, "error": str(error)}))
        return NOT_COMPARABLE
    print(json.dumps(found.to_dict(), indent=2) if arguments.json else text(found))
    if arguments.html is not None:
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(page(found), encoding="utf-8")
    return found.exit_code
