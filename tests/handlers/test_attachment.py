"""Any Ignite engine: what counts as a pass, engines inside of engines, and that nothing is left behind."""

from __future__ import annotations

import gc
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from repro_callbacks import DeterminismHandler, flags, generators
from repro_callbacks.handlers import attachment
from repro_callbacks.handlers.position import Position
from repro_callbacks.loading import KeyedLoader
from tests.handlers.training import Draws

Step = tuple[int, int, tuple[float, ...], float]
needs_max_iters = pytest.mark.skipif(
    "max_iters" not in inspect.signature(Engine.run).parameters, reason="Ignite before 0.5.5 has no run(max_iters=...)"
)


class Noise(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + torch.rand(1)


class Stream(IterableDataset[Any]):
    """A sharded stream without a length."""

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        for index in range(info.id if info else 0, 6, info.num_workers if info else 1):
            yield index + torch.rand(1)


def loader(data: Any = None, **kwargs: Any) -> Any:
    data = Noise() if data is None else data
    if not isinstance(data, IterableDataset):
        kwargs.setdefault("shuffle", True)
    return DataLoader(data, **{"batch_size": 2, **kwargs})


def engine_of(seen: list[Step], handler: DeterminismHandler | None = None) -> tuple[Engine, DeterminismHandler]:
    """Return an engine that notes epoch, iteration, batch and a draw of each step."""

    def process(engine: Engine, batch: Any) -> None:
        values = () if batch is None else tuple(batch.flatten().tolist())
        seen.append((engine.state.epoch, engine.state.iteration, values, torch.rand(1).item()))

    engine, handler = Engine(process), handler or DeterminismHandler(5)
    handler.attach(engine)
    return engine, handler


def steps(data: Any = None, on: dict[Any, Callable[..., Any]] | None = None, **kwargs: Any) -> list[Step]:
    """Run an engine for three epochs and return its steps."""
    seen: list[Step] = []
    engine, _ = engine_of(seen)
    for event, function in (on or {}).items():
        engine.add_event_handler(event, function)
    engine.run(loader() if data is None else data, **{"max_epochs": 3, **kwargs})
    return seen


def batches(seen: list[Step]) -> list[tuple[float, ...]]:
    return [values for _, _, values, _ in seen]


def resumed(
    before: list[Step], iteration: int, data: Callable[[], Any], with_state: bool = True, **kwargs: Any
) -> bool:
    """Whether a run that is stopped after an iteration, and resumed elsewhere, is the run that was never stopped."""
    first: list[Step] = []
    engine, handler = engine_of(first)
    states: list[Any] = []

    def save(engine: Engine) -> None:
        if engine.state.iteration == iteration:
            states.extend([engine.state_dict(), handler.state_dict()])
            engine.terminate()

    engine.add_event_handler(Events.ITERATION_COMPLETED, save)
    engine.run(data(), **{"max_epochs": 3, **kwargs})
    second: list[Step] = []
    engine, handler = engine_of(second)
    engine.load_state_dict(states[0])
    if with_state:
        handler.load_state_dict(states[1])
    engine.run(data())
    return first + second == before


# -- positions ---------------------------------------------------------------------------------------------------------


def test_a_plain_engine_repeats_for_any_number_of_workers() -> None:
    plain = steps()
    assert steps(loader(num_workers=2)) == plain
    assert len(set(batches(plain))) == 9
    assert len({draw for *_, draw in plain}) == 9


def test_a_pass_is_an_epoch_by_default() -> None:
    seen = steps()
    for epoch in (1, 2, 3):
        drawn = [int(value) for number, _, values, _ in seen for value in values if number == epoch]
        assert sorted(drawn) == [0, 1, 2, 3, 4, 5]
    assert [int(v) for values in batches(seen)[:3] for v in values] != [int(v) for vs in batches(seen)[3:6] for v in vs]


def test_epochs_that_are_no_passes_go_through_the_same_data() -> None:
    assert batches(steps(epoch_length=2, max_epochs=4)) == batches(steps())[:8]
    assert batches(steps(epoch_length=4, max_epochs=2)) == batches(steps())[:8]


@pytest.mark.parametrize("iteration", [1, 3, 5])
@pytest.mark.parametrize("kwargs", [{}, {"epoch_length": 2}, {"epoch_length": 5}])
def test_resume(iteration: int, kwargs: dict[str, Any]) -> None:
    assert resumed(steps(**kwargs), iteration, loader, **kwargs)
    assert resumed(steps(**kwargs), iteration, lambda: loader(num_workers=1), with_state=False, **kwargs)


@needs_max_iters
def test_max_iters() -> None:
    seen = steps(max_iters=7, max_epochs=None)
    assert batches(seen) == batches(steps())[:7]
    assert resumed(seen, 4, loader, max_iters=7, max_epochs=None)


def test_an_epoch_that_is_terminated_is_followed_by_a_whole_pass() -> None:
    def stop(engine: Engine) -> None:
        if engine.state.iteration == 4:
            engine.terminate_epoch()

    seen = steps(on={Events.ITERATION_COMPLETED: stop})
    plain = steps()
    assert batches(seen)[:4] == batches(plain)[:4]
    assert batches(seen)[4:] == batches(plain)[6:]  # the third pass, from its start
    assert [epoch for epoch, *_ in seen] == [1, 1, 1, 2, 3, 3, 3]


@needs_max_iters
def test_the_state_tells_a_resume_where_a_pass_began() -> None:
    seen: list[Step] = []
    engine, handler = engine_of(seen)
    states: dict[int, Any] = {}

    @engine.on(Events.ITERATION_COMPLETED)
    def save(engine: Engine) -> None:
        states[engine.state.iteration] = handler.state_dict()
        if engine.state.iteration == 4:
            engine.terminate_epoch()

    engine.run(loader(), max_epochs=3)
    assert Position.from_state(states[6]["position"]) == Position(number=2, start=4)
    again: list[Step] = []
    engine, handler = engine_of(again)
    engine.load_state_dict({"iteration": 6, "max_iters": 7, "epoch_length": 3})
    handler.load_state_dict(states[6])
    engine.run(loader())
    assert [step[1:] for step in again] == [step[1:] for step in seen[6:]]


def test_a_run_that_was_terminated_goes_on_with_a_whole_pass() -> None:
    seen: list[Step] = []
    engine, _ = engine_of(seen)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: engine.terminate())
    engine.run(loader(), max_epochs=3)
    assert len(seen) == 4
    engine.run(loader(), max_epochs=3)
    assert batches(seen)[4:] == batches(steps())[6:]


def test_a_run_goes_on_in_the_same_process() -> None:
    seen: list[Step] = []
    engine, _ = engine_of(seen)
    engine.run(loader(), max_epochs=2)
    engine.state.max_epochs = 3
    engine.run(loader())
    assert seen == steps()


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, Events.ITERATION_STARTED, Events.EPOCH_COMPLETED])
def test_a_run_that_is_interrupted_goes_on(event: Any) -> None:
    seen: list[Step] = []
    engine, _ = engine_of(seen)

    @engine.on(event)
    def interrupt(engine: Engine) -> None:
        if len(runs) < 2 and engine.state.iteration >= 2 + 2 * len(runs):
            engine.interrupt()

    data, runs = loader(), []
    while not runs or engine.state.iteration < 9:
        before = flags.snapshot()
        engine.run(data, max_epochs=3)
        runs.append(len(seen))
        assert engine.state.dataloader is data
        assert flags.snapshot() == before
        torch.rand(1)
    assert len(runs) == 3
    assert seen == steps()


def test_data_that_are_set_on_the_way() -> None:
    def switch(engine: Engine) -> None:
        engine.set_data(loader(num_workers=1))

    seen = steps(on={Events.ITERATION_COMPLETED(once=4): switch})
    assert seen == steps(on={Events.ITERATION_COMPLETED(once=4): switch})
    drawn = [int(value) for values in batches(seen)[4:7] for value in values]
    assert sorted(drawn) == [0, 1, 2, 3, 4, 5]
    assert not set(batches(seen)[4:]) & set(batches(steps()))


def test_resume_with_data_that_are_set_on_the_way() -> None:
    seen: list[Step] = []
    engine, handler = engine_of(seen)
    states: dict[int, Any] = {}
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: engine.set_data(loader()))
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: states.update({engine.state.iteration: (engine.state_dict(), handler.state_dict())}),
    )
    engine.run(loader(), max_epochs=3)
    again: list[Step] = []
    engine, handler = engine_of(again)
    engine.load_state_dict(states[5][0])
    handler.load_state_dict(states[5][1])

    @engine.on(Events.GET_BATCH_STARTED(once=5))
    def set_again(engine: Engine) -> None:
        engine.set_data(loader())

    engine.run(loader())
    assert again == seen[5:]


def test_no_data_at_all() -> None:
    seen: list[Step] = []
    engine, _ = engine_of(seen)
    engine.run(epoch_length=3, max_epochs=2)
    other: list[Step] = []
    engine, _ = engine_of(other)
    Draws().attach(engine)
    engine.run(epoch_length=3, max_epochs=2)
    assert seen == other
    assert len({draw for *_, draw in seen}) == 6


def test_what_is_no_loader_is_said() -> None:
    with pytest.warns(UserWarning, match="runs over a list, not a DataLoader, so what it draws can't be keyed"):
        seen = steps([torch.zeros(1), torch.ones(1)])
    assert len({draw for *_, draw in seen}) == 6


# -- iterable datasets -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_repeat_and_resume(workers: int) -> None:
    def stream() -> Any:
        return loader(Stream(), num_workers=workers)

    plain = steps(stream())
    assert steps(stream(), on={Events.ITERATION_STARTED: lambda: torch.rand(1)}) == plain
    assert len(set(batches(plain))) == len(plain) >= 9
    length = len([step for step in plain if step[0] == 1])
    assert resumed(plain, length + 1, stream)
    with pytest.warns(UserWarning, match="Stream has no length, so the engine goes on as if each epoch before"):
        assert resumed(plain, length + 1, stream, with_state=False)


class Endless(IterableDataset[Any]):
    """A stream that can say where it stands."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.position += 1
            yield self.position + torch.rand(1)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def test_an_endless_stream_goes_on_where_it_was() -> None:
    plain = steps(loader(Endless()), epoch_length=4)
    assert [int(value) for values in batches(plain) for value in values] == list(range(1, 25))
    assert resumed(plain, 6, lambda: loader(Endless()), epoch_length=4)
    assert resumed(plain, 8, lambda: loader(Endless()), epoch_length=4)


def test_another_number_of_workers_for_a_stream_is_refused() -> None:
    workers = iter([1, 2])
    with pytest.raises(ValueError, match="made with num_workers=1, and the loader has num_workers=2"):
        resumed([], 4, lambda: loader(Stream(), num_workers=next(workers)))


# -- engines inside of engines -----------------------------------------------------------------------------------------


def test_a_plain_evaluator_inside_of_a_training_draws_the_same_each_time() -> None:
    seen, validated = [], []  # type: ignore[var-annotated]
    trainer, handler = engine_of(seen)
    evaluator, _ = engine_of(validated, handler)
    data = loader()
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run(data))
    trainer.run(loader(), max_epochs=3)
    assert seen == steps()
    assert validated[:3] == validated[3:6] == validated[6:]
    assert not set(batches(validated)) & set(batches(seen))


def test_a_training_inside_of_a_training_draws_something_else_each_time() -> None:
    def train() -> tuple[list[Step], list[Step]]:
        outer_seen: list[Step] = []
        inner_seen: list[Step] = []
        outer, _ = engine_of(outer_seen)
        inner, _ = engine_of(inner_seen, DeterminismHandler(5, stage="train"))
        data = loader()
        for _ in range(2):
            outer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: inner.run(data))
        outer.run(loader(), max_epochs=3)
        return outer_seen, inner_seen

    outer, inner = train()
    assert train() == (outer, inner)
    assert outer == steps()
    assert len(set(batches(inner))) == 9 * 2 * 3


def test_persistent_workers_of_an_evaluator_live_as_long_as_the_training() -> None:
    process_ids: list[set[int]] = []

    class Who(Noise):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor(os.getpid())

    trainer, handler = engine_of([])
    evaluator = Engine(lambda engine, batch: process_ids[-1].update(batch.flatten().tolist()))
    handler.attach(evaluator)
    data = loader(Who(), num_workers=1, persistent_workers=True)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        process_ids.append(set())
        evaluator.run(data)

    trainer.run(loader(), max_epochs=3)
    assert len(process_ids[0]) == 1
    assert process_ids[0] == process_ids[1] == process_ids[2]
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(process_ids[0].pop(), 0)


def test_two_engines_in_two_threads_are_warned_of() -> None:
    inside, done = threading.Event(), threading.Event()

    def wait(engine: Engine, batch: Any) -> None:
        inside.set()
        done.wait(60)

    slow = Engine(wait)
    DeterminismHandler(0).attach(slow)
    thread = threading.Thread(target=lambda: slow.run(epoch_length=1))
    thread.start()
    inside.wait(60)
    try:
        with pytest.warns(UserWarning, match="two engines run at the same time in two threads"):
            engine_of([])[0].run(epoch_length=1)
    finally:
        done.set()
        thread.join()


# -- nothing is left behind --------------------------------------------------------------------------------------------


@pytest.fixture
def unchanged(monkeypatch: Any) -> Iterator[None]:
    """Compare flags, environment, generators and the running engines before and after."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before, states, environment = flags.snapshot(), generators.snapshot(), dict(os.environ)
    yield
    monkeypatch.setenv("PYTEST_CURRENT_TEST", environment["PYTEST_CURRENT_TEST"])  # pytest's own
    assert flags.snapshot() == before
    after = generators.snapshot()
    assert torch.equal(after.torch, states.torch)
    assert after.python == states.python
    assert after.numpy["state"]["pos"] == states.numpy["state"]["pos"]
    assert (after.numpy["state"]["key"] == states.numpy["state"]["key"]).all()
    assert dict(os.environ) == environment
    assert attachment._running == []


class Refused(Exception):
    pass


ENDS: dict[str, type[BaseException] | None] = {"completed": None, "exception": Refused, "ctrl-c": KeyboardInterrupt}


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.COMPLETED])
@pytest.mark.parametrize("name", ENDS)
@pytest.mark.usefixtures("unchanged")
def test_everything_is_put_back(name: str, event: Any) -> None:
    kind = ENDS[name]
    engine, _ = engine_of([])
    data = loader(num_workers=1)

    @engine.on(event)
    def end() -> None:
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert isinstance(engine.state.dataloader, KeyedLoader)
        if kind is not None:
            raise kind

    if kind is None:
        engine.run(data)
    else:
        with pytest.raises(kind):
            engine.run(data)
    assert engine.state.dataloader is data
    assert "_fire_event" not in vars(engine)
    assert "set_data" not in vars(engine)


@pytest.mark.usefixtures("unchanged")
def test_everything_is_put_back_after_an_exception_that_somebody_swallows() -> None:
    engine, _ = engine_of([])
    caught: list[BaseException] = []
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: caught.append(error))

    @engine.on(Events.ITERATION_COMPLETED)
    def refuse() -> None:
        raise Refused

    engine.run(loader())
    assert len(caught) == 1


@pytest.mark.usefixtures("unchanged")
def test_everything_is_put_back_if_it_can_t_begin(monkeypatch: Any) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":1:1")
    engine, _ = engine_of([])
    with pytest.raises(ValueError, match="CUBLAS_WORKSPACE_CONFIG"):
        engine.run(loader())
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert "_fire_event" not in vars(engine)


@pytest.mark.usefixtures("unchanged")
def test_runs_nest() -> None:
    seen: list[bool] = []
    outer, _ = engine_of([])
    inner, _ = engine_of([], DeterminismHandler(1, deterministic="warn"))
    outer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: inner.run(loader()))
    outer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: seen.append(torch.is_deterministic_algorithms_warn_only_enabled())
    )
    outer.run(loader(), max_epochs=2)
    assert seen == [False, False]


def test_the_users_own_run_is_called_as_it_is() -> None:
    engine, _ = engine_of([])
    assert engine.run.__doc__ == Engine.run.__doc__
    assert engine.run.__name__ == "run"
    with pytest.raises(TypeError, match="Argument data should be iterable"):
        engine.run(3)


def test_an_engine_of_ignites_own_making() -> None:
    def train() -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        trainer = create_supervised_trainer(
            net,
            torch.optim.SGD(net.parameters(), 0.1),
            nn.MSELoss(),
            prepare_batch=lambda batch, device, non_blocking: (batch / 6, batch / 6),
        )
        DeterminismHandler(3).attach(trainer)
        trainer.run(loader(), max_epochs=2)
        return [value for weight in net.parameters() for value in weight.flatten().tolist()]

    assert train() == train()


# -- each mechanism taken out ------------------------------------------------------------------------------------------


def test_without_the_position_that_was_saved_a_resume_differs(monkeypatch: Any) -> None:
    plain = steps(loader(Endless()), epoch_length=4)
    monkeypatch.setattr(Position, "from_state", classmethod(lambda cls, state: cls(number=1, start=4)))
    assert not resumed(plain, 6, lambda: loader(Endless()), epoch_length=4)


def test_without_a_key_of_its_own_an_interrupted_iteration_differs(monkeypatch: Any) -> None:
    monkeypatch.setattr(attachment.Attachment, "_key", lambda self, name, call: None)
    with pytest.raises(AssertionError):
        test_a_run_that_is_interrupted_goes_on(Events.ITERATION_STARTED)


def test_without_putting_back_the_flags_stay(monkeypatch: Any) -> None:
    before = flags.snapshot()
    with monkeypatch.context() as patched:
        patched.setattr(flags, "restore", lambda states: None)
        engine_of([])[0].run(loader())
        assert flags.snapshot() != before
    flags.restore(before)
