"""Where runs are started: one small file for each engine behind one small interface.

``processes`` (this machine), ``debug`` (this very process), ``dask`` (a cluster) and ``slurm`` (through submitit). Each
brings a seed to a machine and leaves the rest to :class:`~repro_callbacks.study.engines.launcher.Nursery`, so that a
run is the same whichever engine started it. Ray is left out: it would come for nothing only through joblib, and
joblib's workers, which are reused, are not used here. An engine of your own is a class whose objects are like
:class:`~repro_callbacks.study.engines.base.Engine`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

from repro_callbacks.study.engines.base import Engine, Site

ENGINES: Final = {
    "processes": ("repro_callbacks.study.engines.processes", "ProcessEngine"),
    "debug": ("repro_callbacks.study.engines.debug", "DebugEngine"),
    "dask": ("repro_callbacks.study.engines.dask", "DaskEngine"),
    "slurm": ("repro_callbacks.study.engines.slurm", "SlurmEngine"),
}

__all__ = ["ENGINES", "Engine", "Site", "make_engine"]


def make_engine(name: str | Callable[..., Engine], site: Site, **options: Any) -> Engine:
    """Start an engine.

    Args:
        name: A key of :data:`ENGINES`, or a class of your own.
        site: What it runs, and where.
        options: The engine's own; see its class.

    Raises:
        ValueError: If there is no such engine.
        TypeError: If it has no such option.
        ImportError: If it needs an extra that is not installed.
    """
    if callable(name):
        return name(site, **options)
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, not {name!r}")
    module, attribute = ENGINES[name]
    engine: Engine = getattr(importlib.import_module(module), attribute)(site, **options)
    return engine
