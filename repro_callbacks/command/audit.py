"""``repro-callbacks audit``: what in a model or pipeline can't be deterministic."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any, Final

CLEAN, FOUND, UNREADABLE = 0, 1, 2

_SEPARATOR: Final = ":"


class CannotRead(ValueError):
    """A target does not name an object."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``audit``."""
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="module:object or path/to/script.py:object; the object is a model, a loss, a dataset, a loader or a "
        "transform, or a function or class without required arguments that makes one",
    )
    parser.add_argument(
        "--input",
        dest="inputs",
        action="append",
        type=_shape,
        metavar="1x1x64x64x64",
        help="run a model on random numbers of this shape, so that the operators that it calls are seen; once for each "
        "of its arguments",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the kind of device asked about")
    parser.add_argument("--samples", type=_count, default=2, metavar="N", help="how many samples to draw twice (2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.epilog = (
        "exit status: 0 if everything can be deterministic, 1 if something can't, 2 if a target can't be read"
    )


def run(arguments: argparse.Namespace) -> int:
    """Audit each target and print what is found; return 0, 1 (something can't be deterministic) or 2 (not read)."""
    import torch

    from repro_callbacks.audit import audit

    reports = {}
    for target in arguments.targets:
        try:
            x = load(target)
            is_model = isinstance(x, torch.nn.Module)
            inputs = tuple(map(torch.rand, arguments.inputs)) if arguments.inputs and is_model else None
            reports[target] = audit(x, inputs, device=arguments.device, samples=arguments.samples)
        except CannotRead as error:
            print(f"repro-callbacks audit: {target}: {error}", file=sys.stderr)
            return UNREADABLE
        except Exception:  # noqa: BLE001 - the target's own code failed, which is no finding: exit status 2, not 1
            traceback.print_exc()
            print(f"repro-callbacks audit: {target}: could not be run (see above)", file=sys.stderr)
            return UNREADABLE
    if arguments.json:
        print(json.dumps({target: json.loads(report.to_json()) for target, report in reports.items()}, indent=2))
    else:
        for target, report in reports.items():
            print(f"{target}: {len(report)} found" if len(report) else f"{target}: nothing found")
            if len(report):
                print(report)
    return CLEAN if all(reports.values()) else FOUND


def load(target: str) -> Any:
    """Return the object that ``module:object`` or ``path.py:object`` names, made if it is a factory.

    Raises:
        CannotRead: If it names none.

    Example:
        >>> load("torch.nn:Identity")
        Identity()
    """
    home, separator, name = target.rpartition(_SEPARATOR)
    if not separator or not home or not name:
        raise CannotRead("a target is module:object or path/to/script.py:object")
    found = _module(home)
    for part in name.split("."):
        if not hasattr(found, part):
            raise CannotRead(f"{home} has no {name}")
        found = getattr(found, part)
    import torch

    made = isinstance(found, torch.nn.Module) or hasattr(found, "__getitem__") or hasattr(found, "__iter__")
    if isinstance(found, type) or (callable(found) and not made and hasattr(found, "__code__")):
        return found()
    return found


def _module(home: str) -> Any:
    if not home.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")  # as `python -m` does
        try:
            return importlib.import_module(home)
        except ModuleNotFoundError as error:
            if error.name is None or not home.startswith(error.name):
                raise  # it is there, and something that it imports is not
            raise CannotRead(f"there is no module {home}") from error
    path = Path(home)
    if not path.is_file():
        raise CannotRead(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as `python script.py` does
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CannotRead(f"{path} can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of samples is 0 or more, not {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(map(int, text.split("x")))
    except ValueError:
        shape = (-1,)
    if any(size < 1 for size in shape):
        raise argparse.ArgumentTypeError(f"a shape is like 1x1x64x64x64, not {text!r}")
    return shape
