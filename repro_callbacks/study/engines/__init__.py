"""Where runs are started: one small file for each engine behind one small interface.

``processes`` (this machine), ``debug`` (this very process), ``dask`` (a cluster) and ``slurm`` (through submitit). Each
brings a seed to a machine and leaves the rest to :class:`~repro_callbacks.study.launcher.Nursery`, so that a run is the
same whichever engine started it. Ray is not among them: joblib's backend for it hands results back only when all are
there, so a study could not be stopped without losing them.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

from repro_callbacks.study.engines.base import Engine, Site

ENGINES: Final = {
    "processes": ("repro_callbacks.study.engines.processes", "ProcessEngine"),
    "debug": ("repro_callbacks.study.engines.debug", "DebugEngine"),
    "dask": ("repro_callbacks.study.engines.dask", "DaskEngine"),
    "slurm": ("repro_callbacks.study.engines.slurm", "SlurmEngine"),
}

__all__ = ["ENGINES", "Engine", "Site", "make_engine"]


def make_engine(name: str, site: Site, **options: Any) -> Engine:
    """Start an engine.

    Args:
        name: A key of :data:`ENGINES`.
        site: What it runs, and where.
        options: The engine's own; see its class.

    Raises:
        ValueError: If there is no such engine.
        TypeError: If it has no such option.
        ImportError: If it needs an extra that is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, not {name!r}")
    module, attribute = ENGINES[name]
    engine: Engine = getattr(importlib.import_module(module), attribute)(site, **options)
    return engine
