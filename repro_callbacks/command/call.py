"""Calls a function in a fresh process, for ``verify(fit)``: ``python -m repro_callbacks.command.call FILE``.

The file holds the search path and the function, pickled. Ranks that Lightning launches by running the command again
call the same function.
"""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def write(function: Callable[..., Any], path: Path) -> None:
    """Pickle a function, by reference if the fresh process can import its module, else by value.

    Raises:
        ImportError: If cloudpickle is not installed.
        TypeError: If the function needs more than one argument, or can't be pickled.
    """
    try:
        import cloudpickle  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ImportError(
            "verify(fit) needs cloudpickle to hand the function to a fresh process; "
            "install it with: pip install cloudpickle"
        ) from None
    takes_callback(function)
    module = inspect.getmodule(inspect.unwrap(function))
    by_value = module is not None and module.__name__ != "__main__" and not _importable(module)
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        payload = cloudpickle.dumps(function)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"{function!r} can't be handed to a fresh process: {error}; make what it uses inside of it"
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    path.write_bytes(pickle.dumps((sys.path, payload)))


def takes_callback(function: Callable[..., Any]) -> bool:
    """Say whether a function asks for the callback, or takes nothing.

    Raises:
        TypeError: If it needs more than one argument.

    Example:
        >>> takes_callback(lambda: None), takes_callback(lambda callback: None)
        (False, True)
    """
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1 or any(parameter.kind not in positional for parameter in needed):
        names = ", ".join(parameter.name for parameter in needed)
        raise TypeError(f"fit must take nothing, or the callback to give to the Trainer; {function!r} needs: {names}")
    return bool(needed)


def main(path: str) -> None:
    """Call the function of a file."""
    search, payload = pickle.loads(Path(path).read_bytes())
    sys.path.extend(entry for entry in search if entry not in sys.path)
    function = pickle.loads(payload)
    if takes_callback(function):
        from repro_callbacks.callbacks import autoload

        function(autoload.hand_over())
    else:
        function()


def _importable(module: ModuleType) -> bool:
    """Say whether a fresh process finds this very module."""
    # not by importlib.util.find_spec, which finds any module that is loaded
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.__name__.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        spec = next((found for finder in finders if (found := finder.find_spec(name, path)) is not None), None)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return spec is not None and spec.origin == getattr(module, "__file__", None)


if __name__ == "__main__":
    main(sys.argv[1])
