"""Promises 1 to 3 in MONAI's engines: the same bits again, for any layout of the loader, whatever else goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.utils
import pytest
import torch
from ignite.engine import DeterministicEngine, Engine, Events
from monai.data import CacheDataset, PersistentDataset, ThreadDataLoader
from monai.data import DataLoader as MonaiLoader
from monai.handlers import StatsHandler
from torch import nn

from repro_callbacks import DeterminismHandler, RunRecord, set_determinism
from repro_callbacks.fingerprint.digest import digest_state
from repro_callbacks.handlers import attachment
from repro_callbacks.loading import KeyedLoader, fetch, holders
from tests.handlers.training import SEED, Draws, Outcome, images, make_net, run, same, transforms


@pytest.fixture(scope="module")
def reference() -> Outcome:
    return run()


LAYOUTS: dict[str, dict[str, Any]] = {
    "again": {},
    "1 worker": {"num_workers": 1},
    "2 workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "prefetch 5": {"num_workers": 1, "prefetch_factor": 5},
    "pinned memory": {"pin_memory": True},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_loader_layout(reference: Outcome, name: str) -> None:
    assert same(run(loader_kwargs=LAYOUTS[name]), reference)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [MonaiLoader, ThreadDataLoader])
def test_loaders_of_monai(reference: Outcome, kind: Any, workers: int) -> None:
    assert same(run(loader=kind, loader_kwargs={"num_workers": workers}), reference)


def test_another_number_of_workers_by_the_handler(reference: Outcome) -> None:
    made = run(determinism=DeterminismHandler(SEED, num_workers=2))
    assert same(made, reference)


CIRCUMSTANCES: dict[str, dict[str, Any]] = {
    "validation": {"validation": 1},
    "validation every other epoch": {"validation": 2},
    "validation in mid-epoch": {"validation": 4, "validation_by_epoch": False},
    "validation that is not keyed": {"validation": 4, "validation_by_epoch": False, "validation_determinism": False},
    "handlers that draw first": {"handlers": [Draws()]},
    "handlers that draw last": {"last": [Draws()]},
    "all of it, workers": {"handlers": [Draws()], "validation": 1, "loader_kwargs": {"num_workers": 2}},
    "handlers that say something": {"handlers": [StatsHandler(name="quiet", output_transform=lambda output: 0)]},
}


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_immunity(reference: Outcome, name: str) -> None:
    assert same(run(**CIRCUMSTANCES[name]), reference)


def test_checkpoints_change_nothing(reference: Outcome, tmp_path: Path) -> None:
    assert same(run(save=tmp_path, save_every=2), reference)


def process_with_events(engine: Any, batch: Any) -> Any:
    """A step that draws before and after an event that it fires."""
    from monai.engines.utils import IterationEvents

    image = batch["image"] + 0.1 * torch.rand_like(batch["image"])
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    loss = (engine.network(image) - batch["label"]).square().mean()
    engine.optimizer.zero_grad()
    loss.backward()
    engine.optimizer.step()
    return loss.item()


def test_handlers_that_draw_in_the_middle_of_an_iteration() -> None:
    assert same(run(process=process_with_events, handlers=[Draws()]), run(process=process_with_events))


@pytest.mark.slow
def test_two_runs_in_one_process_equal_each_alone(reference: Outcome) -> None:
    other = run(determinism=DeterminismHandler(1))
    assert not same(other, reference)
    assert same(run(), reference)


@pytest.mark.slow
def test_every_validation_draws_the_same() -> None:
    one, two = run(validation=1), run(validation=2, handlers=[Draws()])
    assert one.validated[:2] == one.validated[2:4] == one.validated[4:] == two.validated
    assert len(set(one.validated)) == 2


def test_validation_draws_the_same_alone_as_inside_of_a_training() -> None:
    from monai.engines import SupervisedEvaluator

    from tests.handlers.training import Images, digest_tree

    seen = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=MonaiLoader(Images(8), batch_size=4, num_workers=2),
        network=make_net(),
        val_handlers=[DeterminismHandler(SEED)],
        decollate=False,
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(digest_tree(engine.state.batch)))
    evaluator.run()
    assert seen == run(validation=3).validated


@pytest.mark.slow
def test_purposes_have_seeds_of_their_own(reference: Outcome) -> None:
    for purpose in ("order", "augment", "step"):
        other = run(determinism=DeterminismHandler(SEED, seeds={purpose: 1}))
        assert not same(other, reference), purpose
    assert same(run(determinism=DeterminismHandler(SEED, seeds={"step": SEED})), reference)


def test_no_two_samples_share_their_draws(reference: Outcome) -> None:
    batches = [batch for _, batch in reference.seen]
    assert len(set(batches)) == len(batches) == 18


# -- datasets of MONAI -------------------------------------------------------------------------------------------------


def cached() -> Any:
    return CacheDataset(
        [{"image": image, "label": image.mean()[None]} for image in images(22)], transforms(), progress=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [{"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_cache_dataset(kwargs: dict[str, Any]) -> None:
    plain = run(dataset=cached)
    assert same(run(dataset=cached, loader_kwargs=kwargs), plain)
    assert same(run(dataset=cached, loader=MonaiLoader, loader_kwargs=kwargs), plain)


@pytest.mark.slow
def test_persistent_dataset(tmp_path: Path) -> None:
    def persistent() -> Any:
        data = [{"image": image, "label": image.mean()[None]} for image in images(22)]
        return PersistentDataset(data, transforms(), cache_dir=tmp_path)

    assert same(run(dataset=persistent, loader_kwargs={"num_workers": 2}), run(dataset=cached))


# -- seeds, flags, record ----------------------------------------------------------------------------------------------


def engine_of(handler: DeterminismHandler, process: Any = None) -> Engine:
    engine = Engine(process or (lambda engine, batch: torch.rand(1).item()))
    handler.attach(engine)
    return engine


def loader(**kwargs: Any) -> Any:
    return torch.utils.data.DataLoader(torch.arange(6.0), batch_size=2, shuffle=True, **kwargs)


def test_a_seed_that_was_set_before_is_taken(capsys: Any) -> None:
    handler = DeterminismHandler()
    with set_determinism(11):
        engine_of(handler).run(loader())
    assert handler.seed == 11
    assert "seed 11, from set_determinism" in capsys.readouterr().out


def test_monais_own_seed_is_taken() -> None:
    handler = DeterminismHandler()
    monai.utils.set_determinism(12)
    try:
        engine_of(handler).run(loader())
    finally:
        monai.utils.set_determinism(None)
    assert handler.seed == 12


def test_a_seed_is_drawn_and_said(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("repro_callbacks.determinism.known_seed", lambda: None)
    handler = DeterminismHandler()
    first = engine_of(handler).run(loader()).output
    assert f"drew seed {handler.seed}; give DeterminismHandler(seed={handler.seed})" in capsys.readouterr().out
    assert engine_of(handler).run(loader()).output == first
    assert engine_of(DeterminismHandler(handler.seed)).run(loader()).output == first
    other = DeterminismHandler()
    engine_of(other).run(loader())
    assert other.seed != handler.seed


def test_an_engine_inside_takes_the_seed_of_the_one_around_it(monkeypatch: Any) -> None:
    monkeypatch.setattr("repro_callbacks.determinism.known_seed", lambda: None)
    outer, inner = DeterminismHandler(), DeterminismHandler()
    inside = engine_of(inner)
    engine_of(outer, lambda engine, batch: inside.run(loader())).run(loader())
    assert inner.seed == outer.seed is not None


def test_flags_hold_during_the_run() -> None:
    seen: list[Any] = []

    def look(*_: Any) -> None:
        seen.append(
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        )

    for mode in (True, "warn", False):
        engine_of(DeterminismHandler(0, deterministic=mode), look).run([0], epoch_length=1)
    assert seen == [(True, False), (True, True), (False, False)]


def test_a_contradiction_is_said() -> None:
    with set_determinism(0, use_deterministic_algorithms=True):
        with pytest.warns(UserWarning, match=r"on \(as by set_determinism with True\).*'warn' holds during the run"):
            engine_of(DeterminismHandler(0, deterministic="warn")).run(loader())
        with pytest.warns(UserWarning, match="they stay on"):
            engine_of(DeterminismHandler(0, deterministic=False)).run(loader())


def test_an_operator_that_is_not_deterministic_is_traced_to_its_module() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 1)
            self.pool = nn.MaxUnpool2d(2)

        def forward(self, x: Any) -> Any:
            self.pool(x, torch.zeros_like(x, dtype=torch.long))
            return self.linear(x.flatten(1))

    from monai.engines import SupervisedTrainer

    net = Net()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=MonaiLoader(cached(), batch_size=4),
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        loss_function=nn.MSELoss(),
        train_handlers=[DeterminismHandler(0)],
        decollate=False,
    )
    with pytest.raises(RuntimeError, match="deterministic") as caught:
        trainer.run()
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) == 1
    assert "raised in pool (MaxUnpool2d)" in notes[0]


def test_the_record_holds_the_seeds_and_the_initial_weights(tmp_path: Path) -> None:
    path = tmp_path / "records" / "first.json"
    outcome = run(determinism=DeterminismHandler(SEED, seeds={"order": 1}, record_path=path))
    record = outcome.handler.record
    assert record.seed == SEED
    assert record.seeds == {"order": 1, "augment": SEED, "init": SEED, "step": SEED}
    assert record.flags["deterministic_algorithms"] is True
    with set_determinism(SEED):
        assert record.initial_weights == digest_state(make_net())
    assert RunRecord.load(path) == record
    json.loads(path.read_text())


def test_weights_from_nowhere_are_said(monkeypatch: Any) -> None:
    monkeypatch.setattr("repro_callbacks.determinism.seeded", lambda: None)
    with pytest.warns(UserWarning, match=r"weights were made before anything was seeded.*set_determinism\(seed=3407\)"):
        run(max_epochs=1)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"seed": -1}, ValueError, "seed must be an integer from 0 to 4294967295, not -1"),
        ({"seed": True}, TypeError, "seed must be an integer from 0 to 4294967295, not True of type bool"),
        ({"seed": "1"}, TypeError, "not '1' of type str"),
        ({"deterministic": 1}, ValueError, "deterministic must be True, 'warn' or False, not 1"),
        ({"seeds": {"dropout": 1}}, ValueError, "seeds has no purpose 'dropout'"),
        ({"num_workers": -1}, ValueError, "num_workers must be an integer of 0 or more, or None, not -1"),
        (
            {"stage": "val"},
            ValueError,
            "stage must be one of 'train', 'validate', 'test', 'predict', or None, not 'val'",
        ),
    ],
)
def test_arguments_that_are_refused(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DeterminismHandler(**kwargs)


def test_engines_that_are_refused() -> None:
    with pytest.raises(TypeError, match="attached to an engine of MONAI or Ignite, not to Linear"):
        DeterminismHandler(0).attach(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="reseeds and replaces the loader by itself: use a plain ignite"):
        DeterminismHandler(0).attach(DeterministicEngine(lambda engine, batch: None))
    with pytest.raises(ValueError, match="this Engine has a DeterminismHandler already"):
        DeterminismHandler(0).attach(engine_of(DeterminismHandler(0)))


def test_seeds_are_not_known_before_a_run() -> None:
    with pytest.raises(RuntimeError, match="the seed is not known before the run begins"):
        _ = DeterminismHandler().seeds


# -- each mechanism taken out ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_the_handler_nothing_holds() -> None:
    """MONAI's own set_determinism, here in our drop-in, is in force in all of these."""
    kwargs: dict[str, Any] = {"determinism": None, "dataset": cached, "loader": MonaiLoader}
    plain = run(**kwargs)
    assert same(run(**kwargs), plain)  # the plainest repeat does
    assert not same(run(**kwargs, loader_kwargs={"num_workers": 2}), plain)
    assert not same(run(**kwargs, handlers=[Draws()]), plain)
    assert not same(run(**kwargs, validation=1), plain)
    assert not same(run(determinism=None), run(determinism=None))  # a generator of the dataset's own


@pytest.mark.slow
def test_without_keyed_samples_workers_change_the_run(monkeypatch: Any) -> None:
    monkeypatch.setattr(fetch.KeyedDataset, "_key", lambda self, key: None)
    assert not same(run(loader_kwargs={"num_workers": 2}), run())


def test_without_streams_of_their_own_transforms_do_not_repeat(monkeypatch: Any) -> None:
    monkeypatch.setattr(holders.Holders, "key", lambda self, key: None)
    assert not same(run(), run())


@pytest.mark.slow
def test_without_keyed_events_a_handler_that_draws_shifts_the_run(monkeypatch: Any) -> None:
    monkeypatch.setattr(attachment.Attachment, "_key_event", lambda self, event, purpose: None)
    assert not same(run(handlers=[Draws()]), run())
    assert not same(run(process=process_with_events, handlers=[Draws()]), run(process=process_with_events))


@pytest.mark.slow
def test_without_keyed_steps_validation_shifts_the_run(monkeypatch: Any) -> None:
    monkeypatch.setattr(attachment.Attachment, "_key_event", lambda self, event, purpose: None)
    monkeypatch.setattr(KeyedLoader, "key_step", lambda self, purpose, batch: None)
    workers = {"num_workers": 1}  # without workers, each batch's collate key is left behind
    shifted = run(validation=1, validation_determinism=False, loader_kwargs=workers)
    assert not same(shifted, run(loader_kwargs=workers))


def test_without_the_stage_validation_draws_another_thing_each_time(monkeypatch: Any) -> None:
    def stage(self: attachment.Attachment) -> str:
        return "train" if self.outer is None else f"validate {self.outer.engine.state.iteration}"

    monkeypatch.setattr(attachment.Attachment, "_stage", stage)
    one = run(validation=1)
    assert len(set(one.validated)) == 6
