"""One run of a training command under a circumstance: plainly, with something varied, or killed and resumed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from repro_callbacks.callbacks.settings import SEEN, STOPPED, Settings
from repro_callbacks.command import launch
from repro_callbacks.command.launch import CannotRun
from repro_callbacks.command.run import NO_TRAINER

LOG: Final = "log.txt"
FINGERPRINT: Final = "fingerprint.jsonl"
RESULT: Final = "result.json"
_LOG_LINES: Final = 15


@dataclass(frozen=True)
class Circumstance:
    """What is special in a run.

    Args:
        name: What it is called, and its folder too.
        num_workers: The number of workers of every loader; ``None``: the script's own.
        environ: Environment variables.
        resume_at: When it is killed and resumed: a share of the steps, above 0 and below 1, or a step.
    """

    name: str
    num_workers: int | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    resume_at: float | int | None = None


@dataclass
class Trial:
    """A run that has ended.

    Attributes:
        circumstance: What was special in it.
        folder: Its log, its fingerprints and its result.
        steps: For each fit, by its number from 1, how many optimizer steps it took.
        result: Its metrics and the digest of its final weights.
        killed: The fit and the step after which it was killed, if it was.
    """

    circumstance: Circumstance
    folder: Path
    steps: dict[int, int] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    killed: tuple[int, int] | None = None

    @property
    def fingerprint(self) -> Path:
        """Where the fingerprint of the first fit is; those of others stand beside it."""
        return self.folder / FINGERPRINT


def plan(
    runs: int = 2,
    vary: Mapping[str, Sequence[object]] | None = None,
    resume_at: Sequence[float | int | str] = (),
) -> list[Circumstance]:
    """Return the circumstances of a verification; the first is what the others are compared with.

    Args:
        runs: How many times it runs with nothing varied, 1 or more.
        vary: What is varied, one at a time: ``num_workers``, or the name of an environment variable in capitals.
        resume_at: Where runs are killed and resumed: ``"50%"``, ``0.5``, or a step such as ``120``.

    Raises:
        ValueError: If a value is not allowed, or if there is nothing to compare.

    Example:
        >>> [one.name for one in plan(2, {"num_workers": [0, 2]}, ["50%"])]
        ['reference', 'repeat-1', 'num_workers=0', 'num_workers=2', 'resume-at-50%']
    """
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise ValueError(f"runs must be an integer, 1 or more, not {runs!r}")
    planned = [Circumstance("reference"), *(Circumstance(f"repeat-{number}") for number in range(1, runs))]
    for name, values in (vary or {}).items():
        planned += [_varied(name, value) for value in values]
    planned += [Circumstance(f"resume-at-{point}", resume_at=parse_point(point)) for point in resume_at]
    if len(planned) == 1:
        raise ValueError("there is nothing to compare with one run: give runs=2 or more, vary or resume_at")
    names = [one.name for one in planned]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is asked for twice")
    return planned


def parse_point(point: float | int | str) -> float | int:
    """Read where a run is killed: a share of its steps, or a step.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> parse_point("50%"), parse_point("120"), parse_point(0.25)
        (0.5, 120, 0.25)
    """
    value: float | int | None = None
    if isinstance(point, str):
        if re.fullmatch(r"\d+(\.\d+)?%", point):
            value = float(point[:-1]) / 100
        elif point.isdecimal():
            value = int(point)
    elif not isinstance(point, bool):
        value = point
    if value is None or not (value >= 1 if isinstance(value, int) else 0 < value < 1):
        raise ValueError(f"resume_at must be a share such as '50%' or a step such as 120, not {point!r}")
    return value


def _varied(name: str, value: object) -> Circumstance:
    if name == "num_workers":
        if not str(value).isdecimal():
            raise ValueError(f"num_workers must be an integer, 0 or more, not {value!r}")
        return Circumstance(f"num_workers={value}", num_workers=int(str(value)))
    if re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        folder = re.sub(r"[^\w.=-]", "_", f"{name}={value}")
        return Circumstance(folder, environ={name: str(value)})
    raise ValueError(f"vary takes num_workers or the name of an environment variable in capitals, not {name!r}")


def perform(
    trial: Trial,
    command: Sequence[str],
    settings: Settings,
    steps: Mapping[int, int],
    watch: Callable[[Path], None],
    timeout: float | None = None,
) -> None:
    """Run a trial to its end.

    Args:
        trial: What is run; what came out is written into it.
        command: The training command.
        settings: What is common to all trials.
        steps: The steps of each fit of the reference, to find where to kill.
        watch: Called some times a second with the folder in which the progress is told.
        timeout: Seconds for one start of the command.

    Raises:
        CannotRun: If the command fails, is not found, or does not train with Lightning.
    """
    trial.folder.mkdir(parents=True)
    settings = replace(
        settings,
        num_workers=trial.circumstance.num_workers,
        fingerprint=trial.fingerprint,
        result=trial.folder / RESULT,
        state=trial.folder / "state",
    )
    point = trial.circumstance.resume_at
    if point is not None:
        fit, step = _where(steps, point)
        settings = replace(settings, stop=(fit, step), checkpoint=trial.folder / "resume.ckpt")
        code = start(trial, command, settings, watch, timeout)
        trial.killed = _killed(trial, settings, code)
        settings = replace(settings, stop=None, resume=fit, state=trial.folder / "state-resumed")
    code = start(trial, command, settings, watch, timeout)
    if code != 0:
        raise CannotRun(f"{trial.circumstance.name} ended with exit code {code}{tail(trial)}")
    assert settings.state is not None
    _read(trial, settings.state)
    for state in trial.folder.glob("state*"):
        shutil.rmtree(state)


def start(
    trial: Trial,
    command: Sequence[str],
    settings: Settings,
    watch: Callable[[Path], None],
    timeout: float | None,
) -> int:
    """Start the command once under a trial's circumstance, wait for its end and return its exit code."""
    assert settings.state is not None
    state = settings.state
    state.mkdir()
    env = launch.environment(settings) | dict(trial.circumstance.environ)
    return launch.Child(command, env, trial.folder / LOG).wait(lambda: watch(state), timeout)


def _where(steps: Mapping[int, int], point: float | int) -> tuple[int, int]:
    """Return the fit and the step at which to kill: in the longest fit, never after its last step."""
    fit = max(steps, key=lambda number: (steps[number], -number))
    step = point if isinstance(point, int) else max(1, round(point * steps[fit]))
    if step >= steps[fit]:
        raise CannotRun(f"the run can't be killed after step {step}: the fit has {steps[fit]} steps in all")
    return fit, step


def _killed(trial: Trial, settings: Settings, code: int) -> tuple[int, int]:
    assert settings.state is not None
    assert settings.stop is not None
    told = settings.state / STOPPED
    if not told.exists():
        fit, step = settings.stop
        raise CannotRun(
            f"{trial.circumstance.name} was to be killed after step {step} of fit {fit}, and ended before it with exit "
            f"code {code}{tail(trial)}"
        )
    where = json.loads(told.read_text())
    return where["fit"], where["step"]


def _read(trial: Trial, state: Path) -> None:
    fits = [json.loads(file.read_text()) for file in state.glob("fit-*.json")]
    trial.steps = {fit["fit"]: fit["steps"] for fit in sorted(fits, key=lambda fit: int(fit["fit"]))}
    if not trial.steps:
        reason = "a Trainer ran, and no fit came to its end" if (state / SEEN).exists() else NO_TRAINER
        raise CannotRun(f"{trial.circumstance.name}: {reason}{tail(trial)}")
    trial.result = json.loads((trial.folder / RESULT).read_text())


def tail(trial: Trial) -> str:
    """Return the end of the log, for an error."""
    log = trial.folder / LOG
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return f"; the end of {log}:\n" + "\n".join(f"    {line}" for line in lines[-_LOG_LINES:])
