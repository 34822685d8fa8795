"""Determinism switches that a run has set, kept as they are until it ends: whoever changes them is told of."""

from __future__ import annotations

import warnings

from repro_callbacks import flags

_HELD = ("deterministic_algorithms", "deterministic_algorithms_warn_only", "cudnn_deterministic", "cudnn_benchmark")


class ChangedFlagsWarning(UserWarning):
    """Something has changed the determinism switches in the middle of a run."""


class HeldFlags:
    """The determinism switches as they are now, to be looked at before each step.

    MONAI's exporters with ``verify=True`` end with ``set_determinism(None)``, which switches cuDNN's determinism off
    for all that the program does afterwards (``monai/networks/utils.py``). A look takes about a microsecond.

    Args:
        mode: What the run has asked for; with ``False`` it has set nothing, and nothing is held.
        holder: The class whose ``deterministic`` that is, to be named.

    Example:
        >>> before = flags.snapshot()
        >>> _ = flags.set_deterministic(True)
        >>> held = HeldFlags(True, "Determinism")
        >>> held.hold()
        >>> flags.restore(before)
    """

    def __init__(self, mode: flags.Mode, holder: str) -> None:
        self._mode, self._holder = mode, holder
        self._held = [(name, flags.SWITCHES[name].read, flags.SWITCHES[name].read()) for name in _HELD if mode]

    def hold(self) -> None:
        """Set again what was changed since, and warn of it."""
        changed = [(name, value, now) for name, read, value in self._held if (now := read()) != value]
        if not changed:
            return
        flags.write({name: value for name, value, _ in changed})
        told = ", ".join(f"{name} from {value} to {now}" for name, value, now in changed)
        warnings.warn(
            f"in the middle of the run something has changed {told}: what was computed since the step before may not "
            f"repeat. {self._holder}(deterministic={self._mode!r}) has put it back. MONAI's set_determinism, and its "
            "exporters with verify=True, do such a thing: call them inside `with repro_callbacks.determinism."
            f"preserved():`. If it was meant, say so with deterministic='warn' or False of {self._holder}.",
            ChangedFlagsWarning,
            stacklevel=2,
        )
