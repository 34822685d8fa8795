"""The determinism switches of torch and of the environment: read, check, set, put back.

Every switch is one row of a table: its name, how it is read and how it is written. What is reported is what torch
answers, never what was asked for.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import torch
import torch.utils.deterministic

from repro_callbacks import hashseed

# Typed loosely: what torch.backends offers is made when torch is imported and is not in its annotations.
_backends: Any = torch.backends
_cudnn: Any = torch.backends.cudnn
_mkldnn: Any = torch.backends.mkldnn
_matmul: Any = torch.backends.cuda.matmul

Mode: TypeAlias = "bool | Literal['warn']"

CUBLAS_VARIABLE: Final = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_ACCEPTED: Final = {
    ":4096:8": "eight buffers of 4 MiB: faster, takes about 24 MiB of GPU memory",
    ":16:8": "eight buffers of 16 KiB: may limit speed, takes almost no GPU memory",
}
"""The values with which cuBLAS is repeatable across streams, and what each costs (cuBLAS documentation, section
2.1.4, results reproducibility)."""

MATMUL_PRECISIONS: Final = ("highest", "high", "medium")
MIXED: Final = "mixed"
"""Reported where torch refuses to answer, because its old and its new settings for TF32 were both used and disagree."""

VARIABLES: Final = (CUBLAS_VARIABLE, hashseed.VARIABLE)


@dataclass(frozen=True)
class Switch:
    """One switch of torch: how it is read and how it is written."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


def _attribute(owner: Any, name: str) -> Switch:
    def read() -> Any:
        try:
            return getattr(owner, name)
        except RuntimeError:
            return MIXED

    return Switch(read, partial(setattr, owner, name))


def _read_matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return MIXED


def _inductor() -> Any:
    # torch.use_deterministic_algorithms imports it; until somebody does, there is nothing to read or to put back
    return sys.modules.get("torch._inductor.config")


# The order is that of putting back: an old setting of TF32 overwrites the new ones, and a parent those below it.
SWITCHES: Final[dict[str, Switch]] = {
    "deterministic_algorithms": Switch(
        torch.are_deterministic_algorithms_enabled,
        lambda on: torch.use_deterministic_algorithms(
            on, warn_only=torch.is_deterministic_algorithms_warn_only_enabled()
        ),
    ),
    "deterministic_algorithms_warn_only": Switch(
        torch.is_deterministic_algorithms_warn_only_enabled,
        lambda on: torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled(), warn_only=on),
    ),
    "inductor_deterministic": Switch(
        lambda: getattr(_inductor(), "deterministic", False), lambda on: setattr(_inductor(), "deterministic", on)
    ),
    "fill_uninitialized_memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    "cudnn_deterministic": _attribute(_cudnn, "deterministic"),
    "cudnn_benchmark": _attribute(_cudnn, "benchmark"),
    "mkldnn_deterministic": _attribute(_mkldnn, "deterministic"),
    "matmul_precision": Switch(_read_matmul_precision, torch.set_float32_matmul_precision),
    "cuda_matmul_allow_tf32": _attribute(_matmul, "allow_tf32"),
    "cudnn_allow_tf32": _attribute(_cudnn, "allow_tf32"),
    "fp32_precision": _attribute(_backends, "fp32_precision"),
    "cudnn_fp32_precision": _attribute(_cudnn, "fp32_precision"),
    # not by its attribute: in torch 2.13 that one writes torch.backends.fp32_precision
    "mkldnn_fp32_precision": Switch(
        lambda: _mkldnn.fp32_precision, lambda value: _mkldnn.set_flags(_fp32_precision=value)
    ),
    "cuda_matmul_fp32_precision": _attribute(_matmul, "fp32_precision"),
    "cudnn_conv_fp32_precision": _attribute(_cudnn.conv, "fp32_precision"),
    "cudnn_rnn_fp32_precision": _attribute(_cudnn.rnn, "fp32_precision"),
    "mkldnn_matmul_fp32_precision": _attribute(_mkldnn.matmul, "fp32_precision"),
    "mkldnn_conv_fp32_precision": _attribute(_mkldnn.conv, "fp32_precision"),
    "mkldnn_rnn_fp32_precision": _attribute(_mkldnn.rnn, "fp32_precision"),
    "num_threads": Switch(torch.get_num_threads, torch.set_num_threads),
}

_PRECISION: Final = frozenset(name for name in SWITCHES if "precision" in name or "tf32" in name)
_ALGORITHMS: Final = frozenset(
    {"deterministic_algorithms", "deterministic_algorithms_warn_only", "inductor_deterministic"}
)


@dataclass(frozen=True)
class FlagStates:
    """Every switch and both environment variables, as :func:`snapshot` read them."""

    switches: Mapping[str, Any]
    environment: Mapping[str, str | None]


def read(env: Mapping[str, str] | None = None) -> dict[str, object]:
    """Report every switch as torch and the environment have it now.

    Args:
        env: The environment; ``os.environ`` if ``None``.

    Returns:
        Bools, numbers, strings and ``None``, by name: each of :data:`SWITCHES` (:data:`MIXED` where torch refuses to
        answer), ``num_interop_threads``, ``CUBLAS_WORKSPACE_CONFIG``, ``PYTHONHASHSEED`` (the values in ``env``),
        ``PYTHONHASHSEED_in_force`` (whether that value is the one this interpreter was started with) and
        ``hash_randomization``.

    Example:
        >>> report = read({"PYTHONHASHSEED": "random"})
        >>> report["PYTHONHASHSEED"], report["PYTHONHASHSEED_in_force"], report["CUBLAS_WORKSPACE_CONFIG"]
        ('random', False, None)
    """
    env = os.environ if env is None else env
    return {
        **{name: switch.read() for name, switch in SWITCHES.items()},
        "num_interop_threads": torch.get_num_interop_threads(),
        CUBLAS_VARIABLE: env.get(CUBLAS_VARIABLE),
        **hashseed.describe(env),
    }


def snapshot(env: Mapping[str, str] | None = None) -> FlagStates:
    """Read everything that :func:`restore` can put back."""
    env = os.environ if env is None else env
    return FlagStates(
        {name: switch.read() for name, switch in SWITCHES.items()}, {name: env.get(name) for name in VARIABLES}
    )


def restore(
    states: FlagStates, names: Collection[str] | None = None, *, env: MutableMapping[str, str] | None = None
) -> None:
    """Put the switches and the environment variables back to where :func:`snapshot` read them.

    Args:
        states: What was read.
        names: Which to put back, as in ``states``; all of them if ``None``.
        env: The environment; ``os.environ`` if ``None``.

    What reads as :data:`MIXED` has no value to put back; the settings below it are put back all the same.
    """
    env = os.environ if env is None else env
    with _unfrozen():
        for name, value in states.switches.items():
            # Only what differs is written: a setting that follows its parent is not turned into one of its own.
            if (names is None or name in names) and value != MIXED and SWITCHES[name].read() != value:
                SWITCHES[name].write(value)
    for name, value in states.environment.items():
        if names is None or name in names:
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value


def write(values: Mapping[str, Any]) -> frozenset[str]:
    """Set switches by name, unchecked, in the order given. Returns their names, for ``restore(states, names)``."""
    with _unfrozen():
        for name, value in values.items():
            SWITCHES[name].write(value)
    # use_deterministic_algorithms sets three of them together
    return frozenset(values) | (_ALGORITHMS if _ALGORITHMS & values.keys() else frozenset())


def check_mode(mode: object) -> None:
    """Refuse what is not a :data:`Mode`.

    Raises:
        ValueError: If ``mode`` is neither ``True``, ``"warn"`` nor ``False``.
    """
    if not (mode is True or mode is False or mode == "warn"):
        raise ValueError(f"deterministic must be True, 'warn' or False, not {mode!r}")


def contradiction(mode: Mode, asked_by: str, as_by: str) -> str | None:
    """Say that torch's deterministic algorithms are on in another mode than one that is asked for now; None if not.

    That they are off contradicts nothing: off is how torch starts.

    Args:
        mode: What is asked for.
        asked_by: Name of the class whose ``deterministic`` it is.
        as_by: What may have turned them on, with ``{}`` for the mode.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return None
    present: Mode = "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True
    if present == mode:
        return None
    holds = f"{mode!r} holds during the run" if mode else "they stay on"
    return (
        f"torch's deterministic algorithms are on (as by {as_by.format(repr(present))}), and "
        f"{asked_by}(deterministic={mode!r}) asks for something else: {holds}. Give both the same."
    )


def set_deterministic(
    mode: Mode,
    *,
    cublas_workspace_config: str | None = None,
    fill_uninitialized_memory: bool | None = None,
    allow_tf32: bool | None = None,
    matmul_precision: str | None = None,
    num_threads: int | None = None,
    env: MutableMapping[str, str] | None = None,
) -> frozenset[str]:
    """Check everything that is asked for, then set it.

    Args:
        mode: ``True``: operators without a deterministic form raise, cuDNN is deterministic and does not benchmark,
            cuBLAS gets a repeatable workspace. ``"warn"``: the same, but they warn. ``False``: none of these is
            touched, neither on nor off; what is asked for below still is.
        cublas_workspace_config: ``":4096:8"`` or ``":16:8"``. ``None`` keeps an accepted value that the environment
            has and else takes ``":4096:8"`` (with ``mode=False``: touches nothing).
        fill_uninitialized_memory: Whether torch fills new memory while its algorithms are deterministic.
        allow_tf32: Whether CUDA may use TF32 in matrix products and in convolutions and recurrent layers.
        matmul_precision: ``"highest"``, ``"high"`` or ``"medium"``, as ``torch.set_float32_matmul_precision``.
        num_threads: Intra-op threads of the CPU, 1 or more.
        env: The environment; ``os.environ`` if ``None``.

    Returns:
        The names of the switches and variables that were set, for ``restore(states, names)``.

    Raises:
        ValueError: If a value is not one of those allowed, two contradict each other, or the environment holds a
            ``CUBLAS_WORKSPACE_CONFIG`` that is not repeatable. Nothing is set then.
        TypeError: If a value has the wrong type. Nothing is set then.
        RuntimeError: If ``CUBLAS_WORKSPACE_CONFIG`` would have to be set and CUDA has already started, or a precision
            is asked for while torch's is :data:`MIXED`. Nothing is set then.

    Source: PyTorch, notes on reproducibility; torch.use_deterministic_algorithms.

    Example:
        >>> states = snapshot()
        >>> _ = set_deterministic("warn", num_threads=1)
        >>> read()["deterministic_algorithms_warn_only"], read()["cudnn_deterministic"]
        (True, True)
        >>> restore(states)
    """
    env = os.environ if env is None else env
    if not (mode is True or mode is False or mode == "warn"):
        raise ValueError(f"mode must be True, 'warn' or False, not {mode!r}")
    for name, flag in {"fill_uninitialized_memory": fill_uninitialized_memory, "allow_tf32": allow_tf32}.items():
        if flag is not None and not isinstance(flag, bool):
            raise TypeError(f"{name} must be True, False or None, not {flag!r}")
    precision = _check_precision(matmul_precision, allow_tf32)
    if precision is not None and SWITCHES["matmul_precision"].read() == MIXED:
        raise RuntimeError(
            "the precision of matrix products can't be set and later put back: torch itself refuses to tell it, since "
            "its old settings (allow_tf32, set_float32_matmul_precision) and its new ones (fp32_precision) were both "
            "used and disagree; leave allow_tf32 and matmul_precision out here, or set torch.backends.cuda.matmul."
            "fp32_precision back to 'none' first"
        )
    threads = None if num_threads is None else _check_threads(num_threads)
    workspace = None
    if mode or cublas_workspace_config is not None:
        workspace = check_cublas(cublas_workspace_config, env, cuda_started=_cuda_started())

    names: frozenset[str] = frozenset()
    if mode:
        names |= write({"deterministic_algorithms_warn_only": mode == "warn", "deterministic_algorithms": True})
        names |= write({"cudnn_deterministic": True, "cudnn_benchmark": False})
    if fill_uninitialized_memory is not None:
        names |= write({"fill_uninitialized_memory": fill_uninitialized_memory})
    if precision is not None:
        # Not cuda_matmul_allow_tf32: after set_float32_matmul_precision("high") that leaves torch with two settings
        # that disagree, and it refuses to answer which holds.
        names |= write({"matmul_precision": precision}) | _PRECISION
    if allow_tf32 is not None:
        names |= write({"cudnn_allow_tf32": allow_tf32})
    if threads is not None:
        names |= write({"num_threads": threads})
    if workspace is not None:
        env[CUBLAS_VARIABLE] = workspace
        names |= {CUBLAS_VARIABLE}
    return names


def check_cublas(wanted: str | None, env: Mapping[str, str], *, cuda_started: bool) -> str | None:
    """Decide what ``CUBLAS_WORKSPACE_CONFIG`` must be set to; ``None`` if it may stay as it is.

    Args:
        wanted: One of :data:`CUBLAS_ACCEPTED`, or ``None`` for what is there already, else ``":4096:8"``.
        env: The environment.
        cuda_started: Whether CUDA has started in this process; cuBLAS reads the variable only once.

    Raises:
        ValueError: If ``wanted``, or what the environment holds while nothing is wanted, is not accepted.
        RuntimeError: If it would have to be set and CUDA has started.

    Example:
        >>> check_cublas(None, {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, cuda_started=True)
        >>> check_cublas(None, {}, cuda_started=False)
        ':4096:8'
    """
    present = env.get(CUBLAS_VARIABLE)
    allowed = " or ".join(repr(value) for value in CUBLAS_ACCEPTED)
    if wanted is not None and wanted not in CUBLAS_ACCEPTED:
        raise ValueError(f"cublas_workspace_config must be {allowed}, not {wanted!r}")
    if wanted is None and present is not None and present not in CUBLAS_ACCEPTED:
        raise ValueError(
            f"the environment has {CUBLAS_VARIABLE}={present!r}, with which cuBLAS is not repeatable; set it to "
            f"{allowed}, or unset it, before the program starts"
        )
    value = wanted or present or next(iter(CUBLAS_ACCEPTED))
    if value == present:
        return None
    if cuda_started:
        raise RuntimeError(
            f"{CUBLAS_VARIABLE} must be {value!r} but is {present!r}, and CUDA has already started, so that setting "
            f"it now may have no effect; set it before the first use of CUDA, or start the program with "
            f"{CUBLAS_VARIABLE}={value}"
        )
    return value


def _check_precision(matmul_precision: str | None, allow_tf32: bool | None) -> str | None:
    """Return the precision of matrix products that the two arguments ask for together."""
    if matmul_precision is not None and matmul_precision not in MATMUL_PRECISIONS:
        raise ValueError(f"matmul_precision must be one of {', '.join(MATMUL_PRECISIONS)}, not {matmul_precision!r}")
    if allow_tf32 is None or matmul_precision is None:
        return matmul_precision if allow_tf32 is None else ("high" if allow_tf32 else "highest")
    if allow_tf32 != (matmul_precision != "highest"):
        raise ValueError(
            f"allow_tf32={allow_tf32} and matmul_precision={matmul_precision!r} contradict each other: 'highest' is "
            f"without TF32, 'high' and 'medium' are with it; give one of them"
        )
    return matmul_precision


def _check_threads(num_threads: int) -> int:
    if isinstance(num_threads, bool) or not hasattr(num_threads, "__index__"):
        raise TypeError(f"num_threads must be an integer of 1 or more, not {num_threads!r}")
    if operator.index(num_threads) < 1:
        raise ValueError(f"num_threads must be an integer of 1 or more, not {num_threads!r}")
    return operator.index(num_threads)


def _cuda_started() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _unfrozen() -> Any:
    """Let the flags of torch.backends be set also after ``torch.backends.disable_global_flags()``, as MONAI does.

    The name is private to torch; there is no public way to set a flag for longer than a block once they are frozen.
    """
    return _backends.__allow_nonbracketed_mutation()
