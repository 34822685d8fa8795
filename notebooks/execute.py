"""Run the notebooks from top to bottom; fail if a cell fails.

    python notebooks/execute.py            # what CI does: nothing is compared and nothing is written
    python notebooks/execute.py --write    # refresh the outputs that are committed

What ``--write`` keeps names no path of this machine and no time that changes from run to run.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TIMES = re.compile(r"(\"seconds\": |\b(?:in|took|after) )\d+(?:\.\d+)?")


def execute(path: Path, timeout: float) -> NotebookNode:
    """Run a notebook in the folder it lies in, in this interpreter's environment, and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.record_timing = False
    client.execute()
    return notebook


def scrub(text: str) -> str:
    """Take paths of this machine and times out of a text."""
    places = {str(HERE.parent): ".", sys.prefix: "<environment>", sys.base_prefix: "<python>", str(Path.home()): "~"}
    for place, name in sorted(places.items(), key=lambda item: -len(item[0])):
        text = text.replace(place, name)
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/[^\s:'\"]*", "<temporary>", text)
    return TIMES.sub(r"\g<1>…", text)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Scrub every text of the outputs, and drop what differs from run to run for no reason."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata = {}
        for output in cell.outputs:
            if "text" in output:
                output.text = scrub(output.text)
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", scrub(value))
    return notebook


def main() -> int:
    """Run the notebooks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in this folder")
    parser.add_argument("--write", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a cell (default: %(default)s)")
    arguments = parser.parse_args()
    failed = 0
    for path in arguments.notebooks or sorted(HERE.glob("*.ipynb")):
        started = time.perf_counter()
        try:
            notebook = execute(path.resolve(), arguments.timeout)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name} failed:\n{COLOURS.sub('', str(error))}", flush=True)
            continue
        if arguments.write:
            nbformat.write(clean(notebook), path)
        print(f"{path.name}: every cell ran, {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
