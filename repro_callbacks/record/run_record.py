"""``RunRecord``: what must be known to repeat a run, captured, kept, and compared."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from repro_callbacks import flags, keys
from repro_callbacks.record import environment, repository
from repro_callbacks.record.differences import Differences, Scalar, compare

SCHEMA: Final = 1
"""The version of what a record holds. It grows when a field changes its meaning, not when one is added."""


@dataclass(frozen=True)
class RunRecord:
    """What must be known to repeat a run. Make one with :meth:`capture`; it reads, and changes nothing.

    Attributes:
        seed: The base seed, 0 to 2³²-1; None if nothing was seeded.
        seeds: The seed of each purpose.
        initial_weights: A digest of the weights that the training started from.
        flags: Every determinism switch, as torch and Python report it, with the thread counts and ``PYTHONHASHSEED``
            (see :func:`repro_callbacks.flags.read`).
        versions: Of Python, torch, CUDA, cuDNN, lightning, monai, numpy and others; None: not installed.
        build: How torch and NumPy were built, where that changes kernels.
        system: The operating system, its kernel, the C library, the architecture.
        hardware: The CPU, the instructions that are used on it, the accelerators.
        environment: The environment variables that can change bits and are set.
        code: ``commit``, ``dirty``, ``changes`` (a digest of what isn't committed) and ``repository``.
        command: The command line.
        extra: What the caller added.
        schema: The version of this layout.
        unknown: Fields of a newer version, kept as they are.

    Example:
        >>> record = RunRecord.capture(seed=3407)
        >>> record.diff(RunRecord.from_dict(record.to_dict()))
        []
        >>> print(RunRecord.capture(seed=3407).diff(RunRecord.capture(seed=1))[0])
        the seed is 3407 here and 1 there: can change bits
    """

    seed: int | None = None
    seeds: dict[str, int] = field(default_factory=dict)
    initial_weights: str | None = None
    flags: dict[str, Scalar] = field(default_factory=dict)
    versions: dict[str, Scalar] = field(default_factory=dict)
    build: dict[str, Scalar] = field(default_factory=dict)
    system: dict[str, Scalar] = field(default_factory=dict)
    hardware: dict[str, Scalar] = field(default_factory=dict)
    environment: dict[str, Scalar] = field(default_factory=dict)
    code: dict[str, Scalar] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    extra: dict[str, Scalar] = field(default_factory=dict)
    schema: int = SCHEMA
    unknown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def capture(
        cls,
        seed: int | None = None,
        seeds: Mapping[str, int] | None = None,
        initial_weights: str | None = None,
        extra: Mapping[str, Scalar] | None = None,
    ) -> RunRecord:
        """Read this process and return its record. Takes some ms, at the first call with git some more.

        Args:
            seed: The base seed, 0 to 2³²-1.
            seeds: Seeds by purpose.
            initial_weights: A digest of the weights that the training starts from.
            extra: Anything else that is worth keeping: strings, numbers, bools and None.

        Raises:
            TypeError, ValueError: If a seed is refused by :func:`~repro_callbacks.keys.check_seed`, or a value of
                ``extra`` isn't a scalar.
        """
        return cls(
            seed=None if seed is None else keys.check_seed(seed),
            seeds={name: keys.check_seed(value, f"seeds[{name!r}]") for name, value in (seeds or {}).items()},
            initial_weights=initial_weights,
            flags={name: _plain(value) for name, value in flags.read().items()},
            versions=dict(environment.versions()),
            build=dict(environment.build()),
            system=dict(environment.system()),
            hardware=dict(environment.hardware()),
            environment=dict(environment.variables()),
            code=dict(repository.read(repository.script_directory())),
            command=list(sys.orig_argv),
            extra={name: _scalar(value, f"extra[{name!r}]") for name, value in (extra or {}).items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as nested plain values, for JSON and for a checkpoint loaded with ``weights_only=True``."""
        plain = dataclasses.asdict(self)
        return {**plain.pop("unknown"), **plain}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """Make a record of what :meth:`to_dict` returned, also in another version of this library.

        Fields that this version doesn't know are kept, and written again.

        Raises:
            TypeError: If ``values`` or one of its fields is of a wrong type.
            ValueError: If it isn't a record.

        Example:
            >>> RunRecord.from_dict({"learning_rate": 0.1})
            Traceback (most recent call last):
            ...
            ValueError: not a run record: it has no field 'schema', only 'learning_rate'
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a run record is a mapping of fields, not {values!r} of type {type(values).__name__}")
        if "schema" not in values:
            found = ", ".join(repr(name) for name in values) or "nothing"
            raise ValueError(f"not a run record: it has no field 'schema', only {found[:200]}")
        known = {known.name: known for known in dataclasses.fields(cls) if known.name != "unknown"}
        given = {name: _checked(name, str(known[name].type), values[name]) for name in known if name in values}
        return cls(**given, unknown={name: value for name, value in values.items() if name not in known})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, whole or not at all. An older file of that name is replaced.

        Raises:
            OSError: If the folder can't be made or written to.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        written = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with written.open("x", encoding="utf-8") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            written.replace(target)
        finally:
            written.unlink(missing_ok=True)  # it is there only if something failed

    def to_json(self) -> str:
        """Return the record as the text that :meth:`save` writes."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunRecord:
        """Read what :meth:`save` wrote.

        Raises:
            OSError: If the file can't be read.
            ValueError: If it isn't JSON or isn't a record; the message names the file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} can't be read as a run record: {error}") from error

    def flat(self) -> dict[str, Scalar]:
        """Return the record as one level of names and scalars, as loggers want it.

        Example:
            >>> flat = RunRecord(versions={"torch": "2.13.0"}, command=["python", "my script.py"]).flat()
            >>> flat["versions/torch"], flat["command"]
            ('2.13.0', "python 'my script.py'")
        """
        return dict(_flatten("", self.to_dict()))

    def diff(self, other: RunRecord) -> Differences:
        """Return in what this record ("here") and another ("there") differ, field by field.

        Example:
            >>> here, there = (RunRecord(versions={"torch": torch}) for torch in ("2.13.0", "2.12.0"))
            >>> print(here.diff(there)[0])
            torch is 2.13.0 here and 2.12.0 there: can change bits
        """
        return compare(self.flat(), other.flat())


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Scalar]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}{name}/", value)
        else:
            yield prefix + name, shlex.join(map(str, value)) if isinstance(value, list) else value


def _scalar(value: object, name: str) -> Scalar:
    """Return a scalar as Python's own type, NumPy's numbers too."""
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or type(plain) in (bool, int, float, str):
        return plain  # type: ignore[return-value]
    raise TypeError(f"{name} must be a string, a number, a bool or None, not {value!r} of type {type(value).__name__}")


def _plain(value: object) -> Scalar:
    """Return a flag as a scalar; one that is none (a dtype, a tuple) in words."""
    return value if value is None or type(value) in (bool, int, float, str) else str(value)  # type: ignore[return-value]


def _checked(name: str, expected: str, value: object) -> Any:
    """Return a field of a record that was read, if it is of the type that its annotation names."""
    if name == "schema":
        fits = type(value) is int and value >= 1
    elif name == "seed":
        return None if value is None else keys.check_seed(value)
    elif name == "initial_weights":
        fits = value is None or isinstance(value, str)
    elif name == "command":
        fits = isinstance(value, list) and all(isinstance(word, str) for word in value)
    else:
        fits = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        if fits:
            return dict(value)  # type: ignore[call-overload]
    if not fits:
        raise TypeError(f"field {name!r} of a run record is {expected}, not {value!r} of type {type(value).__name__}")
    return list(value) if isinstance(value, list) else value
