"""Prove that two runs are equal, or find where they part: digests, the file that keeps them, and its comparison."""

from repro_callbacks.fingerprint.digest import digest, digest_many, digest_state, digest_tree

__all__ = ["digest", "digest_many", "digest_state", "digest_tree"]
