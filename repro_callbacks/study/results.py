"""What a training hands back: a score, or names and values. Read strictly: what is not understood is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

RESERVED: Final = frozenset(
    {"seed", "variant", "vary", "status", "seconds", "attempts", "error", "check", "case"}
    | {f"seed_{purpose}" for purpose in ("order", "augment", "init", "step")}
)
"""The columns of the tables that no metric can be named after."""


class ResultError(ValueError):
    """A training ended, but what it handed back is no result."""


@dataclass(frozen=True)
class Result:
    """What a training handed back.

    Attributes:
        metrics: Name to value; the name ``""`` stands for a bare number.
        weights: A digest of the final weights, if it gave one.
        cases: Case to (metric to value), if it gave any.
    """

    metrics: Mapping[str, float]
    weights: str | None = None
    cases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def named(self, metric: str) -> Result:
        """Return the result with a bare number named, after a look at whether it holds a finite ``metric``.

        Raises:
            ResultError: If it doesn't.
        """
        metrics = {name or metric: value for name, value in self.metrics.items()}
        cases = {case: {name or metric: value for name, value in values.items()} for case, values in self.cases.items()}
        if metric not in metrics:
            found = ", ".join(sorted(metrics)) or "none at all"
            raise ResultError(f"the run gave no metric {metric!r}; it gave {found}")
        if not math.isfinite(metrics[metric]):
            raise ResultError(f"{metric} is {metrics[metric]}, which is no score")
        return Result(metrics, self.weights, cases)


def read(value: Any) -> Result:
    """Read what a function returned.

    Args:
        value: A number (a tensor or array of one element too), or a mapping of names to numbers. In a mapping,
            ``"weights"`` may hold a digest (a string) and ``"cases"`` a mapping of cases to a number or to a mapping
            of names to numbers.

    Raises:
        ResultError: If it is something else.

    Example:
        >>> read({"val_dice": 0.81, "weights": "3f9a", "cases": {"p1": 0.79, "p2": 0.83}}).metrics
        {'val_dice': 0.81}
    """
    if not isinstance(value, Mapping):
        return Result({"": _number(value, "what the function returned")})
    values = dict(value)
    weights, cases = values.pop("weights", None), values.pop("cases", None) or {}
    if not (weights is None or isinstance(weights, str)):
        raise ResultError(f"'weights' must be a digest, a string, not {weights!r:.80} of type {type(weights).__name__}")
    if not isinstance(cases, Mapping):
        raise ResultError(f"'cases' must map each case to its score, not be a {type(cases).__name__}")
    return Result(_numbers(values), weights, {str(case): _case(str(case), score) for case, score in cases.items()})


def read_file(path: Path) -> Result:
    """Read the file that ``repro-callbacks run`` leaves.

    Raises:
        ResultError: If it is not there or says nothing.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ResultError("the command ended without a result: no Lightning trainer ran a fit in it") from None
    return read({**content["metrics"], "weights": content.get("weights")})


def _case(case: str, score: Any) -> Mapping[str, float]:
    return _numbers(score) if isinstance(score, Mapping) else {"": _number(score, f"the score of case {case!r}")}


def _numbers(values: Mapping[Any, Any]) -> dict[str, float]:
    for name in values:
        if not isinstance(name, str) or not name or name in RESERVED:
            raise ResultError(f"a metric can't be named {name!r}")
    return {name: _number(value, name) for name, value in values.items()}


def _number(value: Any, name: str) -> float:
    if not isinstance(value, str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # the last from a tensor of several elements
            pass
    raise ResultError(f"{name} must be a number, not {value!r:.80} of type {type(value).__name__}")
