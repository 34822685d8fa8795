"""What a first divergence means: its class, the likely cause, and the remedy, in words for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from repro_callbacks.record import Difference


@dataclass(frozen=True)
class Cause:
    """A class of causes.

    Attributes:
        name: What it is called in JSON.
        subject: What differs.
        likely: What usually brings it about.
        remedy: What to do.
    """

    name: str
    subject: str
    likely: str
    remedy: str
    plural: bool = False

    @property
    def clause(self) -> str:
        """The class as the beginning of a sentence: "the initial weights differ"."""
        return f"{self.subject} differ" + ("" if self.plural else "s")


_ZOOM: Final = (
    "Let repro-callbacks verify name the operator (from Python: repro_callbacks.callbacks.zoom.zoom_fit); set "
    "Determinism(deterministic=True)."
)
_CAUSES: Final = (
    Cause(
        "world size",
        "the number of processes",
        "gradients of more processes are added up in another order, and each process draws its own random numbers",
        "Compare runs with the same number of processes. With Determinism the order and content of the samples "
        "agree for any number of them with the same global batch; the sums of gradients can't.",
    ),
    Cause(
        "model structure",
        "the model itself",
        "parameters were added, removed, renamed or given another shape: the code or its settings changed",
        "Build both runs from the same code and the same settings.",
    ),
    Cause(
        "environment",
        "the environment",
        "software, hardware or a setting that can change bits is not the same",
        "Give both runs the same, or take the difference as the answer.",
    ),
    Cause(
        "initial weights",
        "the initial weights",
        "the model was built before anything was seeded, or something drew random numbers before it",
        "Call set_determinism(seed) first in the script, before the model is built, or build it in configure_model.",
        plural=True,
    ),
    Cause(
        "resume",
        "the run after its resume",
        "something that the training depends on was not in the checkpoint, or was not restored from it",
        "Use Determinism in both the first run and the resumed one; keep any state of your own in state_dict.",
    ),
    Cause(
        "order of samples",
        "the order of the samples",
        "the sampler draws from a generator that was not seeded, or that something else drew from as well",
        "Use Determinism (or keyed(loader, seed)): it makes the order a function of seed and epoch alone.",
    ),
    Cause(
        "content of a sample",
        "the content of a sample",
        "a random transform drew other numbers (workers not seeded, another number of workers, a generator of its "
        "own), a transform was changed, or the data itself was",
        "Use Determinism (or keyed(loader, seed)); then draw that sample again, alone, with repro-callbacks sample.",
    ),
    Cause(
        "generator state",
        "the state of a random number generator",
        "something drew random numbers in one run and not in the other: a callback, validation, a new iterator",
        "Use Determinism, which keys the generators for each step, so that nothing drawn elsewhere shifts them.",
    ),
    Cause(
        "forward",
        "the forward pass",
        "an operator computed other bits from the same inputs, or the code of the forward pass or the loss is another",
        _ZOOM,
    ),
    Cause(
        "gradient",
        "the gradients",
        "an operator's backward pass computed other bits, or the reduction over processes, or a hook changed it",
        _ZOOM,
        plural=True,
    ),
    Cause(
        "optimizer",
        "the optimizer's step",
        "the learning rate, another setting or the state of the optimizer or its schedule is not the same",
        "Compare the optimizers' settings, schedules and gradient clipping of the two runs.",
    ),
    Cause(
        "parameters",
        "the parameters",
        "something besides the optimizer wrote to them: a callback, an average of weights, a constraint",
        "Look for what writes to the weights between two steps.",
        plural=True,
    ),
    Cause(
        "validation",
        "the validation",
        "validation drew random numbers, its data or their order differ, or an operator computed other bits in it",
        "Use Determinism, which keys validation too; the training up to there is the same in both runs.",
    ),
    Cause(
        "length",
        "the number of steps",
        "one run was stopped earlier, was asked for more, or has another number of batches in an epoch",
        "Train both for the same number of steps, or let the shorter one be resumed to its end.",
    ),
)
CAUSES: Final = {cause.name: cause for cause in _CAUSES}
"""Name to class of causes, in the order in which they are looked for."""

STAGES: Final = {
    "data": "content of a sample",
    "before": "generator state",
    "after": "generator state",
    "loss": "forward",
    "buffers": "forward",
    "gradients": "gradient",
    "schedule": "optimizer",
    "optimizer": "optimizer",
    "parameters": "parameters",
    "step": "optimizer",
}
"""The fields of a step in the order in which it computes them, and the class that a first difference in one means."""

STAGE_NAMES: Final = {
    "data": "the batch",
    "before": "the generators before the forward pass",
    "after": "the generators after it",
    "loss": "the loss",
    "buffers": "the buffers",
    "gradients": "the gradients",
    "schedule": "the optimizer's settings and schedule",
    "optimizer": "the optimizer's state",
    "parameters": "the parameters",
    "step": "the number of optimizer steps",
}

_WEAK: Final = ("code/*", "command", "extra/*", "initial_weights", "versions/repro-callbacks", "hardware/cpu_count")
"""Fields in which honest repeats differ every day; named as possible, never taken as the cause."""

_NUMERIC: Final = ("flags/*", "versions/*", "build/*", "system/*", "hardware/*", "environment/*")
_RANDOM: Final = ("seed", "versions/*", "flags/*PYTHONHASHSEED*", "flags/hash_randomization")
_PLAUSIBLE: Final = {
    "initial weights": (*_RANDOM, "seeds/init"),
    "order of samples": (*_RANDOM, "seeds/order"),
    "content of a sample": ("seed", "seeds/augment", *_NUMERIC),
    "generator state": (*_RANDOM, "seeds/step"),
    "forward": ("seed", "seeds/step", *_NUMERIC),
    "gradient": _NUMERIC,
    "optimizer": _NUMERIC,
    "parameters": _NUMERIC,
    "validation": ("seed", "seeds/step", "seeds/augment", *_NUMERIC),
    "resume": ("seed", "seeds/*", *_NUMERIC),
}
"""Which differences of two records could bring about a first divergence of a class. A seed can't change a gradient
whose forward pass agreed, nor a number of threads the order of the samples."""


def explaining(differences: Iterable[Difference], cause: str) -> list[Difference]:
    """Return the differences of two records that could have brought about a divergence of a class."""
    return [
        difference
        for difference in differences
        if difference.can_change_bits
        and not _matches(difference.field, _WEAK)
        and _matches(difference.field, _PLAUSIBLE.get(cause, ()))
    ]


def possible(differences: Iterable[Difference]) -> list[Difference]:
    """Return the differences in code and command, which may or may not matter."""
    return [own for own in differences if own.can_change_bits and _matches(own.field, ("code/*", "command"))]


def _matches(field: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(field, pattern) for pattern in patterns)
