"""How two records differ, in words, and which differences can change bits.

The policy is one table, :data:`RULES`: a field, what to call it, whether a difference in it can change the bits of a
training that is otherwise the same, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeAlias

from repro_callbacks.record.environment import ENVIRONMENT_VARIABLES

Scalar: TypeAlias = "str | int | float | bool | None"

NOT_SET: Final = "not set"
NOT_RECORDED: Final = "not recorded"
"""The value of a field that a record doesn't have, since it is of another version of this library."""


@dataclass(frozen=True)
class Rule:
    """What a difference in one field means.

    Attributes:
        label: What to call the field; ``{}`` stands for the last part of its name.
        can_change_bits: Whether a difference can change bits.
        reason: Why, or why not.
        absent: What to say of a value that is None.
    """

    label: str
    can_change_bits: bool
    reason: str
    absent: str = "None"


RULES: Final[dict[str, Rule]] = {
    "seed": Rule("the seed", True, "every random number follows from it", NOT_SET),
    "seeds/*": Rule("the seed for {}", True, "the random numbers of this purpose follow from it", NOT_SET),
    "initial_weights": Rule(
        "the digest of the initial weights", True, "the training started from other weights", "not known"
    ),
    "flags/num_threads": Rule(
        "torch's number of threads inside an operator", True, "a sum over more threads is added up in another order"
    ),
    "flags/num_interop_threads": Rule(
        "torch's number of threads between operators", False, "they run whole operators, whose bits don't change"
    ),
    "flags/CUBLAS_WORKSPACE_CONFIG": Rule("{}", True, "without :4096:8 or :16:8 cuBLAS is not repeatable", NOT_SET),
    "flags/PYTHONHASHSEED": Rule("{}", True, "it decides in which order sets of strings are walked", NOT_SET),
    "flags/PYTHONHASHSEED_in_force": Rule("{}", True, "else sets of strings are walked in another order each time"),
    "flags/*": Rule("{}", True, "a switch of torch or Python that chooses what is computed, or how"),
    "versions/python": Rule("Python", True, "the methods of random may change between versions, and so may set order"),
    "versions/torch": Rule("torch", True, "bits are not promised between releases, nor between builds"),
    "versions/cuda": Rule("CUDA", True, "its libraries bring other kernels", "absent"),
    "versions/hip": Rule("HIP", True, "its libraries bring other kernels", "absent"),
    "versions/cudnn": Rule("cuDNN", True, "it brings other kernels and chooses differently among them", "absent"),
    "versions/nccl": Rule("NCCL", True, "it may add up the ranks in another order", "absent"),
    "versions/numpy": Rule("NumPy", True, "the streams of Generator's methods may change between versions (NEP 19)"),
    "versions/*": Rule("{}", True, "another version may compute differently", "not installed"),
    "build/torch_config": Rule("torch's build configuration", True, "other compilers and options, other kernels"),
    "build/torch_commit": Rule("the commit that torch was built from", True, "other source, other kernels"),
    "build/blas": Rule("torch's BLAS", True, "each BLAS adds up in an order of its own", "absent"),
    "build/mkl": Rule("MKL", True, "bits are not promised between its versions", "absent"),
    "build/onednn": Rule("oneDNN", True, "its versions bring other kernels", "absent"),
    "build/numpy_blas": Rule("NumPy's BLAS", True, "each BLAS adds up in an order of its own"),
    "system/os": Rule("the operating system", True, "it brings another C library and another compiler's kernels"),
    "system/kernel": Rule("the kernel of the operating system", False, "it computes nothing of a training"),
    "system/libc": Rule("the C library", True, "exp, sin and the like are its own, and differ in the last bit"),
    "system/machine": Rule("the machine's architecture", True, "other instructions, other kernels"),
    "hardware/cpu": Rule("the CPU", True, "MKL and oneDNN choose kernels by its model and the size of its caches"),
    "hardware/cpu_count": Rule("the number of CPUs", False, "what counts are the threads, which are recorded"),
    "hardware/cpu_capability": Rule("the CPU capability that torch uses", True, "it chooses torch's CPU kernels"),
    "hardware/numpy_simd": Rule("the CPU features that NumPy uses", True, "they choose NumPy's kernels"),
    "hardware/accelerators": Rule("the accelerator", True, "each model has kernels of its own", "none"),
    "hardware/accelerator_count": Rule("the number of accelerators", False, "how many a run uses is its own choice"),
    **{f"environment/{name}": Rule(name, True, reason, NOT_SET) for name, reason in ENVIRONMENT_VARIABLES.items()},
    "code/commit": Rule("the git commit", True, "the code may compute something else", "none"),
    "code/dirty": Rule("the dirty state of the code", True, "the code may compute something else", "not known"),
    "code/changes": Rule("the digest of the uncommitted changes", True, "the code may compute something else", "none"),
    "code/repository": Rule("the name of the repository's folder", False, "a folder's name computes nothing", "none"),
    "command": Rule("the command line", True, "its options may ask for another training"),
    "schema": Rule("the version of the record's layout", False, "it tells of the record, not of the run"),
    "extra/num_workers": Rule("num_workers", False, "keyed loading gives the same samples for any number of workers"),
    "extra/*": Rule("{}", True, "nothing is known of it, so it can't be ruled out"),
    "*": Rule("{}", True, "nothing is known of it, so it can't be ruled out"),
}
"""Field, or pattern of fields, to its rule. The first that matches holds."""


def rule_of(field: str) -> Rule:
    """Return the rule of a field: the first of :data:`RULES` that matches it.

    Example:
        >>> rule_of("versions/monai").reason
        'another version may compute differently'
    """
    if field in RULES:
        return RULES[field]
    return next(rule for pattern, rule in RULES.items() if fnmatchcase(field, pattern))


@dataclass(frozen=True)
class Difference:
    """One field in which two records differ.

    Attributes:
        field: Its name, as in :meth:`RunRecord.flat`: ``"versions/torch"``.
        ours: Its value here.
        theirs: Its value there. Either may be :data:`NOT_RECORDED`.

    Example:
        >>> print(Difference("versions/torch", "2.13.0", "2.12.0"))
        torch is 2.13.0 here and 2.12.0 there: can change bits
    """

    field: str
    ours: Scalar
    theirs: Scalar

    @property
    def can_change_bits(self) -> bool:
        """Whether the difference can change bits, by :data:`RULES`."""
        return rule_of(self.field).can_change_bits

    @property
    def reason(self) -> str:
        """Why it can or can't."""
        return rule_of(self.field).reason

    @property
    def sentence(self) -> str:
        """The difference in words."""
        rule = rule_of(self.field)
        label = rule.label.format(self.field.rpartition("/")[2])
        ours, theirs = _say(self.ours, rule.absent), _say(self.theirs, rule.absent)
        verdict = "can change bits" if rule.can_change_bits else "can't change bits"
        return f"{label} is {ours} here and {theirs} there: {verdict}"

    def __str__(self) -> str:
        return self.sentence


class Differences(list[Difference]):
    """The differences of two records; as a string, one to a line, those that can change bits first.

    Example:
        >>> cpus = Difference("hardware/cpu_count", 2, 8)
        >>> print(Differences([cpus, Difference("seed", 0, 1)]))
        the seed is 0 here and 1 there: can change bits (every random number follows from it)
        the number of CPUs is 2 here and 8 there: can't change bits (what counts are the threads, which are recorded)
    """

    def changing_bits(self) -> Differences:
        """Return only those that can change bits."""
        return Differences(difference for difference in self if difference.can_change_bits)

    def __str__(self) -> str:
        if not self:
            return "no differences"
        ordered = sorted(self, key=lambda difference: not difference.can_change_bits)
        return "\n".join(f"{difference} ({difference.reason})" for difference in ordered)


def compare(ours: Mapping[str, Scalar], theirs: Mapping[str, Scalar]) -> Differences:
    """Return where two flat records differ. A field that is None in one and isn't recorded in the other doesn't.

    Example:
        >>> print(compare({"versions/itk": "5.4.0", "schema": 1}, {"schema": 1})[0])
        itk is 5.4.0 here and not recorded there: can change bits
    """
    found = Differences()
    for field in dict.fromkeys([*ours, *theirs]):
        here, there = _value(ours, field), _value(theirs, field)
        nothing = {here, there} <= {None, NOT_RECORDED}
        # Not ==: True equals 1, and nan equals nothing.
        if not nothing and (type(here), repr(here)) != (type(there), repr(there)):
            found.append(Difference(field, here, there))
    return found


def _value(flat: Mapping[str, Scalar], field: str) -> Scalar:
    """Return a field's value. A variable that isn't set has no field; another field that is missing isn't recorded."""
    return flat.get(field, None if rule_of(field).absent == NOT_SET else NOT_RECORDED)


def _say(value: Scalar, absent: str) -> str:
    if value is None or value == NOT_RECORDED:
        return absent if value is None else NOT_RECORDED
    return repr(value) if isinstance(value, str) and len(value.split()) != 1 else str(value)
