"""Determinism switches stay as a run has set them, whatever a callback or handler calls in the middle of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import monai.networks.utils
import pytest
import torch
from ignite.engine import Engine, Events

from repro_callbacks import Determinism, DeterminismHandler, determinism, flags
from repro_callbacks.held_flags import ChangedFlagsWarning, HeldFlags
from tests.callbacks import small

SWITCHES = ("deterministic_algorithms", "cudnn_deterministic", "cudnn_benchmark")


def export(*_: Any) -> None:
    """What a person writes who exports a model now and then during the training."""
    network = torch.nn.Linear(2, 2)
    monai.networks.utils.convert_to_torchscript(network, None, inputs=[torch.ones(1, 2)], verify=True)


def export_preserved(*_: Any) -> None:
    with determinism.preserved():
        export()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = flags.snapshot()
    yield
    flags.restore(before)


def train_lightning(deterministic: Any, in_the_middle: Any) -> list[tuple[Any, ...]]:
    """Train four steps, after the second of which something is called; return the switches in each step."""
    seen: list[tuple[Any, ...]] = []

    def look(self: Any, batch: Any, index: int) -> Any:
        seen.append(tuple(flags.SWITCHES[name].read() for name in SWITCHES))
        return self.layers(batch).square().mean()

    callback = small.probe(on_train_batch_end=lambda trainer, _: in_the_middle() if trainer.global_step == 2 else None)
    ours = Determinism(0, deterministic=deterministic, log=False)
    small.trainer(callback, ours, max_epochs=1).fit(small.net(training_step=look), small.loader())
    return seen


def train_ignite(deterministic: Any, in_the_middle: Any) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    engine = Engine(lambda *_: seen.append(tuple(flags.SWITCHES[name].read() for name in SWITCHES)))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), in_the_middle)
    DeterminismHandler(0, deterministic=deterministic).attach(engine)
    engine.run(small.loader())
    return seen


TRAININGS = pytest.mark.parametrize("train", [train_lightning, train_ignite])


@TRAININGS
def test_an_export_in_the_middle_of_a_run_is_told_of_and_undone(train: Any) -> None:
    with pytest.warns(ChangedFlagsWarning) as told:
        assert train(True, export) == [(True, True, False)] * 4
    (message,) = (str(one.message) for one in told if one.category is ChangedFlagsWarning)
    assert "something has changed cudnn_deterministic from True to False: " in message
    assert f"{'Determinism' if train is train_lightning else 'DeterminismHandler'}(deterministic=True) has" in message
    assert "`with repro_callbacks.determinism.preserved():`" in message


@TRAININGS
def test_without_it_the_rest_of_the_run_is_on_other_switches(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldFlags, "hold", lambda self: None)
    assert train(True, export) == [(True, True, False)] * 2 + [(True, False, False)] * 2


@TRAININGS
@pytest.mark.parametrize(("deterministic", "called"), [(True, export_preserved), (False, export)])
def test_nothing_is_said_where_nothing_is_held_or_changed(train: Any, deterministic: bool, called: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChangedFlagsWarning)
        train(deterministic, called)


@TRAININGS
def test_a_mode_that_somebody_softens_is_set_again(train: Any) -> None:
    def soften(*_: Any) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)

    with pytest.warns(ChangedFlagsWarning, match="changed deterministic_algorithms_warn_only from False to True: "):
        train(True, soften)


def test_switches_of_before_come_back_after_a_run_in_which_they_were_changed() -> None:
    torch.backends.cudnn.benchmark = True
    before = flags.read()
    with pytest.warns(ChangedFlagsWarning):
        train_lightning(True, export)
    assert flags.read() == before
