"""What an audit says: findings, and the report that holds them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

Level: TypeAlias = Literal["error", "warning", "note"]

LEVELS: Final[dict[Level, str]] = {
    "error": "can't be deterministic as it stands",
    "warning": "can't be deterministic under the condition that is named",
    "note": "deterministic, as long as the condition that is named holds",
}
"""From worst to least, and what each means."""


@dataclass(frozen=True)
class Finding:
    """One thing in a model or pipeline that is not deterministic by itself.

    Attributes:
        level: One of :data:`LEVELS`.
        where: What it is found in, as a path: ``"encoder.pool (AvgPool3d)"``.
        what: What is not deterministic, and when.
        instead: What to use or do instead.
        source: Where that is known from.
    """

    level: Level
    where: str
    what: str
    instead: str
    source: str = ""

    def __str__(self) -> str:
        head = f"{self.level}: {self.where}: {self.what}"
        return "\n".join(
            textwrap.wrap(head, 110)
            + textwrap.wrap(self.instead, 110, initial_indent="    instead: ", subsequent_indent="    ")
        )


@dataclass(frozen=True)
class Report:
    """The findings of an audit, worst first. True if there is none that says that something can't be deterministic.

    Example:
        >>> bool(Report([Finding("note", "loader", "loads in threads", "load in processes")]))
        True
        >>> len(Report([]))
        0
    """

    findings: tuple[Finding, ...]

    def __init__(self, findings: Iterable[Finding]) -> None:
        order = list(LEVELS)
        unique = dict.fromkeys(findings)
        object.__setattr__(self, "findings", tuple(sorted(unique, key=lambda found: order.index(found.level))))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: int) -> Finding:
        return self.findings[index]

    def __bool__(self) -> bool:
        return all(found.level == "note" for found in self.findings)

    def __str__(self) -> str:
        if not self.findings:
            return "nothing found that is known not to be deterministic"
        return "\n".join(map(str, self.findings))

    def to_json(self) -> str:
        """Return the findings as a JSON list."""
        return json.dumps([asdict(found) for found in self.findings], indent=2, ensure_ascii=False) + "\n"
