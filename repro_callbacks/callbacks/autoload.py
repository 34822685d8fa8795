"""Lightning's entry point: what ``repro-callbacks run`` adds to every Trainer; nothing outside of it.

Lightning calls :func:`callbacks` whenever a Trainer is made (groups ``lightning.pytorch.callbacks_factory`` and
``pytorch_lightning.callbacks_factory``). It is called in every environment in which this package is installed, so
outside of ``run`` it reads one environment variable and imports nothing.
"""

from __future__ import annotations

import os
from typing import Any

from repro_callbacks.callbacks import settings as settings_module

__all__ = ["callbacks", "hand_over"]

_handed_over = False


def callbacks() -> list[Any]:
    """Return the callbacks to add to a Trainer: none outside of ``repro-callbacks run``."""
    settings = settings_module.Settings.from_environment(os.environ)
    if settings is None or _handed_over:
        return []
    from repro_callbacks.callbacks import arrange
    from repro_callbacks.callbacks.control import Control

    arrange.install(settings)
    return [Control(settings)]


def hand_over() -> Any:
    """Return the callback for a function that gives it to the Trainer itself; none is added any more then.

    Raises:
        RuntimeError: Outside of ``run``.
    """
    global _handed_over
    found = callbacks()
    if not found:
        raise RuntimeError("there is no callback to hand over: this process was not started by repro-callbacks")
    _handed_over = True
    return found[0]
