"""A key before each of the user's own methods that may draw, so that nothing that ran before it can shift it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from repro_callbacks.generators import isolate

STEP_METHODS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_train_batch_start",
    "training_step",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
    "validation_step",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "test_step",
    "on_test_epoch_start",
    "on_test_epoch_end",
    "predict_step",
)
SETUP_METHODS = ("setup", "configure_model", "configure_optimizers")
# Called between what a step draws and what it draws next: between two forward passes of manual optimization, or before
# an optimizer that draws. Another callback's draws there must not be felt.
MID_STEP_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
BATCH_HOOKS = (
    *MID_STEP_HOOKS,
    *(f"on_{stage}_batch_{end}" for stage in ("train", "validation", "test", "predict") for end in ("start", "end")),
)
"""The hooks of a callback that a trainer calls for every batch."""
LOADER_METHODS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")


class KeyedMethod:
    """A method of the user's, with something done before each call.

    It stands as an attribute of the user's object while a trainer runs, and a pickle or a deep copy of that object has
    the plain method again. An isolated one leaves the process-wide generators as they were before the call.
    """

    def __init__(
        self, name: str, method: Callable[..., Any], before: Callable[[str], None], isolated: bool = False
    ) -> None:
        self._name = name
        self._method = method
        self._before = before
        self._isolated = isolated
        functools.update_wrapper(self, method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what comes before, then call the method."""
        if self._isolated:
            with isolate():
                self._before(self._name)
                return self._method(*args, **kwargs)
        self._before(self._name)
        return self._method(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if hasattr(self._method, "__self__"):
            return getattr, (self._method.__self__, self._name)
        return _itself, (self._method,)


def _itself(method: Any) -> Any:
    return method


_ABSENT = object()


class KeyedMethods:
    """The methods of a user's object that are keyed now; :meth:`remove` leaves the object as it was."""

    def __init__(self) -> None:
        self._wrapped: list[tuple[Any, str, Any]] = []

    def add(self, owner: Any, name: str, before: Callable[[str], None], isolated: bool = False) -> None:
        """Key a method, unless the object does not override what Lightning gives it.

        One that stands as an attribute of the object itself, as ``torch.compile`` leaves it, is keyed too.
        """
        earlier = vars(owner).get(name, _ABSENT)
        if earlier is _ABSENT:
            home = _home(owner, name)
            if home is None or home in _FRAMEWORKS:
                return
        method = getattr(owner, name)
        if callable(method) and not isinstance(method, KeyedMethod):
            object.__setattr__(owner, name, KeyedMethod(name, method, before, isolated))
            self._wrapped.append((owner, name, earlier))

    def pass_over(self, callback: Any, names: Iterable[str]) -> None:
        """Let a trainer pass over hooks that a callback does not override: an empty call costs as much as a key.

        A trainer calls what is callable.
        """
        for name in names:
            if name not in vars(callback) and _home(callback, name) in _LIGHTNINGS:
                object.__setattr__(callback, name, None)
                self._wrapped.append((callback, name, _ABSENT))

    def remove(self) -> None:
        """Leave all objects as they were."""
        for owner, name, earlier in self._wrapped:
            if isinstance(vars(owner).get(name, _ABSENT), (KeyedMethod, type(None))):
                object.__delattr__(owner, name)
                if earlier is not _ABSENT:
                    object.__setattr__(owner, name, earlier)
        self._wrapped = []


_LIGHTNINGS = frozenset({"lightning", "pytorch_lightning"})
_FRAMEWORKS = _LIGHTNINGS | {"torch", "repro_callbacks"}


def _home(owner: Any, name: str) -> str | None:
    """Return the package of the class that gives an object a method; None if no class does."""
    defined = next((cls for cls in type(owner).__mro__ if name in vars(cls)), None)
    return None if defined is None else defined.__module__.split(".")[0]
