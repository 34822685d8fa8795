"""An engine with a handler attached: what is changed while the engine runs, and put back afterwards.

The engine's ``run`` is wrapped, and not its events alone, because only so is everything put back whatever happens: an
event handler for exceptions would keep others from being called, or an exception from being raised.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import distributed
from torch.utils.data import DataLoader

from repro_callbacks import flags, generators, keys
from repro_callbacks.handlers import engine as engines
from repro_callbacks.handlers.engine import Events
from repro_callbacks.handlers.position import Position
from repro_callbacks.held_flags import HeldFlags
from repro_callbacks.loading import KeyedLoader, Start

_running: list[Attachment] = []
"""The attachments whose engines run now, outermost first: a trainer, then the evaluator that it runs."""


class Handler(Protocol):
    """What an attachment needs of its handler."""

    deterministic: flags.Mode
    stage: str | None
    num_workers: int | None

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each purpose."""

    def begin(self, attachment: Attachment) -> int:
        """Called before the engine runs; returns the base seed, and the seeds are known from then on."""

    def started(self, attachment: Attachment) -> None:
        """Called once everybody else's handlers of ``Events.STARTED`` were."""


class Attachment:
    """One engine, to which a handler is attached.

    Args:
        handler: The handler.
        engine: The engine; its ``run`` is wrapped.
    """

    def __init__(self, handler: Handler, engine: Any) -> None:
        self.handler = handler
        self.engine = engine
        self.outer: Attachment | None = None
        self.stage = "train"
        self.position = Position()
        self.within = False
        """Whether the engine is in the middle of an iteration."""
        self.epoch_ended = True
        """Whether the end of the last epoch was announced, or none has begun."""
        self._awaited: Position | None = None  # of a checkpoint, for a loader that is yet to be set
        self._seeds: dict[str, int] = {}
        self._begun_at = 0
        self._left_at = 0
        self._interrupted = False
        self._terminated = False
        self._calls: dict[str, int] = {}
        self._flags = HeldFlags(False, "")
        self._inner = (-1, 0)
        self._loaders: dict[int, tuple[Any, KeyedLoader]] = {}
        self._inside: list[Attachment] = []
        self._thread = 0
        self._firing: Callable[..., None]
        engine.run = self._wrapped(engine.run)

    def _wrapped(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def keyed_run(*args: Any, **kwargs: Any) -> Any:
            with self._around():
                return run(*args, **kwargs)

        keyed_run.attachment = self  # type: ignore[attr-defined]
        return keyed_run

    # -- begin and end -----------------------------------------------------------------------------------------------

    @contextmanager
    def _around(self) -> Iterator[None]:
        if self in _running:  # Ignite refuses to run an engine inside of its own run, and says so
            yield
            return
        if _running and _running[0]._thread != threading.get_ident():
            warnings.warn(
                "two engines run at the same time in two threads, which draw from the same process-wide generators: "
                "neither can be repeated. Run one after the other.",
                stacklevel=4,
            )
        self._thread = threading.get_ident()
        self.outer = _running[-1] if _running else None
        saved_flags, saved_generators = flags.snapshot(), generators.snapshot()
        _running.append(self)
        try:
            self._begin()
            yield
        except RuntimeError as error:
            self._explain(error)
            raise
        finally:
            self._end()
            _running.remove(self)
            flags.restore(saved_flags)
            generators.restore(saved_generators)

    def _begin(self) -> None:
        self._terminated = bool(self.engine.should_terminate)
        if not self._interrupted:
            self.stage = self._stage()
        seed = self.handler.begin(self)
        self._seeds = self.handler.seeds
        flags.set_deterministic(self.handler.deterministic)
        self._flags = HeldFlags(self.handler.deterministic, type(self.handler).__name__)
        generators.seed_all(seed)
        self._firing = engines.replace_firing(self.engine, self._fire)
        set_data = self.engine.set_data

        @functools.wraps(set_data)
        def keyed_set_data(data: Any) -> None:
            self._next_loader()
            set_data(self._keyed(data))

        self.engine.set_data = keyed_set_data
        if self._interrupted:  # the engine goes on in the middle of an epoch, without another start
            self.engine.state.dataloader = self._keyed(self.engine.state.dataloader)
            if self.within:
                self._key(f"{engines.event_name(Events.ITERATION_STARTED)} after", 0)

    def _end(self) -> None:
        engines.restore_firing(self.engine)
        vars(self.engine).pop("set_data", None)
        loader = self.engine.state.dataloader
        if isinstance(loader, KeyedLoader):
            self.engine.state.dataloader = loader.wrapped
        self._left_at = self.engine.state.iteration
        if self.outer is not None:
            self.outer._inside.append(self)  # its loaders, and their persistent workers, are used again
        elif not self._interrupted:
            self._drop_loaders()

    def _drop_loaders(self) -> None:
        for attachment in self._inside:
            attachment._drop_loaders()
        for _, keyed in self._loaders.values():
            keyed._iterator = None  # ends persistent workers
        self._inside, self._loaders = [], {}

    def _explain(self, error: RuntimeError) -> None:
        if "deterministic" not in str(error):
            return
        from repro_callbacks.audit import explain

        for network in engines.networks(self.engine).values():
            explanation = explain(error, network)
            if explanation is not None and explanation not in getattr(error, "__notes__", ()):
                error.add_note(explanation)

    def _stage(self) -> str:
        stage = self.handler.stage
        if stage is None:
            train = engines.is_trainer(self.engine) or (self.outer is None and not engines.is_evaluator(self.engine))
            stage = "train" if train else "validate"
        if stage != "train" or self.outer is None:
            return stage
        # A training inside of another: each time that it runs it draws something else.
        iteration, (before, number) = self.outer.engine.state.iteration, self.outer._inner
        self.outer._inner = (iteration, number + 1 if iteration == before else 0)
        return f"train in {self.outer.stage} {iteration} {self.outer._inner[1]}"

    # -- loaders and positions ---------------------------------------------------------------------------------------

    def _install(self) -> None:
        """Put a keyed loader in place of the user's, at the start of a run."""
        iteration = self._begun_at = self.engine.state.iteration
        if iteration == 0 or iteration != self._left_at:
            self.position = Position()
        elif self._terminated:  # Ignite begins another epoch, with another iterator
            self.position.begin_pass(iteration)
        self.position.loader, self._awaited = 0, None
        self.within, self.epoch_ended = False, True
        self._inner = (-1, 0)
        self._calls.clear()
        self.engine.state.dataloader = self._keyed(self.engine.state.dataloader)

    def settle(self, loaded: Position | None) -> None:
        """Find the position once the engine's counters are final.

        Args:
            loaded: That of the checkpoint from which the counters were loaded, if it had one.
        """
        iteration = self.engine.state.iteration
        if iteration != self._begun_at:
            self.position = Position(self.position.loader)
        if loaded is not None and loaded.loader == self.position.loader:
            self.position = loaded
            return
        self._awaited = loaded
        if iteration == self._begun_at and iteration in (0, self._left_at):
            return
        loader = self.engine.state.dataloader
        if isinstance(loader, KeyedLoader):
            self.position.suppose(iteration, self._length(loader))

    def _length(self, loader: KeyedLoader) -> int | None:
        try:
            return len(loader)
        except TypeError:
            warnings.warn(
                f"{type(loader.dataset).__name__} has no length, so the engine goes on as if each epoch before "
                f"iteration {self.engine.state.iteration} had been one pass over it: put the handler into the "
                "save_dict of CheckpointSaver and the load_dict of CheckpointLoader, and it goes on where it was",
                stacklevel=2,
            )
            return self.engine.state.epoch_length  # type: ignore[no-any-return]

    def _next_loader(self) -> None:
        number = self.position.loader + 1
        if self._awaited is not None and self._awaited.loader == number:
            self.position, self._awaited = self._awaited, None
        else:
            self.position.begin_pass(self.engine.state.iteration)
            self.position.loader = number

    def _keyed(self, loader: Any) -> Any:
        if isinstance(loader, KeyedLoader):
            loader = loader.wrapped
        if loader is None:
            return None
        if not isinstance(loader, DataLoader):
            warnings.warn(
                f"the engine runs over a {type(loader).__name__}, not a DataLoader, so what it draws can't be keyed by "
                "position: it repeats only as far as it does by itself, and a resumed run begins it anew. Give the "
                "engine a torch DataLoader (or a MONAI one).",
                stacklevel=2,
            )
            return loader
        if id(loader) not in self._loaders:
            keyed = KeyedLoader(loader, self._seeds, self._where, num_workers=self.handler.num_workers)
            self._loaders[id(loader)] = (loader, keyed)
        return self._loaders[id(loader)][1]

    def _where(self, loader: KeyedLoader) -> Start:
        done = self.engine.state.iteration - self.position.start
        if not loader.iterable and done == len(loader):  # all of it is done, and nobody has asked for more until now
            self.position.begin_pass(self.engine.state.iteration)
            done = 0
        return Start(self.stage, self.position.number, done, 0, self.position.loader, rank())

    # -- events ------------------------------------------------------------------------------------------------------

    def _fire(self, event: Any, *args: Any, **kwargs: Any) -> None:
        """Fire an event, with keys around it, so that what its handlers draw shifts nothing."""
        core = engines.is_core(event)
        if core:
            self._before(event)
        if engines.listeners(self.engine, event):
            self._key_event(event, "handlers")
        self._firing(event, *args, **kwargs)
        if not core or event is Events.ITERATION_STARTED:  # the process function begins, or goes on
            self._key_event(event, "after")
        if event is Events.STARTED:
            self.handler.started(self)

    def _before(self, event: Any) -> None:
        self._interrupted = event is Events.INTERRUPT
        if event is Events.STARTED:
            self._install()
        elif event is Events.ITERATION_STARTED:
            self.within, self.epoch_ended = True, False
            self._calls.clear()
            self._flags.hold()
        elif event is Events.ITERATION_COMPLETED:
            self.within = False
        elif event is Events.EPOCH_COMPLETED:
            self.epoch_ended = True
        elif event in (Events.DATALOADER_STOP_ITERATION, Events.TERMINATE_SINGLE_EPOCH):
            self.epoch_ended = self.epoch_ended or event is Events.TERMINATE_SINGLE_EPOCH
            self.position.begin_pass(self.engine.state.iteration)

    def _key_event(self, event: Any, purpose: str) -> None:
        """Key the process-wide generators for what is drawn at an event, or after it."""
        name = f"{engines.event_name(event)} {purpose}"
        call = self._calls[name] = self._calls.get(name, -1) + 1
        self._key(name, call)

    def _key(self, name: str, call: int) -> None:
        place = (self._seeds["step"], "step", self.stage, name, call)
        generators.key_all(keys.derive_within(place, self.engine.state.iteration, rank()))


def rank() -> int:
    """Return which process of a distributed run this one is."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
