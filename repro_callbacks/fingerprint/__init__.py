"""Prove that two runs are equal, or find where they part: digests, the file that keeps them, and its comparison."""

# Not by name on use: `compare` and `digest` are modules as well, and importing one would hide the function behind it.
from repro_callbacks.fingerprint.compare import Comparison, Divergence, compare
from repro_callbacks.fingerprint.digest import digest, digest_many, digest_state, digest_tree
from repro_callbacks.fingerprint.runs import NotComparable

__all__ = [
    "Comparison",
    "Divergence",
    "NotComparable",
    "compare",
    "digest",
    "digest_many",
    "digest_state",
    "digest_tree",
]
