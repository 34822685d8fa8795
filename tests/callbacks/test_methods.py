"""Keyed methods: a user's object has its own methods again when a run is over, and in every copy of it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from repro_callbacks import Determinism, set_determinism
from repro_callbacks.callbacks.methods import BATCH_HOOKS, STEP_METHODS, KeyedMethod, KeyedMethods
from repro_callbacks.fingerprint.digest import digest_state
from tests.callbacks import small


class Net(L.LightningModule):
    """At the top of a module, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = small.make_layers()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layers(batch).square().mean() * torch.rand(())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(module: Any, *callbacks: Any, determinism: bool = True) -> str:
    ours = [Determinism(3407, log=False)] if determinism else []
    small.trainer(*callbacks, *ours, max_epochs=1).fit(module, small.loader())
    return digest_state(getattr(module, "_orig_mod", module))  # torch.compile's own module has other names


def draws() -> Any:
    def draw(*_: Any) -> None:
        torch.rand(1)

    return small.probe(on_train_batch_start=draw, on_before_zero_grad=draw)


def net(seed: int = 0) -> Net:
    set_determinism(seed)
    return Net()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_made_during_the_run_has_the_plain_methods(copied: Any) -> None:
    copies: list[Any] = []

    def take(trainer: Any, module: Any) -> None:
        assert isinstance(module.training_step, KeyedMethod)
        copies.append(copied(module))

    module = net()
    fit(module, small.probe(on_train_start=take))
    (other,) = copies
    assert "training_step" not in vars(module)
    assert not any(isinstance(value, KeyedMethod) for value in vars(other).values())
    assert other.training_step.__self__ is other
    assert other.training_step.__func__ is Net.training_step
    assert not any(part is module.layers for part in other.modules())


def test_a_copy_is_keyed_in_a_run_of_its_own() -> None:
    copies: list[Any] = []
    module = net()
    alone = fit(module, small.probe(on_train_start=lambda _, module: copies.append(copy.deepcopy(module))))
    again = copy.deepcopy(copies[0])
    assert fit(copies[0], draws()) == alone
    assert fit(again, draws(), determinism=False) != alone  # taken out, what the callback draws shows


def test_a_method_that_stands_on_the_object_itself_is_keyed_and_left_there() -> None:
    def module() -> Any:
        made = net()
        original = made.training_step
        made.training_step = lambda batch, batch_idx: original(batch, batch_idx)  # type: ignore[method-assign]
        return made

    plain, other = module(), module()
    step = vars(other)["training_step"]
    assert fit(plain) == fit(other, draws())
    assert vars(other)["training_step"] is step
    assert fit(module(), determinism=False) != fit(module(), draws(), determinism=False)


@pytest.mark.slow
def test_a_compiled_module_is_keyed() -> None:
    plain, other = (torch.compile(net(), backend="eager") for _ in range(2))
    digests = [fit(plain), fit(other, draws())]
    assert digests[0] == digests[1]
    assert digests[0] == fit(net())


def test_what_lightning_gives_is_left_alone() -> None:
    owner, keyed = net(), KeyedMethods()
    before = dict(vars(owner))
    for name in STEP_METHODS:
        keyed.add(owner, name, lambda name: None)
    assert {name for name in vars(owner) if name not in before} == {"training_step"}
    keyed.remove()
    assert vars(owner) == before


def test_what_comes_before_is_told_the_name() -> None:
    owner, keyed, told = net(), KeyedMethods(), []
    keyed.add(owner, "configure_optimizers", told.append)
    assert isinstance(owner.configure_optimizers(), torch.optim.SGD)
    assert told == ["configure_optimizers"]
    assert owner.configure_optimizers.__name__ == "configure_optimizers"
    assert owner.configure_optimizers.__wrapped__.__self__ is owner
    keyed.remove()


def test_a_method_that_somebody_put_there_meanwhile_stays() -> None:
    owner, keyed = net(), KeyedMethods()
    keyed.add(owner, "training_step", lambda name: None)

    def mine(batch: Any, batch_idx: int) -> None: ...

    owner.training_step = mine  # type: ignore[assignment]
    keyed.remove()
    assert vars(owner)["training_step"] is mine


# -- hooks that are passed over ----------------------------------------------------------------------------------------


class Watching(Determinism):
    """One of the user's own, with hooks of a batch that call those of the class above it."""

    def __init__(self) -> None:
        super().__init__(3407, log=False)
        self.called: list[str] = []
        self.passed_over: list[str] = []
        self.copies: list[Determinism] = []

    def on_train_batch_start(self, *args: Any) -> None:
        super().on_train_batch_start(*args)
        self.called.append("on_train_batch_start")
        self.passed_over = [name for name in BATCH_HOOKS if getattr(self, name) is None]
        self.copies = [pickle.loads(pickle.dumps(self))]


def test_a_trainer_passes_over_the_hooks_that_we_do_not_have_and_calls_those_of_a_subclass() -> None:
    callback = Watching()
    before = dict(vars(callback))
    small.trainer(callback, max_epochs=1).fit(net(), small.loader())
    assert callback.called == ["on_train_batch_start"] * small.STEPS
    assert callback.passed_over == [name for name in BATCH_HOOKS if name != "on_train_batch_start"]
    for one in (callback, *callback.copies):  # afterwards, and in a copy made meanwhile, all are there
        assert all(callable(getattr(one, name)) for name in BATCH_HOOKS)
    assert set(vars(callback)) - {"log", "log_dict"} == set(before) - {"log", "log_dict"}
