"""Lightning's entry point: what ``repro-callbacks run`` adds to every Trainer; nothing outside of it.

Lightning calls :func:`callbacks` whenever a Trainer is made (groups ``lightning.pytorch.callbacks_factory`` and
``pytorch_lightning.callbacks_factory``). It is called in every environment in which this package is installed, so
outside of ``run`` it reads one environment variable and imports nothing.
"""

from __future__ import annotations

import os
from typing import Any

from repro_callbacks.callbacks import settings as settings_module

__all__ = ["callbacks"]


def callbacks() -> list[Any]:
    """Return the callbacks to add to a Trainer: none outside of ``repro-callbacks run``."""
    settings = settings_module.Settings.from_environment(os.environ)
    if settings is None:
        return []
    from repro_callbacks.callbacks import arrange
    from repro_callbacks.callbacks.control import Control

    arrange.install(settings)
    return [Control(settings)]
