"""``repro-callbacks study``: how a result spreads over seeds."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shlex
import sys
import warnings
from typing import Any, Final

from repro_callbacks.command import run as run_command
from repro_callbacks.study import NotRepeatableWarning, SeedStudy, StudyError, StudyResult, rebuild
from repro_callbacks.study.engines import ENGINES

_EPILOG: Final = """examples:
  repro-callbacks study --seeds 0:100 --metric val_dice --out study/ -- python train.py --lr 0.1
  repro-callbacks study --seeds 0:30 --metric val_dice --variant "A=--lr 0.1" --variant "B=--lr 0.01" -- python train.py
  repro-callbacks study --seeds 0:30 --metric val_dice --vary each -- python train.py
  repro-callbacks study --seeds 0:100 --metric score -- mypackage.experiment:fit
  repro-callbacks study report study/

The same command goes on with a study that was stopped; more seeds extend it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``study``."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=run_command.argument(parse_seeds), metavar="0:100", help="first:end, or 0,3,7")
    parser.add_argument("--metric", help="the score, by its name in the trainer's metrics")
    parser.add_argument("--out", default="study", metavar="FOLDER", help="of the study (default: study)")
    parser.add_argument("--engine", default="processes", choices=sorted(ENGINES), help="default: processes")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one for each --threads processors)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=run_command.argument(parse_option),
        metavar="KEY=VALUE",
        help="an option of the engine, such as address=tcp://host:8786 or slurm_partition=gpu; may be repeated",
    )
    parser.add_argument("--vary", default="all", help="all (default), each, or purposes such as order,init+step")
    parser.add_argument("--fixed", type=int, default=3407, help="the seed of what isn't varied (default: 3407)")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=ARGUMENTS",
        help="compare: the command with these arguments added; may be repeated",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    parser.add_argument("--check", type=int, default=2, help="how many seeds are run twice (default: 2)")
    parser.add_argument("--retries", type=int, default=1, help="of a run that failed (default: 1)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="after which a run is killed")
    parser.add_argument("--retry-failed", action="store_true", help="try again what is recorded as failed")
    parser.add_argument("--changed-code", action="store_true", help="go on although the script has changed")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--maximize", action="store_true", default=None, help="a high score is a good one")
    direction.add_argument("--minimize", action="store_false", dest="maximize", help="a low score is a good one")
    parser.add_argument("--highlight", type=int, action="append", default=[], help="a seed to point out in the report")
    parser.add_argument("--no-report", action="store_true", help="write the tables only")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND",
        help="the training command, or module:function; or `report FOLDER`, without dashes, to write a report again",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the study and return 0; 1 if runs failed or did not repeat, 2 if it can't be run, 130 after Ctrl-C."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotRepeatableWarning)  # said below, after what else there is to say
            result = _report(arguments) if _is_report(arguments) else _study(arguments)
    except (StudyError, ValueError, TypeError, ImportError) as error:
        run_command.tell(str(error))
        return 2
    except KeyboardInterrupt:
        run_command.tell("go on with the same command")
        return 130
    _tell(result)
    if result.differing:
        run_command.tell(f"WARNING: {NotRepeatableWarning.of(result.differing)}")
    return 1 if result.failed or result.differing else 0


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: numbers and ranges ``first:end`` or ``first:end:step``, as Python counts, joined by commas.

    Raises:
        ValueError: If it is written otherwise.

    Example:
        >>> parse_seeds("0:3,3407")
        (0, 1, 2, 3407)
    """
    seeds: list[int] = []
    for part in text.split(","):
        try:
            numbers = [int(number) for number in part.split(":")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 3 or (len(numbers) == 3 and numbers[2] < 1):
            raise ValueError(f"seeds must be written as 0:100 or 0,3,7, not {text!r}")
        seeds += numbers if len(numbers) == 1 else range(*numbers)
    return tuple(seeds)


def parse_option(text: str) -> tuple[str, Any]:
    """Read an option of an engine: a Python number, string or the like, or else text.

    Raises:
        ValueError: If there is no ``=``.

    Example:
        >>> parse_option("timeout_min=60"), parse_option("address=tcp://host:8786")
        (('timeout_min', 60), ('address', 'tcp://host:8786'))
    """
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise ValueError(f"an option must be written as key=value, not {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def make_fit(command: list[str], variants: list[str]) -> Any:
    """Return what a study runs: a command, a function, or several commands by name.

    Raises:
        ValueError: If it is none.
        ImportError: If the function's module can't be imported.

    Example:
        >>> make_fit(["python", "train.py"], ["A=--lr 0.1", "B=--lr 0.01"])
        {'A': ['python', 'train.py', '--lr', '0.1'], 'B': ['python', 'train.py', '--lr', '0.01']}
    """
    if not command:
        raise ValueError(
            "no command was given; write it behind two dashes: repro-callbacks study ... -- python train.py"
        )
    if len(command) == 1 and not command[0].endswith(".py") and ":" in command[0]:
        if variants:
            raise ValueError("--variant adds arguments to a command; a function takes none")
        return _function(command[0])
    if not variants:
        return command
    pairs = [variant.partition("=") for variant in variants]
    if any(not sign for _, sign, _ in pairs):
        raise ValueError("a variant must be written as NAME=ARGUMENTS, such as --variant 'A=--lr 0.1'")
    if len({name for name, _, _ in pairs}) != len(pairs):
        raise ValueError("two variants have the same name")
    return {name: [*command, *shlex.split(added)] for name, _, added in pairs}


def _function(text: str) -> Any:
    module, _, name = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it, and a console command has not
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ValueError(f"{text}: {module} has no function {name!r}")
    return function


def _is_report(arguments: argparse.Namespace) -> bool:
    return list(arguments.command[:1]) == ["report"]


def _report(arguments: argparse.Namespace) -> StudyResult:
    folders = arguments.command[1:] or [arguments.out]
    if len(folders) != 1:
        raise ValueError(f"report takes one folder, not {' '.join(folders)}")
    return rebuild(folders[0], report=not arguments.no_report)


def _study(arguments: argparse.Namespace) -> StudyResult:
    for name in ("seeds", "metric"):
        if getattr(arguments, name) is None:
            raise ValueError(
                f"--{name} is missing: repro-callbacks study --seeds 0:100 --metric val_dice -- python train.py"
            )
    study = SeedStudy(
        make_fit(run_command.command_of(arguments), arguments.variant),
        arguments.seeds,
        metric=arguments.metric,
        out=arguments.out,
        vary=arguments.vary,
        fixed=arguments.fixed,
        threads=arguments.threads,
        check=arguments.check,
        retries=arguments.retries,
        timeout=arguments.timeout,
        maximize=arguments.maximize,
        highlight=arguments.highlight,
    )
    return study.run(
        arguments.engine,
        workers=arguments.workers,
        report=not arguments.no_report,
        retry_failed=arguments.retry_failed,
        changed_code=arguments.changed_code,
        **dict(arguments.option),
    )


def _tell(result: StudyResult) -> None:
    """Say what was found, and where it is."""
    if result.report is not None:
        print(result.summary())
    for name, error in result.failed.items():
        run_command.tell(f"{name} gave no score: {error}")
    run_command.tell(f"{result.out / 'runs.csv'}{f' and {result.report}' if result.report else ''}")
