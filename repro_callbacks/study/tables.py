"""The tables of a study, made of its journal: always whole, always in the same order, whoever ended first."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from repro_callbacks.keys import PURPOSES
from repro_callbacks.study.journal import Entry, Journal
from repro_callbacks.study.task import write_atomically

RUNS_TABLE: Final = "runs.csv"
CASES_TABLE: Final = "cases.csv"
_TEXTS: Final = frozenset({"variant", "vary", "status", "weights", "error", "check", "case"})
_SEEDS: Final = tuple(f"seed_{purpose}" for purpose in PURPOSES)
AGAIN: Final = "-again"


def write(journal: Journal) -> None:
    """Write ``runs.csv``, one row for each run, and ``cases.csv`` if runs gave cases.

    Floats are written so that reading them gives the same bits.
    """
    runs = in_order(journal)
    write_atomically(journal.out / RUNS_TABLE, _csv(*_runs_table(journal, runs)))
    if any(entry["cases"] for entry in runs):
        write_atomically(journal.out / CASES_TABLE, _csv(*_cases_table(journal, runs)))


def read(path: Path) -> Any:
    """Read a table as a pandas DataFrame, floats to the bit."""
    import pandas as pd

    # pandas' own parser was not exact in every version that is allowed.
    with path.open(newline="", encoding="utf-8") as file:
        columns, *rows = csv.reader(file)
    values = zip(*rows, strict=True) if rows else ([] for _ in columns)
    return pd.DataFrame({name: list(map(_parser(name), column)) for name, column in zip(columns, values, strict=True)})


def in_order(journal: Journal) -> list[Entry]:
    """Return the runs that have ended, without the repeated ones: by seed, variant, and what was varied."""
    variants, vary = list(journal.identity["targets"]), journal.identity["vary"]
    return sorted(
        (entry for entry in journal.final() if not entry["check"]),
        key=lambda entry: (entry["seed"], variants.index(entry["variant"]), vary.index(entry["vary"])),
    )


def check_of(journal: Journal, entry: Entry) -> str:
    """Say what the repetition of a run showed: ``"same"``, ``"differs"``, ``"failed"``, or ``""`` if there is none."""
    again = journal.last(repeated(entry["name"]))
    if again is None or not again["final"]:
        return ""
    if "failed" in (again["status"], entry["status"]):
        return "" if entry["status"] == "failed" else "failed"
    # By their text, which is exact for floats and holds NaN for the same as NaN.
    same = all(str(again[key]) == str(entry[key]) for key in ("metrics", "weights", "cases"))
    return "same" if same else "differs"


def repeated(name: str) -> str:
    """Return the name of the run that repeats another."""
    return name + AGAIN


def _parser(column: str) -> Callable[[str], Any]:
    if column in _TEXTS:
        return str
    if column in ("seed", "attempts") or column in _SEEDS:
        return int
    return lambda text: float(text or "nan")


def _runs_table(journal: Journal, runs: Sequence[Entry]) -> tuple[list[str], Iterable[list[Any]]]:
    metric = journal.identity["metric"]
    metrics = [metric, *sorted({name for entry in runs for name in entry["metrics"]} - {metric})]
    variants = list(journal.identity["targets"]) != [""]
    purposes = PURPOSES if journal.identity["vary"] != ["all"] else ()
    weights = any(entry["weights"] for entry in runs)
    columns = [
        "seed",
        *["variant"][: int(variants)],
        *["vary"][: len(purposes)],
        *(f"seed_{purpose}" for purpose in purposes),
        "status",
        *metrics,
        *["weights"][: int(weights)],
        "seconds",
        "attempts",
        "error",
        "check",
    ]

    def rows() -> Iterable[list[Any]]:
        for entry in runs:
            values = {
                **{f"seed_{purpose}": entry["seeds"][purpose] for purpose in purposes},
                **entry["metrics"],
                **{key: entry[key] for key in ("seed", "variant", "vary", "status", "weights", "seconds", "error")},
                "attempts": entry["attempt"],
                "check": check_of(journal, entry),
            }
            yield [values.get(column) for column in columns]

    return columns, rows()


def _cases_table(journal: Journal, runs: Sequence[Entry]) -> tuple[list[str], Iterable[list[Any]]]:
    metrics = sorted({name for entry in runs for values in entry["cases"].values() for name in values})
    keys = ["seed", "variant", "vary"]
    keys = keys[: 2 if list(journal.identity["targets"]) != [""] else 1] + (
        ["vary"] if journal.identity["vary"] != ["all"] else []
    )
    rows = (
        [*(entry[key] for key in keys), case, *(values.get(name) for name in metrics)]
        for entry in runs
        for case, values in entry["cases"].items()
    )
    return [*keys, "case", *metrics], rows


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([repr(value) if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue().encode()
