"""Makes a PyTorch Lightning or MONAI training repeatable bit for bit, proves it, and finds where it breaks.

Each public name is imported on first use, so that ``import repro_callbacks`` imports neither Lightning nor MONAI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repro_callbacks.audit import audit
    from repro_callbacks.callbacks import Determinism, Fingerprint
    from repro_callbacks.command.verify import verify
    from repro_callbacks.determinism import get_seed, set_determinism
    from repro_callbacks.fingerprint.compare import compare
    from repro_callbacks.handlers import DeterminismHandler, FingerprintHandler
    from repro_callbacks.loading import keyed, worker_init_fn
    from repro_callbacks.record import RunRecord
    from repro_callbacks.study import SeedStudy

__version__ = "0.1.0"

_HOMES = {
    "Determinism": "repro_callbacks.callbacks",
    "Fingerprint": "repro_callbacks.callbacks",
    "set_determinism": "repro_callbacks.determinism",
    "get_seed": "repro_callbacks.determinism",
    "keyed": "repro_callbacks.loading",
    "worker_init_fn": "repro_callbacks.loading",
    "DeterminismHandler": "repro_callbacks.handlers",
    "FingerprintHandler": "repro_callbacks.handlers",
    "compare": "repro_callbacks.fingerprint",
    "audit": "repro_callbacks.audit",
    "verify": "repro_callbacks.command.verify",
    "SeedStudy": "repro_callbacks.study",
    "RunRecord": "repro_callbacks.record",
}

__all__ = [
    "Determinism",
    "DeterminismHandler",
    "Fingerprint",
    "FingerprintHandler",
    "RunRecord",
    "SeedStudy",
    "audit",
    "compare",
    "get_seed",
    "keyed",
    "set_determinism",
    "verify",
    "worker_init_fn",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    # `audit` is a room, too, which stands here by its name once it is imported: the room itself can be called.
    value = home if name == "audit" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
