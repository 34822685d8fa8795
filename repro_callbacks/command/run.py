"""``repro-callbacks run``: starts an unmodified training command with seeds, flags and callbacks in force."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from repro_callbacks.callbacks.settings import PREFIX, SEEN, Settings, parse_deterministic, parse_seed, parse_seeds
from repro_callbacks.command import launch

RESULT: Final = PREFIX + "RESULT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``run``."""
    add_settings(parser)
    parser.add_argument(
        "--fingerprint",
        type=Path,
        metavar="PATH",
        help="write a digest of every step there; of further fits beside it",
    )
    parser.add_argument(
        "--result",
        type=Path,
        default=os.environ.get(RESULT),
        metavar="PATH",
        help=f"write the metrics and a digest of the final weights there as JSON (default: ${RESULT})",
    )
    add_command(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``run`` and ``verify`` share."""
    parser.add_argument(
        "--seed",
        type=argument(parse_seed),
        help="wins over what the script gives to seed_everything, set_determinism and Determinism; "
        "without it the script's own seed is in force, and where it sets none, one that is drawn and told",
    )
    parser.add_argument(
        "--seeds",
        type=argument(parse_seeds),
        default={},
        metavar="order=1,augment=2",
        help="a seed of its own for: order, augment, init, step",
    )
    parser.add_argument(
        "--deterministic",
        type=argument(parse_deterministic),
        metavar="true|warn|false",
        help="whether an operator that can't be deterministic is an error, a warning or allowed (default: true)",
    )


def add_command(parser: argparse.ArgumentParser) -> None:
    """Add the training command, which takes the rest of the line."""
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the training command")


def argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Give a parser's own error message to argparse."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def command_of(arguments: argparse.Namespace) -> list[str]:
    """Return the training command, without the two dashes before it."""
    words = list(arguments.command)
    return words[1:] if words[:1] == ["--"] else words


def run(arguments: argparse.Namespace) -> int:
    """Start the command and return its exit code (128 + the signal's number if one ended it, as shells have it)."""
    seed = launch.choose_seed(arguments.seed)
    if arguments.seed is None:
        tell(f"the script's own seed is in force; where it sets none, it is {seed}")
    if arguments.result is not None:
        arguments.result.unlink(missing_ok=True)  # of an earlier run: results of several fits are put together
    with tempfile.TemporaryDirectory(prefix="repro-callbacks-") as state:
        settings = Settings(
            start_seed=arguments.seeds.get("init", seed),
            seed=arguments.seed,
            seeds=arguments.seeds,
            deterministic=arguments.deterministic,
            fingerprint=None if arguments.fingerprint is None else arguments.fingerprint.absolute(),
            result=None if arguments.result is None else arguments.result.absolute(),
            state=Path(state),
        )
        try:
            code = start(command_of(arguments), settings)
        except (launch.CannotRun, ValueError) as error:
            tell(str(error))
            return 2
        if code == 0 and not (Path(state) / SEEN).exists():
            tell(NO_TRAINER)
    return code


NO_TRAINER = (
    "no Lightning Trainer ran under our control. Either the command trains without Lightning (use set_determinism and "
    f"keyed in the script), or it runs a Python that has no repro-callbacks (it is installed for {sys.executable})"
)


def start(command: list[str], settings: Settings) -> int:
    """Run a command in the foreground: its terminal, its output, the signals that are sent to us."""
    env = launch.environment(settings)
    process = subprocess.Popen(launch.resolve(command, env["PATH"]), env=env, preexec_fn=launch.die_with_parent())

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    # Ctrl-C in a terminal reaches the command by itself; we wait for it to end as it sees fit
    interrupt: Any = signal.SIG_IGN if sys.stdin is not None and sys.stdin.isatty() else forward
    handlers: dict[int, Any] = {signal.SIGINT: interrupt, signal.SIGTERM: forward, signal.SIGHUP: forward}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def tell(message: str) -> None:
    """Say something beside the command's own output."""
    print(f"repro-callbacks: {message}", file=sys.stderr, flush=True)
