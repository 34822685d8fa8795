"""What ``repro-callbacks run`` asks of the processes below it, carried by environment variables.

Environment variables reach every process that a training starts: the ranks that Lightning launches by running the
script again, spawned workers, and Python below a shell script or ``torchrun``. Nothing heavy is imported here, since
every Python process below ``run`` reads them when it starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from repro_callbacks import keys

PREFIX: Final = "REPRO_CALLBACKS_"
IN_FORCE: Final = PREFIX + "RUN"
SEEN: Final = "seen"
"""In the state folder: a trainer was started under our control."""
PROGRESS: Final = "progress"
"""In the state folder: the fit, and how many optimizer steps it has done."""
STOPPED: Final = "stopped.json"
"""In the state folder: the fit and the step after which the process killed itself."""

_started = False
NAMES: Final = frozenset(
    PREFIX + name
    for name in (
        "RUN",
        "START_SEED",
        "SEED",
        "SEEDS",
        "DETERMINISTIC",
        "NUM_WORKERS",
        "FINGERPRINT",
        "RESULT",
        "STATE",
        "STOP",
        "RESUME",
        "CHECKPOINT",
        "ZOOM",
        "TRACE",
        "LOG",
    )
)
"""The environment variables that carry :class:`Settings`."""

_DETERMINISTIC: Final[dict[str, bool | Literal["warn"]]] = {"true": True, "warn": "warn", "false": False}


@dataclass(frozen=True)
class Settings:
    """What is to be in force below ``run``.

    Args:
        seed: The seed that was asked for, which wins over those that the script sets; ``None``: the script's own.
        start_seed: What the process-wide generators are seeded with before the script's first line.
        seeds: A seed of its own for some purposes (see :data:`repro_callbacks.keys.PURPOSES`).
        deterministic: As :class:`~repro_callbacks.Determinism` takes it; ``None``: not asked for, so True, and a
            script's own ``Determinism`` keeps what it has.
        num_workers: The number of workers of every loader; ``None``: the script's own.
        fingerprint: The file that the first fit's fingerprint goes to.
        result: The JSON file that the metrics and the digest of the final weights go to.
        state: A folder in which the trainers tell ``verify`` how far they are.
        stop: A fit (the first of the process is 1) and an optimizer step: when that step is done, a checkpoint is
            saved to ``checkpoint`` and the process kills itself.
        resume: The fit that goes on from ``checkpoint``.
        checkpoint: The checkpoint to save or to go on from.
        zoom: A fit, an epoch and a batch, both from 0: when that batch was trained, its operators are written to
            ``trace`` and the process kills itself. A fourth number is that of the operator whose outputs are kept.
        trace: The file for the operators of each rank, named by :func:`trace_path`.
        log: Whether the record goes to the script's loggers.

    Example:
        >>> settings = Settings(seed=3407, start_seed=3407, deterministic="warn")
        >>> settings.to_environment()["REPRO_CALLBACKS_SEED"]
        '3407'
        >>> Settings.from_environment(settings.to_environment()) == settings
        True
        >>> Settings.from_environment({}) is None
        True
    """

    start_seed: int
    seed: int | None = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    deterministic: bool | Literal["warn"] | None = None
    num_workers: int | None = None
    fingerprint: Path | None = None
    result: Path | None = None
    state: Path | None = None
    stop: tuple[int, int] | None = None
    resume: int | None = None
    checkpoint: Path | None = None
    zoom: tuple[int, ...] | None = None
    trace: Path | None = None
    log: bool = True

    def to_environment(self) -> dict[str, str]:
        """Write the settings as environment variables; one that is not set has none."""
        values = {
            "RUN": "1",
            "START_SEED": self.start_seed,
            "SEED": self.seed,
            "SEEDS": ",".join(f"{name}={seed}" for name, seed in self.seeds.items()) or None,
            "DETERMINISTIC": None if self.deterministic is None else str(self.deterministic).lower(),
            "NUM_WORKERS": self.num_workers,
            "FINGERPRINT": self.fingerprint,
            "RESULT": self.result,
            "STATE": self.state,
            "STOP": None if self.stop is None else f"{self.stop[0]}:{self.stop[1]}",
            "RESUME": self.resume,
            "CHECKPOINT": self.checkpoint,
            "ZOOM": None if self.zoom is None else ":".join(map(str, self.zoom)),
            "TRACE": self.trace,
            "LOG": None if self.log else 0,
        }
        return {PREFIX + name: str(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings | None:
        """Read the settings; ``None`` outside of ``run``.

        Raises:
            ValueError: If a variable holds what it can't.
        """
        if environ.get(IN_FORCE) != "1":
            return None
        given = {name.removeprefix(PREFIX): value for name, value in environ.items() if name.startswith(PREFIX)}
        fit, _, step = given.get("STOP", "").partition(":")
        return cls(
            start_seed=_integer(given, "START_SEED"),
            seed=_integer(given, "SEED") if "SEED" in given else None,
            seeds=parse_seeds(given.get("SEEDS", "")),
            deterministic=parse_deterministic(given["DETERMINISTIC"]) if "DETERMINISTIC" in given else None,
            num_workers=_integer(given, "NUM_WORKERS") if "NUM_WORKERS" in given else None,
            fingerprint=Path(given["FINGERPRINT"]) if "FINGERPRINT" in given else None,
            result=Path(given["RESULT"]) if "RESULT" in given else None,
            state=Path(given["STATE"]) if "STATE" in given else None,
            stop=(int(fit), int(step)) if fit else None,
            resume=_integer(given, "RESUME") if "RESUME" in given else None,
            checkpoint=Path(given["CHECKPOINT"]) if "CHECKPOINT" in given else None,
            zoom=tuple(map(int, given["ZOOM"].split(":"))) if "ZOOM" in given else None,
            trace=Path(given["TRACE"]) if "TRACE" in given else None,
            log=given.get("LOG") != "0",
        )


def mark_started() -> None:
    """Remember that this process was seeded before the script's first line."""
    global _started
    _started = True


def started() -> bool:
    """Say whether this process was seeded before the script's first line."""
    return _started


def parse_deterministic(text: str) -> bool | Literal["warn"]:
    """Read ``true``, ``warn`` or ``false``.

    Raises:
        ValueError: If it is none of them.
    """
    if text.lower() not in _DETERMINISTIC:
        raise ValueError(f"deterministic must be one of {', '.join(_DETERMINISTIC)}, not {text!r}")
    return _DETERMINISTIC[text.lower()]


def parse_seeds(text: str) -> dict[str, int]:
    """Read a seed for each of some purposes.

    Raises:
        ValueError: If a purpose is unknown, or a seed is not an integer from 0 to 2³²-1.

    Example:
        >>> parse_seeds("order=1,augment=2")
        {'order': 1, 'augment': 2}
    """
    seeds = {}
    for part in filter(None, text.split(",")):
        name, sign, value = part.partition("=")
        if not sign or not value.strip().isdecimal():
            raise ValueError(f"seeds must be written as order=1,augment=2 with integers, not {part!r}")
        seeds[name.strip()] = int(value)
    keys.check_seeds(0, seeds)
    return seeds


def parse_seed(text: str) -> int:
    """Read a seed.

    Raises:
        ValueError: If it is not an integer from 0 to 2³²-1.
    """
    try:
        return keys.check_seed(int(text))
    except ValueError:
        raise ValueError(f"seed must be an integer from 0 to {keys.MAX_SEED}, not {text!r}") from None


def _integer(given: Mapping[str, str], name: str) -> int:
    value = given.get(name, "")
    if not value.isdecimal():
        raise ValueError(f"{PREFIX}{name} must be an integer, not {value!r}; it is set by repro-callbacks run")
    return int(value)


def fingerprint_path(first: Path, fit: int) -> Path:
    """Return where a fit's fingerprint goes: the first fit's to ``first``, the others' beside it.

    Example:
        >>> [fingerprint_path(Path("run.jsonl"), fit).name for fit in (1, 2)]
        ['run.jsonl', 'run-fit2.jsonl']
    """
    return first if fit == 1 else first.with_name(f"{first.stem}-fit{fit}{first.suffix}")


def trace_path(path: Path, rank: int) -> Path:
    """Return where a rank's operators go.

    Example:
        >>> trace_path(Path("zoom/a.pt"), 1).name
        'a.rank1.pt'
    """
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, the whole file or nothing of it."""
    write_atomically(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, never finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)
