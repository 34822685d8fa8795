"""A look at what goes into ``training_step`` and at the moment after it, from right around the method itself.

A callback's ``on_train_batch_start`` is too early: other callbacks, the module's own hook and the keying of the
generators come after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from repro_callbacks.callbacks.methods import KeyedMethod

_NAME = "training_step"


class Observer(Protocol):
    """What is told of each call."""

    def before_forward(self, batch: Any) -> None:
        """The step is about to begin, with this batch."""

    def after_forward(self) -> None:
        """The step has returned."""


class ObservedMethod:
    """A bound method with observers. A pickle or a deep copy of its object has the plain method again."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.observers: list[Observer] = []
        functools.update_wrapper(self, method)

    @property
    def __self__(self) -> Any:
        return self.method.__self__  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method, and the observers before and after it."""
        batch = args[0] if args else next(iter(kwargs.values()), None)
        for observer in self.observers:
            observer.before_forward(batch)
        output = self.method(*args, **kwargs)
        for observer in self.observers:
            observer.after_forward()
        return output

    def __reduce__(self) -> tuple[Any, ...]:
        if hasattr(self.method, "__self__"):
            return getattr, (self.method.__self__, _NAME)
        return _itself, (self.method,)


def _itself(method: Any) -> Any:
    return method


def observe(pl_module: Any, observer: Observer) -> Callable[[], None]:
    """Begin to observe a module's ``training_step``, and return what ends it.

    Where the method is keyed, the observer is called behind the key.
    """
    present = vars(pl_module).get(_NAME)
    keyed = present if isinstance(present, KeyedMethod) else None
    method = pl_module.training_step if keyed is None else keyed._method
    observed = method if isinstance(method, ObservedMethod) else ObservedMethod(method)
    if observed is not method:
        if keyed is None:
            pl_module.training_step = observed
        else:
            keyed._method = observed
    observed.observers.append(observer)

    def end() -> None:
        observed.observers.remove(observer)
        if observed.observers:
            return
        if keyed is not None:
            keyed._method = observed.method
        elif vars(pl_module).get(_NAME) is observed:
            del pl_module.training_step
            if present is not None:
                pl_module.training_step = present

    return end
