"""What we read of an engine of Ignite or MONAI, in one place; the part that they do not document is named.

Not documented, and each with a test in ``tests/handlers/test_engine.py`` that says which one a new version has moved:
``Engine._fire_event`` (every event passes through it), ``Engine._event_handlers`` (who listens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

try:
    from ignite.engine import DeterministicEngine, Engine, Events
    from ignite.metrics import Metric
except ImportError as error:
    raise ImportError(
        "the handlers need pytorch-ignite, on which MONAI's engines stand, and it is not installed; install it with: "
        "pip install 'repro-callbacks[monai]'"
    ) from error

__all__ = ["Engine", "Events"]

_NETWORKS = ("network", "g_network", "d_network")


def check_engine(engine: Any) -> None:
    """Refuse what a handler can't be attached to.

    Raises:
        TypeError: If it is not an Ignite engine, or one that reseeds by itself.
    """
    if not isinstance(engine, Engine):
        raise TypeError(
            f"a DeterminismHandler is attached to an engine of MONAI or Ignite, not to {type(engine).__name__}"
        )
    if isinstance(engine, DeterministicEngine):
        raise TypeError(
            f"{type(engine).__name__} is Ignite's DeterministicEngine, which reseeds and replaces the loader by "
            "itself: use a plain ignite.engine.Engine with the DeterminismHandler"
        )


def is_core(event: Any) -> bool:
    """Whether an event is one of those that every engine fires around its iterations."""
    return isinstance(event, Events)


def event_name(event: Any) -> str:
    """Return an event's name; events are strings or members of an enumeration."""
    return str(getattr(event, "value", event))


def listeners(engine: Any, event: Any) -> list[Any]:
    """Return the functions that are called at an event."""
    return [function for function, _, _ in engine._event_handlers.get(event, ())]


def replace_firing(engine: Any, fire: Callable[..., None]) -> Callable[..., None]:
    """Put a function in place of the one through which an engine fires every event, and return that one."""
    before: Callable[..., None] = engine._fire_event
    engine._fire_event = fire
    return before


def restore_firing(engine: Any) -> None:
    """Undo :func:`replace_firing`."""
    vars(engine).pop("_fire_event", None)


def is_evaluator(engine: Any) -> bool:
    """Whether an engine is one of MONAI's that evaluate. MONAI is not imported to find out."""
    return _is_monais(engine, "Evaluator")


def is_trainer(engine: Any) -> bool:
    """Whether an engine is one of MONAI's that train."""
    return _is_monais(engine, "Trainer")


def _is_monais(engine: Any, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.startswith("monai.engines") for cls in type(engine).__mro__)


def networks(engine: Any) -> dict[str, nn.Module]:
    """Return the networks that an engine of MONAI works with, by name; none of another engine."""
    found: dict[str, nn.Module] = {}
    for owner in (engine, engine.state):
        for name in _NETWORKS:
            network = getattr(owner, name, None)
            if isinstance(network, nn.Module):
                found[name] = network
    several = getattr(engine, "networks", None)  # of an EnsembleEvaluator
    for number, network in enumerate(several if isinstance(several, (list, tuple)) else ()):
        if isinstance(network, nn.Module):
            found[f"networks.{number}"] = network
    return found


def epoch_metrics(engine: Any) -> list[str]:
    """Return the names of the metrics that an engine computes when an epoch ends."""
    owners = (getattr(function, "__self__", None) for function in listeners(engine, Events.EPOCH_COMPLETED))
    return sorted({type(owner).__name__ for owner in owners if isinstance(owner, Metric)})


def accumulates(engine: Any) -> bool:
    """Whether the gradients of a MONAI trainer's last iteration wait for more to be added."""
    steps = getattr(engine, "accumulation_steps", 1)
    length = engine.state.epoch_length
    done = engine.state.iteration % length if length else engine.state.iteration
    return bool(done % steps)


def smart_caches(engine: Any) -> Iterator[Any]:
    """Yield the SmartCacheDatasets whose content an engine renews when an epoch ends, by a SmartCacheHandler."""
    for function in listeners(engine, Events.EPOCH_COMPLETED):
        owner = getattr(function, "__self__", None)
        cache = getattr(owner, "__dict__", {}).get("smartcacher")  # no getattr: a Metric answers to any name
        if cache is not None:
            yield cache
