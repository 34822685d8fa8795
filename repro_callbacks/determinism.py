"""``set_determinism``: what ``monai.utils.set_determinism`` does, with the same bits, and undone in full.

Where it differs from MONAI's on purpose:

- A seed is an integer from 0 to 2³²-1; anything else is refused. MONAI folds it into that range without a word.
- ``set_determinism(None)`` puts every switch that was set back to where it was before the first call. MONAI puts
  cuDNN's back to where they were when MONAI was imported, and leaves ``use_deterministic_algorithms`` as it is.
- A call that fails changes nothing.
- As ``with set_determinism(0): ...`` it leaves nothing behind.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch

from repro_callbacks import flags, generators, hashseed, keys, monai_seed

if TYPE_CHECKING:
    from repro_callbacks.record import RunRecord

LIGHTNING_VARIABLE: Final = "PL_GLOBAL_SEED"
OURS: Final = "set_determinism"
MONAIS: Final = "monai.utils.set_determinism"
LIGHTNINGS: Final = "seed_everything"
TORCHS: Final = "torch.manual_seed"

_UNSEEDED_ACCELERATOR: Final = 67280421310721
"""The seed of an accelerator that nobody seeded (default_rng_seed_val in torch's c10/core/GeneratorImpl.h)."""


@dataclass(frozen=True)
class _State:
    """What set_determinism has done in this process."""

    seed: int | None = None
    turned_off: bool = False
    hash_seed: str | None = None  # what was put into PYTHONHASHSEED
    before: flags.FlagStates | None = None  # the switches before the first call
    touched: frozenset[str] = frozenset()  # the switches that were set since


_state = _State()


class DeterminismScope:
    """What :func:`set_determinism` returns. Leaving it as a ``with`` block undoes the call and all that followed it.

    Attributes:
        seed: The seed that was set; ``None`` if determinism was turned off.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self._left = False
        self._state = _state
        self._monai = monai_seed.read()
        self._flags = flags.snapshot()
        self._generators = generators.snapshot()
        self._unstarted = [name for name in ("cuda", "xpu") if not getattr(torch, name).is_initialized()]

    @cached_property
    def record(self) -> RunRecord:
        """What must be known to repeat the run, read at the first access."""
        from repro_callbacks.record import RunRecord

        return RunRecord.capture(seed=self.seed)

    def __enter__(self) -> Self:
        if self._left:
            raise RuntimeError("this set_determinism(...) was left already; call set_determinism again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        self._put_back()

    def __repr__(self) -> str:
        return f"set_determinism(seed={self.seed})"

    def _put_back(self) -> None:
        global _state
        _state = self._state
        monai_seed.write(self._monai)
        flags.restore(self._flags)
        generators.restore(self._generators)
        for name in self._unstarted:
            # An accelerator takes the last seed that torch was given when it starts, which was the block's.
            seed = torch.initial_seed() if torch.initial_seed() <= keys.MAX_SEED else _UNSEEDED_ACCELERATOR
            getattr(torch, name).manual_seed_all(seed)


def set_determinism(
    seed: int | None = keys.MAX_SEED,
    use_deterministic_algorithms: bool | None = None,
    additional_settings: Iterable[Callable[[int | None], Any]] | Callable[[int | None], Any] | None = None,
    *,
    warn_only: bool = False,
    cublas_workspace_config: str | None = None,
    fill_uninitialized_memory: bool | None = None,
    allow_tf32: bool | None = None,
    matmul_precision: str | None = None,
    num_threads: int | None = None,
    pythonhashseed: bool = True,
) -> DeterminismScope:
    """Seed every process-wide generator and make cuDNN deterministic; a drop-in for ``monai.utils.set_determinism``.

    The seed goes to Python's, NumPy's and torch's generators, on the CPU and on every accelerator, and to
    ``monai.utils.get_seed()``, also if MONAI is imported later. The call takes effect at once; as
    ``with set_determinism(0): ...`` generators, switches and environment are as before once the block is left, also
    by an exception, whatever was called inside. Blocks nest.

    Args:
        seed: 0 to 2³²-1. ``None`` turns determinism off: the generators are seeded from entropy, and the switches that
            were set are put back to where they were before the first call. Inside a ``with`` block it holds until the
            block is left, which puts back what was before the block.
        use_deterministic_algorithms: As ``torch.use_deterministic_algorithms``; ``None`` leaves it as it is. ``True``
            also sets ``CUBLAS_WORKSPACE_CONFIG``.
        additional_settings: A function, or several, called with the seed once the generators are seeded.
        warn_only: With ``use_deterministic_algorithms=True``: operators without a deterministic form warn instead of
            raising.
        cublas_workspace_config, fill_uninitialized_memory, allow_tf32, matmul_precision, num_threads: See
            :func:`repro_callbacks.flags.set_deterministic`. ``None`` leaves each as it is.
        pythonhashseed: Whether to set ``PYTHONHASHSEED`` to the seed, unless it is set already. It takes effect only in
            processes that are started from here; in this one, hashes are what they were at its start. Start Python
            with ``PYTHONHASHSEED=0`` to fix them here too; ``.record.flags["PYTHONHASHSEED_in_force"]`` tells.

    Returns:
        The scope: a context manager, whose ``.record`` is the :class:`~repro_callbacks.RunRecord`.

    Raises:
        TypeError, ValueError: If an argument is not allowed; the message names it. Nothing is changed then, nor when
            one of ``additional_settings`` raises.
        RuntimeError: If ``CUBLAS_WORKSPACE_CONFIG`` would have to be set and CUDA has already started.

    MONAI's exporters (``convert_to_torchscript``, ``convert_to_onnx``, ``convert_to_trt``) with ``verify=True`` call
    MONAI's own ``set_determinism(0)`` and then ``(None)``: what was seeded before is gone, and cuDNN's switches with
    it. Call them inside ``with preserved(): ...`` of this module, and nothing changes.

    Sources: ``monai/utils/misc.py`` of MONAI 1.6; PyTorch, notes on reproducibility.

    Example:
        >>> with set_determinism(seed=3407):
        ...     first = torch.rand(3)
        >>> with set_determinism(seed=3407):
        ...     torch.equal(first, torch.rand(3))
        True
    """
    global _state
    checked = None if seed is None else keys.check_seed(seed)
    settings = _check_settings(additional_settings)
    mode = _check_mode(use_deterministic_algorithms, warn_only)
    scope = DeterminismScope(checked)
    try:
        if checked is None:
            _turn_off()
        else:
            generators.seed_all(checked)
            _state = replace(_state, seed=checked, turned_off=False, before=_state.before or scope._flags)
        monai_seed.write(checked)
        for setting in settings:
            setting(checked)
        touched: frozenset[str] = frozenset()
        if checked is not None:
            touched |= flags.write({"cudnn_deterministic": True, "cudnn_benchmark": False})
            if pythonhashseed:
                touched |= _set_hash_seed(str(checked))
        if use_deterministic_algorithms is False:
            touched |= flags.write({"deterministic_algorithms_warn_only": False, "deterministic_algorithms": False})
        touched |= flags.set_deterministic(
            mode,
            cublas_workspace_config=cublas_workspace_config,
            fill_uninitialized_memory=fill_uninitialized_memory,
            allow_tf32=allow_tf32,
            matmul_precision=matmul_precision,
            num_threads=num_threads,
        )
        if checked is not None:
            _state = replace(_state, touched=_state.touched | touched)
    except BaseException:
        scope._put_back()
        raise
    return scope


def get_seed() -> int | None:
    """Return the seed that is known to be set in this process, or ``None``; see :func:`known_seed`.

    Example:
        >>> with set_determinism(seed=7):
        ...     get_seed()
        7
    """
    known = known_seed()
    return None if known is None else known[0]


def known_seed() -> tuple[int, str] | None:
    """Return the seed that was set last and what set it; ``None`` if nothing that can be asked has set one.

    Three can be asked: ``set_determinism`` of this library (:data:`OURS`), MONAI's (:data:`MONAIS`) and Lightning's
    ``seed_everything`` (:data:`LIGHTNINGS`, by the variable ``PL_GLOBAL_SEED``, which the processes of a distributed
    training inherit). If they disagree, the one whose seed torch's generator still has was called last; if none has
    it, they are asked in that order. A plain ``torch.manual_seed`` does not count, since it seeds torch alone;
    :func:`seeded` sees it.

    Raises:
        ValueError: If ``PL_GLOBAL_SEED`` holds no seed.
    """
    known = []
    monais = monai_seed.read()
    # Ours writes to MONAI's, so that MONAI's differs only if MONAI's own function was called since.
    if _state.seed is not None and monais == _state.seed:
        known.append((_state.seed, OURS))
    elif monais is not None:
        known.append((monais, MONAIS))
    lightnings = _lightning_seed()
    if lightnings is not None and not (_state.turned_off and lightnings != torch.initial_seed()):
        known.append((lightnings, LIGHTNINGS))
    return next((entry for entry in known if entry[0] == torch.initial_seed()), known[0] if known else None)


def seeded() -> str | None:
    """Say what has seeded torch's generator in this process, or ``None``: weights that are made now can't be repeated.

    Returns:
        :data:`OURS`, :data:`MONAIS`, :data:`LIGHTNINGS`, :data:`TORCHS`, or ``None``.

    torch seeds its CPU generator with 64 random bits when it is imported. A seed below 2³² there was therefore set by
    somebody, but for one process in four billion; a ``torch.manual_seed`` of 2³² or more is not recognised, and neither
    is it that MONAI's ``set_determinism(None)`` reseeds with 32 random bits, which passes for ``torch.manual_seed``.
    An inherited ``PL_GLOBAL_SEED`` alone has seeded nothing yet.
    """
    monais = monai_seed.read()
    if monais is not None:
        return OURS if monais == _state.seed else MONAIS
    if torch.initial_seed() > keys.MAX_SEED:
        return None
    return LIGHTNINGS if os.environ.get(LIGHTNING_VARIABLE) == str(torch.initial_seed()) else TORCHS


def overridden() -> str | None:
    """Say in words that MONAI's own ``set_determinism`` was called after ours; ``None`` if it was not.

    Example:
        >>> with set_determinism(seed=7):
        ...     overridden() is None
        True
    """
    monais = monai_seed.read()
    if _state.seed is None or monais == _state.seed:
        return None
    return (
        f"monai.utils.set_determinism({monais}) was called after set_determinism({_state.seed}) of repro_callbacks, by "
        f"the program or by one of MONAI's exporters with verify=True; the generators and cuDNN's switches are MONAI's "
        f"now. Call an exporter inside `with repro_callbacks.determinism.preserved():`"
    )


@contextmanager
def preserved() -> Iterator[None]:
    """Put everything back at the end of the block, whatever is called inside: generators, switches, environment, seeds.

    For what seeds on its own account in the middle of a run, as MONAI's exporters do.

    Example:
        >>> with set_determinism(seed=7):
        ...     with preserved():
        ...         _ = set_determinism(0), set_determinism(None)
        ...     get_seed()
        7
    """
    with DeterminismScope(_state.seed):
        yield


def _turn_off() -> None:
    global _state
    torch.seed()  # 64 random bits for the CPU and every accelerator, so that `seeded` can tell
    random.seed()
    np.random.seed()
    if _state.before is not None:
        flags.restore(_state.before, _state.touched)
    _state = _State(turned_off=True)


def _set_hash_seed(value: str) -> frozenset[str]:
    """Set the variable unless somebody else did, with a value that Python accepts."""
    global _state
    present = os.environ.get(hashseed.VARIABLE)
    if hashseed.parse(present) is not None and present != _state.hash_seed:
        return frozenset()
    os.environ[hashseed.VARIABLE] = value
    _state = replace(_state, hash_seed=value)
    return frozenset({hashseed.VARIABLE})


def _check_settings(settings: Any) -> list[Callable[[int | None], Any]]:
    if settings is None:
        return []
    functions = [settings] if callable(settings) else list(settings)
    for function in functions:
        if not callable(function):
            raise TypeError(f"additional_settings must be functions of the seed, not {function!r}")
    return functions


def _check_mode(use_deterministic_algorithms: bool | None, warn_only: bool) -> flags.Mode:
    if use_deterministic_algorithms is not None and not isinstance(use_deterministic_algorithms, bool):
        raise TypeError(
            f"use_deterministic_algorithms must be True, False or None, not {use_deterministic_algorithms!r}"
        )
    if warn_only and not use_deterministic_algorithms:
        raise ValueError("warn_only=True has an effect only with use_deterministic_algorithms=True")
    return "warn" if warn_only else bool(use_deterministic_algorithms)


def _lightning_seed() -> int | None:
    value = os.environ.get(LIGHTNING_VARIABLE)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and int(value) <= keys.MAX_SEED):
        raise ValueError(f"{LIGHTNING_VARIABLE} must be an integer from 0 to {keys.MAX_SEED}, not {value!r}")
    return int(value)
