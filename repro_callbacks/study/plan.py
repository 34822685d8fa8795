"""Which runs a study consists of: seeds, variants, and what each seed is given to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from repro_callbacks.keys import PURPOSES, check_seed
from repro_callbacks.study.tables import repeated
from repro_callbacks.study.task import Task

EACH = (*PURPOSES, "all")


def check_study_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Return seeds as integers, each once.

    Raises:
        TypeError, ValueError: If one is no seed, one comes twice, or there is none.
    """
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Iterable):
        raise TypeError(f"seeds must be integers such as range(100), not {seeds!r} of type {type(seeds).__name__}")
    checked = tuple(check_seed(seed, "a seed of a study") for seed in seeds)
    if not checked:
        raise ValueError("seeds is empty; give at least one, such as range(100)")
    twice = next((seed for i, seed in enumerate(checked) if seed in checked[:i]), None) if len(checked) < 1000 else None
    if twice is not None or len(set(checked)) != len(checked):
        raise ValueError("seeds has the same seed twice" if twice is None else f"seeds has {twice} twice")
    return checked


def check_vary(vary: str | Sequence[str]) -> tuple[str, ...]:
    """Return what is to be varied, as a tuple of ``"all"``, purposes, and purposes joined by ``+``.

    Raises:
        ValueError: If a purpose is unknown.

    Example:
        >>> check_vary("each")
        ('order', 'augment', 'init', 'step', 'all')
        >>> check_vary("order,init+step")
        ('order', 'init+step')
    """
    words = vary.split(",") if isinstance(vary, str) else list(vary)
    found: list[str] = []
    for word in words:
        if word == "each":
            found += EACH
        elif word == "all":
            found.append(word)
        else:
            parts = word.split("+")
            unknown = next((part for part in parts if part not in PURPOSES), None)
            if unknown is not None or len(set(parts)) != len(parts):
                raise ValueError(
                    f"vary must be 'all', 'each', or purposes ({', '.join(PURPOSES)}), alone or joined by '+', "
                    f"not {word!r}"
                )
            found.append("+".join(purpose for purpose in PURPOSES if purpose in parts))
    return tuple(dict.fromkeys(found))


def make_tasks(
    out: Path, variants: Sequence[str], vary: Sequence[str], seeds: Sequence[int], fixed: int, check: int
) -> list[Task]:
    """Return the runs of a study, in the order in which they are started: each seed whole before the next.

    Args:
        out: The study's folder, absolute.
        variants: Names; ``[""]`` if there is only one.
        vary: What is varied.
        seeds: The seeds.
        fixed: The seed of what is not varied.
        check: How many seeds are run twice, each right after its first run.
    """
    tasks = []
    for position, seed in enumerate(seeds):
        for variant in variants:
            for what in vary:
                task = _task(out, variant, what, seed, fixed, several=len(vary) > 1)
                tasks.append(task)
                if position < check and what == vary[0]:
                    name = repeated(task.name)
                    again = Task(**{**vars(task), "name": name, "folder": str(out / "runs" / name), "fresh": True})
                    tasks.append(again)
    return tasks


def _task(out: Path, variant: str, vary: str, seed: int, fixed: int, several: bool) -> Task:
    varied = PURPOSES if vary == "all" else vary.split("+")
    name = "/".join([*([variant] if variant else []), *([vary] if several else []), f"seed-{seed}"])
    return Task(
        name=name,
        variant=variant,
        vary=vary,
        seed=seed,
        base=seed if vary == "all" else fixed,
        seeds={purpose: seed if purpose in varied else fixed for purpose in PURPOSES},
        folder=str(out / "runs" / name),
    )
