"""Promises 1 to 3: the same bits again, for any layout of the loader, whatever else goes on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from monai.data import DataLoader as MonaiLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from repro_callbacks.callbacks import determinism as callback
from repro_callbacks.loading import fetch, holders
from tests.training import Draws, Images, Net, Outcome, run, same

LAYOUTS: dict[str, dict[str, Any]] = {
    "again": {},
    "1 worker": {"num_workers": 1},
    "2 workers": {"num_workers": 2},
    "4 workers": {"num_workers": 4},
    "8 workers": {"num_workers": 8},
    "prefetch 1": {"num_workers": 2, "prefetch_factor": 1},
    "prefetch 8": {"num_workers": 2, "prefetch_factor": 8},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "fork": {"num_workers": 1, "multiprocessing_context": "fork"},
    # persistent, for each that starts imports everything anew
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    "forkserver": {"num_workers": 1, "multiprocessing_context": "forkserver", "persistent_workers": True},
    "pinned memory": {"pin_memory": True},
}
SLOW = {"spawn", "forkserver"}


@pytest.fixture(scope="module")
def reference() -> Outcome:
    return run()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LAYOUTS])
def test_loader_layout(reference: Outcome, name: str) -> None:
    assert same(run(loader_kwargs=LAYOUTS[name]), reference)


@pytest.mark.parametrize("kind", [MonaiLoader, StatefulDataLoader])
@pytest.mark.parametrize("workers", [0, 2])
def test_other_loaders(reference: Outcome, kind: Any, workers: int) -> None:
    made = run(loader=lambda: kind(Images(), batch_size=4, shuffle=True, num_workers=workers))
    assert same(made, reference)


CIRCUMSTANCES: dict[str, dict[str, Any]] = {
    "validation": {"validation": True},
    "validation in mid-epoch": {"validation": True, "val_check_interval": 0.5},
    "validation every other epoch": {"validation": True, "check_val_every_n_epoch": 2},
    "validation with workers": {"validation": True, "val_kwargs": {"num_workers": 2}},
    "no sanity check": {"validation": True, "num_sanity_val_steps": 0},
    "sanity check of 2": {"validation": True, "num_sanity_val_steps": 2},
    "a callback that draws": {"callbacks": [Draws()]},
    "a callback that draws, validation, workers": {
        "callbacks": [Draws()],
        "validation": True,
        "loader_kwargs": {"num_workers": 2},
    },
}


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_immunity(reference: Outcome, name: str) -> None:
    assert same(run(**CIRCUMSTANCES[name]), reference)


class TwicePerStep(Net):
    """Two forward passes in a step, with another callback's hooks between them, and an optimizer that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()

    def configure_optimizers(self) -> Any:
        return Langevin(self.parameters(), 1e-2)


class Noisy(Net):
    def configure_optimizers(self) -> Any:
        return Langevin(self.parameters(), 1e-2)


class Langevin(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter += 1e-3 * torch.randn_like(parameter)
        return loss


@pytest.mark.parametrize("module", [TwicePerStep, Noisy])
def test_what_a_callback_draws_in_the_middle_of_a_step_shifts_nothing(module: Any) -> None:
    assert same(run(module=module, callbacks=[Draws()]), run(module=module))


class NoisyGradients(L.Callback):
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.grad += 1e-3 * torch.randn_like(parameter)


def test_what_a_callback_adds_to_the_gradients_does_not_depend_on_another_that_draws() -> None:
    alone = run(callbacks=[NoisyGradients()])
    assert same(run(callbacks=[Draws(), NoisyGradients()]), alone)
    assert not same(run(), alone)


@pytest.mark.slow
@pytest.mark.parametrize("module", [TwicePerStep, Noisy])
def test_without_isolation_it_shifts_the_rest_of_the_step(module: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(callback, "MID_STEP_HOOKS", ())
    assert not same(run(module=module, callbacks=[Draws()]), run(module=module))


def test_checkpoints_and_progress_bar(reference: Outcome, tmp_path: Any) -> None:
    assert same(run(checkpoint=ModelCheckpoint(tmp_path, every_n_train_steps=2)), reference)


@pytest.mark.slow
def test_a_learning_rate_finder_before_shifts_no_batch(tmp_path: Any) -> None:
    class Fixed(LearningRateFinder):
        def lr_find(self, trainer: Any, pl_module: Any) -> None:  # finds, and leaves the rate as it is
            super().lr_find(trainer, pl_module)

    found = run(callbacks=[Fixed(num_training_steps=5, update_attr=False)])
    plain = run()
    assert found.seen[-len(plain.seen) :] == plain.seen
    assert found.weights == plain.weights


def test_two_fits_in_one_process_equal_each_alone(reference: Outcome) -> None:
    assert same(run(), reference)
    assert same(run(), reference)


# -- each mechanism taken out ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_the_callback_workers_validation_and_draws_change_the_run() -> None:
    plain = run(determinism=None)
    assert not same(run(determinism=None, loader_kwargs={"num_workers": 2}), plain)
    assert not same(run(determinism=None, validation=True, num_sanity_val_steps=0, val_check_interval=0.5), plain)
    assert not same(run(determinism=None, callbacks=[Draws()]), plain)


@pytest.mark.slow
def test_without_keyed_samples_workers_change_the_run(monkeypatch: Any) -> None:
    reference = run()
    monkeypatch.setattr(fetch.KeyedDataset, "_key", lambda self, key: None)
    assert not same(run(loader_kwargs={"num_workers": 2}), run())
    monkeypatch.undo()
    assert same(run(), reference)


@pytest.mark.slow
def test_without_streams_of_their_own_transforms_do_not_repeat(monkeypatch: Any) -> None:
    monkeypatch.setattr(holders.Holders, "key", lambda self, key: None)
    assert not same(run(), run())


def test_without_keyed_steps_a_drawing_callback_shifts_the_run(monkeypatch: Any) -> None:
    monkeypatch.setattr(callback.Determinism, "key_hook", lambda self, trainer, name: None)
    assert not same(run(callbacks=[Draws()]), run())


def test_seeds_differ(reference: Outcome) -> None:
    from repro_callbacks import Determinism

    assert not same(run(determinism=Determinism(1, log=False)), reference)
    for purpose in ("order", "augment", "step"):
        other = run(determinism=Determinism(3407, seeds={purpose: 1}, log=False))
        assert not same(other, reference), purpose


def test_lightning_is_the_real_one() -> None:
    assert L.__name__ == "lightning.pytorch"
