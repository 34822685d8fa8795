"""One ``Callback`` to derive from for both namespaces, ``lightning.pytorch`` and ``pytorch_lightning``.

They are two copies of the same classes. A trainer of either asks ``isinstance(callback, Callback)`` with its own, so
what we derive from is a subclass of the ``Callback`` of each namespace that is installed.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def installed_namespaces() -> list[ModuleType]:
    """Import and return every Lightning namespace that is installed.

    Raises:
        ImportError: If none is.
    """
    names = [name for name in NAMESPACES if find_spec(name.split(".")[0]) is not None]
    if not names:
        raise ImportError(
            "the callbacks need Lightning, and neither lightning nor pytorch_lightning is installed; "
            "install it with: pip install 'repro-callbacks[lightning]'"
        )
    return [importlib.import_module(name) for name in names]


def namespace_of(trainer: Any) -> ModuleType:
    """Return the namespace that a trainer belongs to: ``lightning.pytorch`` or ``pytorch_lightning``."""
    for cls in type(trainer).__mro__:
        for name in NAMESPACES:
            if cls.__module__.startswith(name + "."):
                return importlib.import_module(name)
    raise TypeError(f"expected a Trainer of lightning.pytorch or pytorch_lightning, not {type(trainer)!r}")


if TYPE_CHECKING:

    class Callback:
        """For the type checker: the hooks are those of Lightning's ``Callback``."""

        log: Any
        log_dict: Any

else:
    Callback = type(
        "Callback", tuple(namespace.Callback for namespace in installed_namespaces()), {"__module__": __name__}
    )
