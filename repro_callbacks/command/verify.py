"""``verify``: runs a training several times, under the circumstances asked for, and compares the runs.

Each run is a fresh process with everything in force before its interpreter starts (see :mod:`.launch`); the proof is
the comparison of the fingerprints of every step.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from repro_callbacks import keys
from repro_callbacks.callbacks.settings import Settings, fingerprint_path, write_json
from repro_callbacks.command import call, display, launch, trials
from repro_callbacks.command.launch import CannotRun
from repro_callbacks.command.run import add_command, add_settings, command_of, tell
from repro_callbacks.command.trials import Circumstance, Trial
from repro_callbacks.command.zoom import can_zoom
from repro_callbacks.command.zoom import zoom as zoom_in

if TYPE_CHECKING:
    from repro_callbacks.fingerprint.compare import Divergence

__all__ = ["CannotRun", "Verification", "verify"]

SUMMARY = "verification.json"


@dataclass
class Verification:
    """What :func:`verify` found. It is true if every run was equal to the first.

    Attributes:
        folder: Where the log, the fingerprints and the result of every run are kept.
        trials: The runs, the reference first.
        divergences: For each run that differs from the reference, by name, the first divergence in words.
        operators: For those of them whose step computed other bits from the same inputs, the first operator that did.
        notes: What was seen besides, and is no divergence.
    """

    folder: Path
    trials: list[Trial] = field(default_factory=list)
    divergences: dict[str, str] = field(default_factory=dict)
    operators: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether every run was equal to the first, bit for bit."""
        return not self.divergences

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        others = [trial.circumstance.name for trial in self.trials[1:]]
        steps = sum(self.trials[0].steps.values()) if self.trials else 0
        if self.equal:
            first = f"equal: {len(self.trials)} runs of {steps} steps agree bit for bit: reference, {', '.join(others)}"
        else:
            first = f"different: {len(self.divergences)} of {len(others)} runs differ from the reference"
        found = [
            "\n".join(filter(None, [f"{name}: {divergence}", self.operators.get(name)]))
            for name, divergence in self.divergences.items()
        ]
        if found:
            found.append("A is the reference, B the run that is named.")
        return "\n".join([first, *found, *self.notes, f"kept in {self.folder}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "equal": self.equal,
            "trials": [
                {
                    "name": trial.circumstance.name,
                    "steps": trial.steps,
                    "killed_after": trial.killed,
                    "divergence": self.divergences.get(trial.circumstance.name),
                    "operator": self.operators.get(trial.circumstance.name),
                    **trial.result,
                }
                for trial in self.trials
            ],
            "notes": self.notes,
        }


def verify(
    fit: Callable[[], object] | Callable[[Any], object] | Sequence[str],
    *,
    runs: int = 2,
    vary: Mapping[str, Sequence[object]] | None = None,
    resume_at: Sequence[float | int | str] | float | int | str = (),
    seed: int | None = None,
    seeds: Mapping[str, int] | None = None,
    deterministic: bool | Literal["warn"] | None = None,
    out: str | Path | None = None,
    timeout: float | None = None,
    zoom: bool = True,
    show: bool = False,
) -> Verification:
    """Run a training several times in fresh processes, and prove the runs equal or name the first divergence.

    Args:
        fit: A function that trains with a Lightning Trainer, or a command such as ``["python", "train.py"]``. A
            function takes nothing, and the callbacks are added to its Trainers; or it takes one callback, to be given
            to a Trainer.
        runs: How many times it runs with nothing varied.
        vary: What is varied, one at a time: ``{"num_workers": [0, 2]}``, or the name of an environment variable in
            capitals.
        resume_at: Where a run is killed with ``kill -9`` and resumed: ``"50%"`` of the steps of its longest fit, or a
            step such as ``120``; one of them or several.
        seed: Wins over the seed that the training sets; ``None``: its own, and one that is drawn where it sets none.
        seeds: A seed of its own for some purposes.
        deterministic: As :class:`~repro_callbacks.Determinism` takes it.
        out: A folder that does not exist yet, for everything that is kept. Default: one in ``repro-verify``, named by
            the time.
        timeout: Seconds that one run may take.
        zoom: Whether to run a step that computes other bits from the same inputs again, operator by operator, in both
            settings, to name the first operator that does: up to five more starts of the training.
        show: Whether to show the progress on standard error.

    Raises:
        CannotRun: If a run fails, or does not train with Lightning.
        ValueError, TypeError: If an argument is not allowed.
        FileExistsError: If ``out`` exists.

    Example:
        >>> verify(["python", "train.py"], runs=1)
        Traceback (most recent call last):
        ...
        ValueError: there is nothing to compare with one run: give runs=2 or more, vary or resume_at
    """
    points = [resume_at] if isinstance(resume_at, str | int | float) else resume_at
    circumstances = trials.plan(runs, vary, points)
    seed = None if seed is None else keys.check_seed(seed)
    start = launch.choose_seed(seed)
    own = dict(seeds or {})
    keys.check_seeds(0, own)
    settings = Settings(own.get("init", start), seed=seed, seeds=own, deterministic=deterministic, log=False)
    folder = _folder(out)
    if callable(fit):
        call.write(fit, folder / "fit.pickle")
        command = [sys.executable, "-m", call.__name__, str(folder / "fit.pickle")]
    else:
        command = list(fit)
    verification = Verification(folder)
    with display.choose() if show else display.Silent() as shown:
        for circumstance in circumstances:
            _try(verification, circumstance, command, settings, shown, timeout, zoom)
    return verification


def _folder(out: str | Path | None) -> Path:
    folder = Path("repro-verify", datetime.now().strftime("%Y%m%d-%H%M%S-%f")) if out is None else Path(out)
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder; give each verification a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _try(
    verification: Verification,
    circumstance: Circumstance,
    command: Sequence[str],
    settings: Settings,
    shown: display.Display,
    timeout: float | None,
    zoom: bool,
) -> None:
    trial = Trial(circumstance, verification.folder / circumstance.name)
    steps = verification.trials[0].steps if verification.trials else {}
    shown.begin(circumstance.name, sum(steps.values()) or None)
    try:
        trials.perform(trial, command, settings, steps, shown.watch, timeout)
    except BaseException as error:
        shown.end(circumstance.name, "stopped" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    outcome, parting = "reference", None
    if verification.trials:
        divergence, parting = _divergence(verification.trials[0], trial)
        if divergence is not None:
            verification.divergences[circumstance.name] = divergence
        verification.notes += _notes(verification.trials[0], trial)
        outcome = "equal" if divergence is None else "different"
    verification.trials.append(trial)
    _save(verification)
    shown.end(circumstance.name, outcome)
    if zoom and parting is not None and can_zoom(trial, parting[1]):
        _zoom(verification, trial, *parting, command, settings, shown, timeout)


def _zoom(
    verification: Verification,
    trial: Trial,
    fit: int,
    divergence: Divergence,
    command: Sequence[str],
    settings: Settings,
    shown: display.Display,
    timeout: float | None,
) -> None:
    """Look for the operator. That it can't be found does not make the divergence less true: it is noted."""
    name = trial.circumstance.name
    row = f"{name}, operator by operator"
    shown.begin(row, None)
    outcome = "failed"
    try:
        told = zoom_in(verification.trials[0], trial, fit, divergence, command, settings, shown.watch, timeout)
        verification.operators[name] = told
        outcome = "found" if told.startswith("Operator") else "not found"
    except CannotRun as error:
        verification.notes.append(f"note: {name}: the operator could not be looked for: {error}")
    finally:
        shown.end(row, outcome)
        _save(verification)


def _save(verification: Verification) -> None:
    write_json(verification.folder / SUMMARY, verification.to_dict())


def _divergence(reference: Trial, trial: Trial) -> tuple[str | None, tuple[int, Divergence] | None]:
    """Return the first divergence of a run from the reference in words, and as its fit and what was found there."""
    from repro_callbacks.fingerprint import compare
    from repro_callbacks.fingerprint.store import rank_path

    if trial.steps.keys() != reference.steps.keys():
        told = f"the reference has {len(reference.steps)} fits that came to their end, this run has {len(trial.steps)}"
        return told, None
    for fit in reference.steps:
        ours, theirs = (rank_path(fingerprint_path(one.fingerprint, fit), 0) for one in (reference, trial))
        comparison = compare(ours, theirs)
        if comparison.divergence is not None:
            told = (f"fit {fit}: " if len(reference.steps) > 1 else "") + str(comparison)
            return told, (fit, comparison.divergence)
    if trial.result["weights"] != reference.result["weights"]:
        return "every training step is equal, and the weights after the fit are not", None
    return None, None


def _notes(reference: Trial, trial: Trial) -> list[str]:
    """Tell metrics that differ: after equal training, only what is measured without a seed, or the time, can."""
    ours, theirs = reference.result["metrics"], trial.result["metrics"]
    return [
        f"note: {trial.circumstance.name}: metric {name} is {theirs.get(name)}, and {ours.get(name)} in the reference"
        for name in sorted({*ours, *theirs})
        if not _same(ours.get(name, math.nan), theirs.get(name, math.nan))
    ]


def _same(one: float, other: float) -> bool:
    return struct.pack("<d", one) == struct.pack("<d", other) or (math.isnan(one) and math.isnan(other))


# -- the command ------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``verify``."""
    add_settings(parser)
    parser.add_argument("--runs", type=int, default=2, help="how many times it runs with nothing varied (default: 2)")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="num_workers=0,2",
        help="run with each of these values too: num_workers, or an environment variable (OMP_NUM_THREADS=1,2)",
    )
    parser.add_argument(
        "--resume-at",
        action="append",
        default=[],
        metavar="50%",
        help="kill a run there, with a checkpoint, and resume it: a share of its steps, or a step; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where everything is kept (default: repro-verify/<time>)"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="how long one run may take")
    parser.add_argument(
        "--no-zoom",
        dest="zoom",
        action="store_false",
        help="do not run a step that differs again, operator by operator, to name the first that does",
    )
    add_command(parser)


def run(arguments: argparse.Namespace) -> int:
    """Verify, tell what was found, and return 0 (equal), 1 (different), 2 (could not run) or 130 (stopped)."""
    try:
        vary = dict(_parse_vary(text) for text in arguments.vary)
        command = command_of(arguments)
        launch.resolve(command, launch.environment(Settings(start_seed=0))["PATH"])
        folder = _folder(arguments.out)
    except (CannotRun, ValueError, FileExistsError) as error:
        tell(str(error))
        return 2
    print(f"repro-callbacks verify: {shlex.join(command)}", file=sys.stderr)
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        verification = verify(
            command,
            runs=arguments.runs,
            vary=vary,
            resume_at=[point for text in arguments.resume_at for point in text.split(",")],
            seed=arguments.seed,
            seeds=arguments.seeds,
            deterministic=arguments.deterministic,
            out=folder,
            timeout=arguments.timeout,
            zoom=arguments.zoom,
            show=True,
        )
    except (CannotRun, ValueError) as error:
        tell(f"could not verify: {error}")
        return 2
    except KeyboardInterrupt:
        tell(f"stopped; all processes have ended. {_kept(folder)}")
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(verification)
    return 0 if verification.equal else 1


def _parse_vary(text: str) -> tuple[str, list[str]]:
    name, sign, values = text.partition("=")
    if not sign or not values:
        raise ValueError(f"--vary takes a name and values, such as num_workers=0,2, not {text!r}")
    return name, values.split(",")


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _kept(folder: Path) -> str:
    whole = [entry.name for entry in sorted(folder.iterdir()) if (entry / trials.RESULT).exists()]
    runs = ", ".join(whole) if whole else "no run had ended"
    return f"Kept in {folder}: {runs}; of the one that was stopped, the log and the fingerprint up to its last step"
