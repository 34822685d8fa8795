"""What must be known to repeat a run: :class:`RunRecord`, and how two of them differ."""

from __future__ import annotations

from repro_callbacks.record.differences import Difference, Differences
from repro_callbacks.record.run_record import RunRecord

__all__ = ["Difference", "Differences", "RunRecord"]
