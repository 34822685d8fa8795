"""Which commit the running code is from. Read with git itself; its answer is kept for the life of the process."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

TIMEOUT: Final = 1.0
"""Seconds that one question to git may take. A record is never worth waiting longer for."""

_GIT: Final = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false")  # writes nothing, starts no helper


def script_directory() -> Path:
    """Return where the running script lies; the working directory if it is installed, interactive or from ``-c``."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None:
        return Path.cwd()
    path = Path(script).resolve()
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    installed = any(prefix in path.parents for prefix in prefixes)
    return path.parent if path.is_file() and not installed else Path.cwd()


@functools.cache
def read(directory: Path) -> dict[str, str | bool | None]:
    """Return the commit that ``directory`` is at and whether its tracked files differ from it.

    Args:
        directory: Any directory of the repository.

    Returns:
        ``commit`` (40 or 64 hex digits), ``dirty`` (True if a tracked file was changed; files that git doesn't track
        are not looked at), ``changes`` (a digest of those changes, so that two dirty trees can be told apart) and
        ``repository`` (the name of its top folder). Each is None where it can't be known: no git, no repository, no
        commit yet, or no answer within :data:`TIMEOUT` seconds.
    """
    state: dict[str, str | bool | None] = dict.fromkeys(("commit", "dirty", "changes", "repository"))
    answer = _ask(directory, "rev-parse", "--show-toplevel", "--verify", "HEAD")
    if answer is None:
        return state
    top, commit = answer.decode(errors="replace").splitlines()
    state.update(commit=commit, repository=Path(top).name)
    status = _ask(directory, "status", "--porcelain", "--untracked-files=no")
    if status is None:
        return state
    state["dirty"] = bool(status.strip())
    if state["dirty"]:
        changes = _ask(directory, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color")
        state["changes"] = None if changes is None else hashlib.blake2b(changes, digest_size=16).hexdigest()
    return state


def _ask(directory: Path, *question: str) -> bytes | None:
    try:
        answer = subprocess.run(
            [*_GIT, *question],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, the directory is gone, or it takes too long
        return None
    return answer.stdout if answer.returncode == 0 else None
