"""The callback that makes a Lightning run repeatable: seeds, flags, keyed loaders and steps, record, exact resume."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch.utils.data import DataLoader

from repro_callbacks import flags, generators, keys
from repro_callbacks.callbacks import logging
from repro_callbacks.callbacks import trainer as trainers
from repro_callbacks.callbacks.base import Callback
from repro_callbacks.callbacks.methods import (
    BATCH_HOOKS,
    LOADER_METHODS,
    MID_STEP_HOOKS,
    SETUP_METHODS,
    STEP_METHODS,
    KeyedMethods,
)
from repro_callbacks.callbacks.repairs import Repairs
from repro_callbacks.callbacks.seeding import Seeding
from repro_callbacks.fingerprint.digest import digest_state
from repro_callbacks.held_flags import HeldFlags
from repro_callbacks.loading import KeyedLoader, Start, check_num_workers
from repro_callbacks.record import RunRecord
from repro_callbacks.record.beside import compare_at_resume


class Determinism(Callback):
    """Makes what a Trainer does a function of its seed, bit for bit.

    From the start of ``fit`` (``validate``, ``test``, ``predict``) to its end, everything random is keyed by where it
    is drawn: the order of an epoch, each sample's transforms, what ``training_step`` draws. So the same bits come for
    any ``num_workers``, whatever other callbacks and validation draw, and from any checkpoint that a run is resumed
    from. The user's objects are left as they were.

    A model that is built before ``fit`` takes its weights from whatever was seeded by then: call
    ``set_determinism(seed)`` first, or build it in ``configure_model``.

    Args:
        seed: 0 to 2³²-1. None takes that of an earlier ``set_determinism`` or ``seed_everything``, else draws one, and
            says which.
        deterministic: ``True``: an operator without a deterministic form raises an error that names the module.
            ``"warn"``: it warns. ``False``: torch's determinism flags are left alone.
        seeds: Another seed for some purposes: ``"order"`` (of samples), ``"augment"`` (their transforms), ``"init"``
            (what ``configure_model`` draws), ``"step"`` (what ``training_step`` draws).
        num_workers: Another number of workers than the loaders' own, for every loader. It changes no bits, except of an
            iterable dataset.
        log: Whether to log the :class:`~repro_callbacks.RunRecord` to the trainer's loggers, and write it beside them.

    Attributes:
        record: What must be known to repeat the run; None before it has started.

    Raises:
        TypeError, ValueError: If a seed or ``deterministic`` is not one of those allowed.

    Example:
        >>> from repro_callbacks import Determinism
        >>> callback = Determinism(seed=3407, deterministic="warn")
        >>> Determinism(seed=-1)
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
        log: bool = True,
    ) -> None:
        super().__init__()
        flags.check_mode(deterministic)
        check_num_workers(num_workers)
        self._seeding = Seeding(seed, seeds)
        self.deterministic = deterministic
        self.num_workers = num_workers
        self.log_record = log
        self.record: RunRecord | None = None
        self._run: _Run | None = None
        self._loaded: dict[str, Any] | None = None
        self._waiting: list[Any] = []  # TensorBoard loggers whose HParams tab is still empty

    @property
    def seed(self) -> int | None:
        """The base seed; None until one was given, found or drawn."""
        return self._seeding.seed

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each purpose."""
        return self._seeding.seeds

    # Lightning gives every callback its module's `log` before anything of the user's runs: DataModule.setup, which
    # comes before Callback.setup, is seeded because of that. Should a new version no longer do it, `setup` begins.
    @property
    def log(self) -> Any:
        """The module's ``log``, as Lightning gives it to every callback."""
        return self.__dict__["log"]

    @log.setter
    def log(self, value: Any) -> None:
        self.__dict__["log"] = value
        module = getattr(value, "__self__", None)
        if module is not None and getattr(module, "_trainer", None) is not None:
            self._begin(module.trainer)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if value is not None or name not in BATCH_HOOKS}
        return {**state, "_run": None, "log": None, "log_dict": None}

    # -- begin and end -----------------------------------------------------------------------------------------------

    def _begin(self, trainer: Any) -> None:
        if self._run is not None and self._run.trainer is trainer:
            return
        if self._run is not None:  # a run that broke down before it could end
            self._end()
        others = [callback for callback in trainer.callbacks if isinstance(callback, Determinism)]
        if others and others[0] is not self:
            return  # the script's own comes before one that was added to it
        # Trainer(deterministic=False) does what leaving it out does, so that nobody can tell the two apart.
        said = flags.contradiction(self.deterministic, "Determinism", "Trainer(deterministic={}) or set_determinism")
        if said is not None:
            warnings.warn(said, stacklevel=2)
        weights_were_seeded = self._seeding.seeded()
        self._run = _Run(trainer)
        try:
            self._seeding.resolve(trainer)
            flags.set_deterministic(self.deterministic)
            self._run.start(self)
        except BaseException:
            self._end()
            raise
        if not weights_were_seeded and any(True for _ in trainer.lightning_module.parameters()):
            warnings.warn(
                "the model's weights were made before anything was seeded, so that another process makes other ones: "
                f"call repro_callbacks.set_determinism(seed={self.seed}) before the model is built, or build it in "
                "configure_model",
                stacklevel=2,
            )

    def _end(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.undo()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Seed everything, and take over the making of loaders."""
        self._begin(trainer)
        if self._run is not None:
            self._seeding.agree(trainer)
            generators.seed_all(self._seeding.known)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave everything as it was."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Add to torch's error which module can't be deterministic; the end comes once the trainer is torn down."""
        if self._run is None:
            return
        self._run.failed = True
        if isinstance(exception, RuntimeError) and "deterministic" in str(exception):
            from repro_callbacks.audit import explain

            explanation = explain(exception, pl_module)
            if explanation is not None:
                exception.add_note(explanation)

    # -- positions ---------------------------------------------------------------------------------------------------

    def key_hook(self, trainer: Any, name: str) -> None:
        """Key the process-wide generators for one of the user's methods, at the trainer's position.

        A method that is called more than once there (by LBFGS, or for each of several loaders) gets a stream each time.
        """
        run = self._run
        if run is None:
            return
        step = trainers.step_of(trainer)
        if step != run.position:
            run.position, run.calls = step, {}
            run.flags.hold()
        call = run.calls[name] = run.calls.get(name, -1) + 1
        place = (self._seeding.of("step"), "step", step.stage, step.epoch)
        generators.key_all(keys.derive_within(place, step.batch, name, call, trainer.global_rank))

    def key_setup(self, trainer: Any, name: str) -> None:
        """Key the process-wide generators for a method that makes data or model."""
        if self._run is None:
            return
        if name == "datamodule.setup":  # the very seed: a split made here is that of seed_everything(seed) too
            generators.seed_all(self._seeding.known)
        elif name in LOADER_METHODS:
            if name == "train_dataloader":
                self._run.repairs.note_loaders(trainer)
            key = keys.derive(self.seeds["order"], "loader", name, trainers.loader_epoch(trainer))
            generators.key_all(key)
        else:
            generators.key_all(keys.derive(self.seeds["init"], "init", name))

    def where(self, trainer: Any, loader: KeyedLoader) -> Start:
        """Say at which position an iteration of a loader begins, from the trainer's own counters."""
        home = trainers.home_of(trainer, loader)
        stage, number, cycles = home if home is not None else (trainers.stage_of(trainer), 0, False)
        if stage != "train":
            return Start(stage, loader=number, rank=trainer.global_rank)
        epoch, done = trainers.train_position(trainer)
        cycle, batch = 0, done
        if cycles and not loader.iterable:
            cycle, batch = divmod(done, max(1, len(loader)))
        return Start(stage, epoch, batch, cycle, number, trainer.global_rank)

    # -- hooks -------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the record, log it, and compare it with that of the checkpoint that is resumed."""
        self._make_record(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Make and log the record of a validation that runs alone."""
        if self.record is None:
            self._make_record(trainer, pl_module)

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Repair what Lightning loses when it resumes."""
        if self._run is None:
            return
        self._run.repairs.on_train_start(trainer)
        self.key_hook(trainer, "on_train_start callbacks")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Key what other callbacks draw at the start of an epoch."""
        if self._run is not None:
            self._run.repairs.on_train_epoch_start(trainer)
        if self._waiting and self.record is not None:
            logging.log_waiting(self._waiting, self.record)
            self._waiting = []
        self.key_hook(trainer, "on_train_epoch_start callbacks")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Key what other callbacks draw at the end of an epoch."""
        if self._run is not None:
            self._run.repairs.on_train_epoch_end(trainer)
        self.key_hook(trainer, "on_train_epoch_end callbacks")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Make up for what was lost in the last epoch of all."""
        if self._run is not None:
            self._run.repairs.make_up_for_plateaus(trainer, trainer.current_epoch)

    def _make_record(self, trainer: Any, pl_module: Any) -> None:
        if self._run is None:
            return
        loaded = self._loaded or {}
        weights = loaded.get("record", {}).get("initial_weights") or digest_state(pl_module)
        self.record = RunRecord.capture(seed=self.seed, seeds=self.seeds, initial_weights=weights)
        if loaded.get("record"):
            difference = compare_at_resume(self.record, loaded["record"])
            if difference:
                warnings.warn(difference, stacklevel=2)
        if self.log_record:
            self._waiting = logging.log_record(trainer, self.record, pl_module)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the record and what the repairs need, as values that ``torch.load(weights_only=True)`` reads."""
        if self._run is None or self.record is None:
            return {}
        return {
            "version": 1,
            "seeds": dict(self.seeds),
            "record": self.record.to_dict(),
            "repairs": self._run.repairs.state_dict(self._run.trainer),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, and warn if the run goes on with other seeds."""
        self._loaded = dict(state_dict)
        if self._run is not None:
            self._run.repairs.load_state_dict(state_dict.get("repairs", {}))
            if state_dict.get("seeds") not in (None, self.seeds):
                warnings.warn(
                    f"the checkpoint was made with the seeds {state_dict['seeds']} and the run goes on with "
                    f"{self.seeds}: it is not the run that was never stopped. Give Determinism the checkpoint's seeds.",
                    stacklevel=2,
                )


class _Run:
    """What one run of a trainer has changed, to be undone."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.failed = False
        self.position: trainers.Step | None = None
        self.calls: dict[str, int] = {}
        self.repairs = Repairs()
        self.flags = HeldFlags(False, "Determinism")
        self._flags = flags.snapshot()
        self._generators = generators.snapshot()
        self._methods = KeyedMethods()
        self._callbacks: list[Any] = trainer.callbacks
        self._replaced: list[tuple[Any, str]] = []

    def start(self, callback: Determinism) -> None:
        trainer = self.trainer
        self.flags = HeldFlags(callback.deterministic, type(callback).__name__)
        # First in the list: what other callbacks draw is keyed before they draw it.
        trainer.callbacks = [callback, *(other for other in self._callbacks if other is not callback)]
        self._methods.pass_over(callback, BATCH_HOOKS)
        generators.seed_all(callback._seeding.known)
        for owner in trainers.data_sources(trainer):
            is_data = owner is not trainer.lightning_module
            for name in STEP_METHODS:
                self._methods.add(owner, name, lambda name: callback.key_hook(trainer, name))
            for name in (*SETUP_METHODS, *LOADER_METHODS):
                prefix = "datamodule." if is_data and name in SETUP_METHODS else ""
                self._methods.add(owner, name, lambda name, prefix=prefix: callback.key_setup(trainer, prefix + name))  # type: ignore[misc]

        for other in self._callbacks:
            kind = type(other).__qualname__  # so that what one callback draws (noise on gradients) stands by itself
            for name in MID_STEP_HOOKS:
                before = lambda name, kind=kind: callback.key_hook(trainer, f"{name} of {kind}")  # noqa: E731
                self._methods.add(other, name, before, isolated=True)

        strategy = trainer.strategy
        process_dataloader, teardown = strategy.process_dataloader, strategy.teardown

        def keyed_process_dataloader(loader: Any) -> Any:
            return self._keyed(callback, process_dataloader(loader))

        def teardown_and_end() -> None:
            teardown()
            if self.failed:  # Lightning calls no teardown hook after an exception
                callback._end()

        self._replace(strategy, "process_dataloader", keyed_process_dataloader)
        self._replace(strategy, "teardown", teardown_and_end)

    def _keyed(self, callback: Determinism, loader: Any) -> Any:
        if isinstance(loader, KeyedLoader):
            loader = loader.wrapped
        if not isinstance(loader, DataLoader):
            warnings.warn(
                f"{type(loader).__name__} is not a DataLoader, so what it draws can't be keyed by position: it repeats "
                "only as far as it does by itself, and does not resume. Return a torch DataLoader (or a MONAI one).",
                stacklevel=2,
            )
            return loader
        trainer = self.trainer
        return KeyedLoader(
            loader, callback.seeds, lambda keyed: callback.where(trainer, keyed), num_workers=callback.num_workers
        )

    def _replace(self, owner: Any, name: str, function: Any) -> None:
        setattr(owner, name, function)
        self._replaced.append((owner, name))

    def undo(self) -> None:
        for owner, name in self._replaced:
            vars(owner).pop(name, None)
        self._methods.remove()
        trainers.unwrap_loaders(self.trainer)
        if set(map(id, self.trainer.callbacks)) == set(map(id, self._callbacks)):
            self.trainer.callbacks = self._callbacks
        flags.restore(self._flags)
        generators.restore(self._generators)
