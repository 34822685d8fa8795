"""``repro-callbacks sample``: draws one augmented sample again, alone, and shows it.

Everything random in a sample is a function of seed, stage, epoch and index, so that nothing else has to run. It is
drawn in a fresh process, with everything in force that ``run`` has in force.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from repro_callbacks.callbacks.settings import Settings, parse_seed, parse_seeds
from repro_callbacks.command import launch
from repro_callbacks.command.run import argument, start, tell

STAGES: Final = {"train": "train", "validate": "val", "test": "test", "predict": "predict"}
"""A stage, and what Lightning calls its loader."""

_SETUP_STAGES: Final = {"train": "fit", "validate": "validate", "test": "test", "predict": "predict"}


class NoSample(ValueError):
    """The sample can't be drawn from what was named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sample``."""
    parser.add_argument(
        "source",
        metavar="MODULE_OR_SCRIPT:NAME",
        help="where the loader comes from: a DataLoader; a LightningDataModule or LightningModule, class or object; or "
        "a function that needs no argument and returns one of them",
    )
    parser.add_argument("--seed", type=argument(parse_seed), required=True, help="the seed of the run")
    parser.add_argument(
        "--seeds", type=argument(parse_seeds), default={}, metavar="order=1,augment=2", help="those of its purposes"
    )
    parser.add_argument("--index", type=int, required=True, help="the sample's index in the dataset")
    parser.add_argument("--epoch", type=int, default=0, help="the epoch, from 0")
    parser.add_argument("--occurrence", type=int, default=0, help="how often the index came before in that epoch")
    parser.add_argument("--stage", choices=tuple(STAGES), default="train", help="which loader (default: train)")
    parser.add_argument("--loader", type=int, default=0, help="which of several loaders of that stage, from 0")
    parser.add_argument("--out", type=Path, metavar="PNG", help="write a picture of what is an image in it")
    parser.add_argument("--save", type=Path, metavar="PT", help="write the sample with torch.save")


def run(arguments: argparse.Namespace) -> int:
    """Draw the sample and show it: 0, or 2 if it could not be drawn."""
    if Settings.from_environment(os.environ) is None:
        settings = Settings(
            start_seed=arguments.seeds.get("init", arguments.seed), seed=arguments.seed, seeds=arguments.seeds
        )
        try:
            return start([sys.executable, "-m", "repro_callbacks", "sample", *_words(arguments)], settings)
        except (launch.CannotRun, ValueError) as error:
            tell(str(error))
            return 2
    try:
        sample = draw(
            arguments.source,
            arguments.index,
            arguments.epoch,
            seed=arguments.seed,
            seeds=arguments.seeds,
            occurrence=arguments.occurrence,
            stage=arguments.stage,
            number=arguments.loader,
        )
        print(describe(sample))
        if arguments.save is not None:
            import torch

            torch.save(sample, arguments.save)
        if arguments.out is not None:
            from repro_callbacks.command.picture import write

            write(dict(leaves(sample)), arguments.out)
    except (NoSample, TypeError, IndexError) as error:
        tell(str(error))
        return 2
    return 0


def _words(arguments: argparse.Namespace) -> list[str]:
    """Write the arguments as a command line again."""
    words = [arguments.source]
    for name in ("seed", "index", "epoch", "occurrence", "stage", "loader", "out", "save"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name}={value}"]
    seeds = ",".join(f"{name}={seed}" for name, seed in arguments.seeds.items())
    return [*words, f"--seeds={seeds}"] if seeds else words


def draw(
    source: str,
    index: int,
    epoch: int = 0,
    *,
    seed: int,
    seeds: Mapping[str, int] | None = None,
    occurrence: int = 0,
    stage: str = "train",
    number: int = 0,
) -> Any:
    """Draw a sample of a run again, before it is collated.

    The data is made as a Trainer with :class:`~repro_callbacks.Determinism` makes it: ``setup`` and the loader's method
    are seeded and keyed as they are there.

    Args:
        source: ``module:name`` or ``path/to/script.py:name``, see the command's help.
        index: The sample's index in the dataset.
        epoch: From 0.
        seed: That of the run.
        seeds: Those of its purposes, where they had their own.
        occurrence: How often the index came before in that epoch (a sampler with replacement).
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        number: Which of several loaders of the stage.

    Raises:
        NoSample: If the source is not there, is no loader, or has no such index.
        TypeError: If the dataset is iterable-style.
    """
    from repro_callbacks import keys
    from repro_callbacks.loading import keyed

    every = keys.check_seeds(seed, seeds)
    loaders = list(_flat(_loaders(_find(source), stage, seed, every)))
    if not 0 <= number < len(loaders):
        raise NoSample(f"{source} has {len(loaders)} loaders for {stage}, so that there is no loader {number}")
    loader = keyed(loaders[number], seed, seeds=seeds, stage=stage, number=number)
    size = len(loader.dataset) if hasattr(loader.dataset, "__len__") else None
    if size is not None and not 0 <= index < size:
        raise NoSample(f"index must be from 0 to {size - 1}, since the dataset holds {size} samples, not {index}")
    return loader.sample(index, epoch, occurrence=occurrence)


def describe(sample: Any) -> str:
    """Return a line for each tensor, array or value of a sample, and the digest of it all.

    Example:
        >>> print(describe({"label": 3}))
        label  int  3
        digest c86d59cc4ccc2eca491e4e0e56ebc741
    """
    from repro_callbacks.fingerprint import digest_tree

    rows = [(name or "sample", *_describe_leaf(leaf)) for name, leaf in leaves(sample)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else [0, 0]
    lines = [f"{name:{widths[0]}}  {kind:{widths[1]}}  {value}".rstrip() for name, kind, value in rows]
    return "\n".join([*lines, f"digest {digest_tree(sample)}"])


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors, arrays and single values of nested data, each with its place.

    Example:
        >>> dict(leaves({"image": 1, "points": [2, 3]}))
        {'image': 1, 'points.0': 2, 'points.1': 3}
    """
    if isinstance(value, Mapping):
        parts: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        yield name, value
        return
    for key, part in parts:
        yield from leaves(part, f"{name}.{key}" if name else str(key))


def _describe_leaf(leaf: Any) -> tuple[str, str]:
    import numpy as np
    import torch

    kind = type(leaf).__name__
    if isinstance(leaf, torch.Tensor | np.ndarray):
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        dtype = str(leaf.dtype).removeprefix("torch.")
        values = torch.as_tensor(leaf) if np.asarray(leaf).dtype.kind in "biuf" else None
        span = "" if values is None or values.numel() == 0 else f"{values.min().item():g} to {values.max().item():g}"
        return f"{kind} {shape} {dtype}", span
    text = repr(leaf)
    return kind, text if len(text) <= 60 else text[:57] + "..."


# -- where the loader comes from ---------------------------------------------------------------------------------------


def _find(source: str) -> Any:
    place, sign, name = source.rpartition(":")
    if not sign or not name:
        raise NoSample(f"write where the loader comes from as module:name or script.py:name, not {source!r}")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise NoSample(f"there is no file {place}")
        sys.path.insert(0, str(path.parent.absolute()))  # as Python does for a script
        module = importlib.import_module(path.stem)
    else:
        sys.path.insert(0, os.getcwd())
        if importlib.util.find_spec(place.partition(".")[0]) is None:
            raise NoSample(f"there is no module {place}; for a file, write {place.replace('.', '/')}.py:{name}")
        module = importlib.import_module(place)
    if not hasattr(module, name):
        raise NoSample(f"{place} has no {name}")
    return getattr(module, name)


def _loaders(found: Any, stage: str, seed: int, seeds: Mapping[str, int]) -> Any:
    """Return the loader, or the loaders, of a stage."""
    from repro_callbacks import generators, keys

    if callable(found) and not hasattr(found, "__len__"):
        found = found()
    method = f"{STAGES[stage]}_dataloader"
    if not hasattr(found, method):
        return found
    if getattr(type(found), method).__module__.partition(".")[0] in ("lightning", "pytorch_lightning"):
        raise NoSample(f"{type(found).__name__} has no {method} of its own")
    # as Determinism.key_setup seeds and keys them
    generators.seed_all(seed)
    found.prepare_data()
    if hasattr(found, "training_step"):
        generators.key_all(keys.derive(seeds["init"], "init", "setup"))
    else:
        generators.seed_all(seed)
    found.setup(_SETUP_STAGES[stage])
    generators.key_all(keys.derive(seeds["order"], "loader", method, 0))
    return getattr(found, method)()


def _flat(loaders: Any) -> Iterator[Any]:
    """Yield the loaders of nested ones, in the order in which Lightning numbers them."""
    from torch.utils.data import DataLoader

    if isinstance(loaders, DataLoader):
        yield loaders
    elif isinstance(loaders, Mapping):
        for loader in loaders.values():
            yield from _flat(loader)
    elif isinstance(loaders, list | tuple):
        for loader in loaders:
            yield from _flat(loader)
    elif hasattr(loaders, "flattened"):  # Lightning's CombinedLoader
        yield from _flat(loaders.flattened)
    else:
        raise NoSample(f"expected a DataLoader, not {type(loaders).__name__}: {loaders!r:.80}")
