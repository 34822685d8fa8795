"""The handler that makes a run of a MONAI or Ignite engine repeatable: seeds, flags, keying, record, resume."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch

from repro_callbacks import determinism, flags, keys
from repro_callbacks.fingerprint.digest import combine, digest_state
from repro_callbacks.handlers import engine as engines
from repro_callbacks.handlers import repairs, smartcache
from repro_callbacks.handlers.attachment import Attachment, rank
from repro_callbacks.handlers.position import Position
from repro_callbacks.loading import KeyedLoader, check_num_workers
from repro_callbacks.record import RunRecord
from repro_callbacks.record.beside import compare_at_resume, record_file, write_record

STAGES = ("train", "validate", "test", "predict")


class DeterminismHandler:
    """Makes what an engine of MONAI or Ignite does a function of its seed, bit for bit.

    While the engine runs, everything random is keyed by where it is drawn: the order of the samples, each sample's
    transforms, what an iteration draws. So the same bits come for any ``num_workers``, whatever other handlers and
    validation draw, and from any checkpoint of an iteration or epoch that a run is resumed from. Afterwards
    everything is as it was. One handler can be attached to several engines, a trainer and its evaluator.

    A network that is built before takes its weights from whatever was seeded by then: call ``set_determinism(seed)``
    first.

    To resume exactly, put the handler into the ``save_dict`` of ``CheckpointSaver`` and the ``load_dict`` of
    ``CheckpointLoader``, beside the trainer, the network and the optimizer.

    Args:
        seed: 0 to 2³²-1. None takes that of an earlier ``set_determinism`` or of the engine around this one, else
            draws one, and says which.
        deterministic: ``True``: an operator without a deterministic form raises an error that names the module.
            ``"warn"``: it warns. ``False``: torch's determinism flags are left alone.
        seeds: Another seed for some purposes: ``"order"`` (of samples), ``"augment"`` (their transforms), ``"init"``
            (nothing here), ``"step"`` (what an iteration and the handlers draw).
        num_workers: Another number of workers than the loaders' own. It changes no bits, except of an iterable dataset.
        record_path: A JSON file, or a folder, for the :class:`~repro_callbacks.RunRecord`; written by the first process
            when the run starts. An earlier file is kept: the next one is ``run_record.1.json`` and so on.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``. None: ``"validate"`` for MONAI's evaluators and
            for a plain Ignite engine that runs inside another's run, else ``"train"``. Each run of ``"validate"`` draws
            the same; an engine that trains inside another's run draws something else each time.

    Attributes:
        record: What must be known to repeat the run; None before it has started.

    Raises:
        TypeError, ValueError: If an argument is not one of those allowed.

    Example:
        >>> from ignite.engine import Engine
        >>> engine = Engine(lambda engine, batch: (batch.tolist(), torch.rand(1).item()))
        >>> DeterminismHandler(seed=3407, deterministic="warn").attach(engine)
        >>> loader = torch.utils.data.DataLoader(torch.arange(6), batch_size=2, shuffle=True)
        >>> engine.run(loader).output == engine.run(loader).output
        True
        >>> DeterminismHandler(seed=-1)
        Traceback (most recent call last):
        ...
        ValueError: seed must be an integer from 0 to 4294967295, not -1
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        deterministic: bool | Literal["warn"] = True,
        seeds: Mapping[str, int] | None = None,
        num_workers: int | None = None,
        record_path: str | os.PathLike[str] | None = None,
        stage: str | None = None,
    ) -> None:
        flags.check_mode(deterministic)
        check_num_workers(num_workers)
        if stage is not None and stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(map(repr, STAGES))}, or None, not {stage!r}")
        self._given = None if seed is None else keys.check_seed(seed)
        self._given_seeds = dict(seeds or {})
        keys.check_seeds(0, self._given_seeds)
        self.seed = self._given
        self.deterministic = deterministic
        self.num_workers = num_workers
        self.record_path = record_path
        self.stage = stage
        self.record: RunRecord | None = None
        self._outermost: Attachment | None = None
        self._loaded: dict[str, Any] | None = None
        self._weights_were_seeded = True

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each purpose.

        Raises:
            RuntimeError: If the seed is to be found or drawn when an engine runs, and none has run yet.
        """
        if self.seed is None:
            raise RuntimeError("the seed is not known before the run begins")
        return keys.check_seeds(self.seed, self._given_seeds)

    def attach(self, engine: Any) -> None:
        """Let an engine run under this handler from its next run on; its place among other handlers does not matter.

        Args:
            engine: A SupervisedTrainer, SupervisedEvaluator, GanTrainer or another of MONAI's engines, or any
                ``ignite.engine.Engine``.

        Raises:
            TypeError: If it is not an engine, or one that seeds by itself (Ignite's ``DeterministicEngine``).
            ValueError: If a DeterminismHandler is attached to it already.
        """
        engines.check_engine(engine)
        if isinstance(getattr(engine.run, "attachment", None), Attachment):
            raise ValueError(
                f"this {type(engine).__name__} has a DeterminismHandler already, and only one can seed it: leave one "
                "out"
            )
        Attachment(self, engine)

    # -- what an attachment calls ------------------------------------------------------------------------------------

    def begin(self, attachment: Attachment) -> int:
        """Find the seed, before an engine runs, and look at what was seeded before."""
        outer = attachment.outer
        if outer is None:
            self._outermost = attachment
            self._weights_were_seeded = determinism.seeded() is not None
            said = flags.contradiction(self.deterministic, "DeterminismHandler", "set_determinism with {}")
            if said is not None:
                warnings.warn(said, stacklevel=2)
        if self._given is None and (outer is None or outer.handler is not self):
            self.seed = self._find_seed(outer)
        assert self.seed is not None
        return self.seed

    def started(self, attachment: Attachment) -> None:
        """Go on from a checkpoint, and make the record, once all other handlers of a run's start were called."""
        engine = attachment.engine
        outermost = attachment.outer is None
        loaded, self._loaded = (self._loaded, None) if outermost else (None, self._loaded)
        matches = loaded is not None and engine.state.iteration == loaded["iteration"] != 0
        attachment.settle(Position.from_state(loaded["position"]) if loaded is not None and matches else None)
        lost_epoch_end = False
        if loaded is not None:
            self._compare_seeds(loaded)
        if loaded is not None and matches:
            self._restore_stream(engine, loaded)
            repairs.warn_of_cut_iteration(engine, loaded)
            repairs.restore(engine, loaded)
            lost_epoch_end = repairs.lost_epoch_end(engine, loaded)
        smart_caches = list(engines.smart_caches(engine))
        for cache in smart_caches:
            smartcache.align(cache, engine.state.epoch - lost_epoch_end)
            smartcache.warn_of_problems(cache, engine.state.dataloader, engine.state.epoch_length)
        if engine.state.epoch and not smart_caches:
            smartcache.warn_of_unmanaged(engine.state.dataloader)
        if outermost or self.record is None:
            self._make_record(engine, loaded or {})
        if lost_epoch_end:
            repairs.make_up_for_epoch_end(engine)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the record and where the engine is, as values that ``torch.load(weights_only=True)`` reads."""
        attachment = self._outermost
        if attachment is None or self.record is None:
            return {}
        state = {
            "version": 1,
            "seeds": self.seeds,
            "record": self.record.to_dict(),
            "iteration": attachment.engine.state.iteration,
            "position": attachment.position.state_dict(),
            **repairs.state_dict(attachment),
        }
        loader = attachment.engine.state.dataloader
        if isinstance(loader, KeyedLoader) and loader.iterable:
            state["stream"] = loader.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; it takes effect when the engine starts.

        Raises:
            ValueError: If it is not the state of a DeterminismHandler.
        """
        if not state_dict:  # saved before any run
            return
        if state_dict.get("version") != 1 or "position" not in state_dict:
            raise ValueError(f"not the state of a DeterminismHandler: it holds {sorted(state_dict)}")
        self._loaded = dict(state_dict)

    def _restore_stream(self, engine: Any, loaded: Mapping[str, Any]) -> None:
        loader = engine.state.dataloader
        if "stream" in loaded and isinstance(loader, KeyedLoader) and loaded["seeds"] == self.seeds:
            loader.load_state_dict(loaded["stream"])

    def _compare_seeds(self, loaded: Mapping[str, Any]) -> None:
        if loaded["seeds"] != self.seeds:
            warnings.warn(
                f"the checkpoint was made with the seeds {loaded['seeds']} and the run goes on with {self.seeds}: it "
                "is not the run that was never stopped. Give DeterminismHandler the checkpoint's seeds.",
                stacklevel=2,
            )

    # -- seed and record ---------------------------------------------------------------------------------------------

    def _find_seed(self, outer: Attachment | None) -> int:
        if outer is not None and isinstance(outer.handler, DeterminismHandler) and outer.handler.seed is not None:
            return outer.handler.seed
        found = determinism.known_seed()
        if found is not None:
            seed, source = found
            _say(f"DeterminismHandler: seed {seed}, from {source}")
            return seed
        seed = _agreed(secrets.randbelow(keys.MAX_SEED + 1) if self.seed is None else self.seed)
        _say(f"DeterminismHandler: drew seed {seed}; give DeterminismHandler(seed={seed}) to repeat this run")
        return seed

    def _make_record(self, engine: Any, loaded: Mapping[str, Any]) -> None:
        networks = engines.networks(engine)
        weights = loaded.get("record", {}).get("initial_weights")
        if weights is None and networks:
            digests = {name: digest_state(network) for name, network in networks.items()}
            weights = digests["network"] if list(digests) == ["network"] else combine(digests)
        if networks and not loaded and not self._weights_were_seeded:
            warnings.warn(
                "the network's weights were made before anything was seeded, so that another process makes other "
                f"ones: call repro_callbacks.set_determinism(seed={self.seed}) before the network is built",
                stacklevel=2,
            )
        self.record = RunRecord.capture(seed=self.seed, seeds=self.seeds, initial_weights=weights)
        if loaded:
            differs = compare_at_resume(self.record, loaded["record"])
            if differs is not None:
                warnings.warn(differs, stacklevel=2)
        if self.record_path is not None and rank() == 0:
            write_record(record_file(self.record_path), self.record)


def _agreed(seed: int) -> int:
    """Return the seed that the first process drew."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return seed
    seeds = [seed]
    torch.distributed.broadcast_object_list(seeds, src=0)
    return seeds[0]


def _say(message: str) -> None:
    if rank() == 0:
        print(message, flush=True)
