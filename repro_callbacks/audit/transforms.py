"""The transforms of MONAI 1.6 that are not a function of their own generator and their input alone.

Of its 98 random transforms these are all that are known. They are recognised by their names, so that nothing of MONAI
is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from repro_callbacks.audit.findings import Level

SOURCE: Final = "MONAI 1.6.1"

_KEYED: Final = (
    "Determinism or keyed(), which key the process-wide generators for each sample; set_random_state and MONAI's "
    "DataLoader don't reach them"
)


@dataclass(frozen=True)
class Transform:
    """Transforms that share a fault.

    Attributes:
        names: Their classes, as arrays' transforms and as dictionaries'; subclasses count.
        level: How bad it is (see :data:`repro_callbacks.audit.findings.LEVELS`).
        what: What is not a function of the transform's own generator and its input.
        instead: What to do instead.
        in_place: Whether the fault is that the input is altered, which matters only for data that is kept in memory.
        source: Where that is known from.
    """

    names: tuple[str, ...]
    level: Level
    what: str
    instead: str
    in_place: bool = False
    source: str = SOURCE


def _both(*names: str) -> tuple[str, ...]:
    return (*names, *(f"{name}d" for name in names))


TRANSFORMS: Final[tuple[Transform, ...]] = (
    Transform(
        ("RandIntensityRemap",),
        "note",
        "makes a new IntensityRemap at each call, which draws from one generator that all unseeded transforms of MONAI "
        "share; set_random_state does not reach it",
        _KEYED,
        source=f"{SOURCE}, transforms/intensity/array.py",
    ),
    Transform(
        ("SignalRandDrop", "SignalRandAddGaussianNoise"),
        "note",
        "draws from torch's process-wide generator as well",
        _KEYED,
        source=f"{SOURCE}, transforms/signal/array.py",
    ),
    Transform(
        _both("RandTorchVision", "RandTorchIO"),
        "note",
        "draws from torch's process-wide generator, not from its own",
        _KEYED,
        source=f"{SOURCE}, transforms/utility/array.py",
    ),
    Transform(
        _both("RandCuCIM"),
        "warning",
        "draws from generators of cuCIM and CuPy if the transform inside does, and nothing seeds those",
        "MONAI's transform of the same kind",
        source=f"{SOURCE}, transforms/utility/array.py",
    ),
    Transform(
        _both("RandLambda"),
        "note",
        "calls a function of yours, which may draw from where it likes",
        "process-wide generators in it (random, numpy.random, torch), which Determinism and keyed() key for each "
        "sample; none that is made inside the function from entropy",
        source=f"{SOURCE}, transforms/utility/array.py",
    ),
    Transform(
        ("AddRandomGuidanceDeepEditd",),
        "note",
        "draws from Python's process-wide generator as well",
        _KEYED,
        source=f"{SOURCE}, apps/deepedit/transforms.py",
    ),
    Transform(
        _both("RandStdShiftIntensity", "RandCoarseDropout", "RandCoarseShuffle"),
        "warning",
        "alters its input in place: data that is kept in memory is not the same in the next epoch with num_workers=0 "
        "or persistent workers, and fresh in each epoch otherwise",
        "a copy before it: Lambdad(keys, copy.deepcopy), or CacheDataset with copy_cache=True",
        in_place=True,
        source=f"{SOURCE}, transforms/intensity/array.py",
    ),
)

BY_NAME: Final[dict[str, Transform]] = {name: row for row in TRANSFORMS for name in row.names}


def of_object(obj: object) -> Transform | None:
    """Return the row of an object's class, or of a class above it; only MONAI's own classes count.

    Example:
        >>> of_object(object()) is None
        True
    """
    ours = (cls.__name__ for cls in type(obj).__mro__ if cls.__module__.partition(".")[0] == "monai")
    return next((BY_NAME[name] for name in ours if name in BY_NAME), None)
