"""``Determinism``: flags while a run lasts, everything as before after it, and the record in every checkpoint."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from monai.transforms import Randomizable
from torch.utils.data import DataLoader

from repro_callbacks import Determinism, RunRecord, determinism, flags, generators, set_determinism
from repro_callbacks.fingerprint.digest import digest_state, digest_tree
from repro_callbacks.loading.holders import reachable
from tests.callbacks import small


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", flags.CUBLAS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with determinism.preserved():
        set_determinism(0)
        yield


# -- flags -------------------------------------------------------------------------------------------------------------

ALGORITHMS = {"deterministic_algorithms", "deterministic_algorithms_warn_only", "cudnn_deterministic"}


@pytest.mark.parametrize("mode", [True, "warn", False])
def test_flags_are_set_while_the_run_lasts(mode: Any) -> None:
    torch.backends.cudnn.deterministic = False
    before = flags.read()
    inside: list[dict[str, object]] = []
    note = small.probe(on_train_start=lambda *_: inside.append(flags.read()))
    small.trainer(Determinism(0, deterministic=mode, log=False), note).fit(small.net(), small.loader())
    changed = {name: value for name, value in inside[0].items() if value != before[name]}
    expected: dict[str, object] = {}
    if mode:
        expected = {
            "deterministic_algorithms": True,
            "cudnn_deterministic": True,
            flags.CUBLAS_VARIABLE: ":4096:8",
        }
    if mode == "warn":
        expected["deterministic_algorithms_warn_only"] = True
    assert {name: value for name, value in changed.items() if name != "inductor_deterministic"} == expected
    assert flags.read() == before


@pytest.mark.parametrize("mode", ["yes", 1, None, "True"])
def test_another_mode_is_refused(mode: Any) -> None:
    with pytest.raises(ValueError, match=f"deterministic must be True, 'warn' or False, not {mode!r}"):
        Determinism(0, deterministic=mode)


@pytest.mark.parametrize("workers", [-1, 1.5, True, "2"])
def test_another_number_of_workers_is_refused(workers: Any) -> None:
    with pytest.raises(ValueError, match="num_workers must be an integer of 0 or more, or None, not "):
        Determinism(0, num_workers=workers)


@pytest.mark.parametrize(
    ("trainers", "ours", "said"),
    [
        (True, "warn", "'warn' holds during the run"),
        ("warn", True, "True holds during the run"),
        (True, False, "they stay on"),
        (True, True, None),
        ("warn", "warn", None),
        (None, True, None),
        (False, False, None),
    ],
)
def test_a_contradiction_with_the_trainers_own_option_is_said(trainers: Any, ours: Any, said: str | None) -> None:
    with small.messages() as warned:
        trainer = small.trainer(Determinism(0, deterministic=ours, log=False), deterministic=trainers, max_epochs=1)
        trainer.fit(small.net(), small.loader())
    found = [message for message in warned if "asks for something else" in message]
    if said is None:
        assert found == []
    else:
        (message,) = found
        assert said in message
        assert f"Trainer(deterministic={trainers!r})" in message
        assert f"Determinism(deterministic={ours!r})" in message


def test_a_wrong_workspace_is_refused_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flags.CUBLAS_VARIABLE, ":1:1")
    module, trainer = small.net(), small.trainer(Determinism(0, log=False))
    before, callbacks = flags.read(), trainer.callbacks
    with pytest.raises(ValueError, match="with which cuBLAS is not repeatable"):
        trainer.fit(module, small.loader())
    assert flags.read() == before
    assert trainer.callbacks is callbacks


# -- an operator that can't be deterministic ---------------------------------------------------------------------------


def unpooling() -> Any:
    class Unpool(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = torch.nn.MaxPool2d(2, return_indices=True)
            self.unpool = torch.nn.MaxUnpool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.unpool(*self.pool(x.reshape(-1, 1, 2, 2))).reshape(-1, 4)

    module = small.net()
    module.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), Unpool(), torch.nn.Linear(4, 1))
    return module


def test_an_operator_without_deterministic_form_fails_and_the_error_names_module_and_remedy() -> None:
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation") as caught:
        small.trainer(Determinism(0, log=False)).fit(unpooling(), small.loader())
    (note,) = caught.value.__notes__
    assert "layers.1.unpool (MaxUnpool2d)" in note
    assert "Use instead: " in note
    assert "deterministic='warn'" in note
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_warns_or_is_silent_if_asked_to() -> None:
    for mode in ("warn", False):
        with small.messages() as warned:
            small.trainer(Determinism(0, deterministic=mode, log=False)).fit(unpooling(), small.loader())
        assert any("does not have a deterministic implementation" in message for message in warned) == (mode == "warn")


def test_another_error_gets_no_note() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of patience")

    with pytest.raises(RuntimeError, match="out of patience") as caught:
        small.trainer(Determinism(0, log=False), small.probe(on_train_start=fail)).fit(small.net(), small.loader())
    assert not hasattr(caught.value, "__notes__")


# -- nothing left behind -----------------------------------------------------------------------------------------------


class Breaks(Exception):
    pass


def failing(hook: str, error: type[BaseException] = Breaks) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return small.probe(**{hook: fail})


def failing_method(name: str) -> Any:
    def fail(self: Any, *_: Any) -> None:
        raise Breaks

    return {name: fail}


# What is run, with which callbacks and methods, and what it raises.
ENDINGS: dict[str, dict[str, Any]] = {
    "fit": {},
    "fast_dev_run": {"fast_dev_run": True},
    "validate": {"entry": "validate"},
    "test": {"entry": "test"},
    "predict": {"entry": "predict"},
    "an exception in setup": {"callback": ("setup", Breaks), "raises": Breaks},
    "an exception in the middle": {"callback": ("on_train_batch_end", Breaks), "raises": Breaks},
    "an exception in a validation": {"callback": ("on_validation_batch_end", Breaks), "raises": Breaks},
    "an exception at the end": {"callback": ("on_fit_end", Breaks), "raises": Breaks},
    "an exception in configure_optimizers": {"method": "configure_optimizers", "raises": Breaks},
    "an exception in training_step": {"method": "training_step", "raises": Breaks},
    "an exception in a test": {"entry": "test", "method": "test_step", "raises": Breaks},
    "Ctrl-C": {"callback": ("on_train_batch_end", KeyboardInterrupt), "raises": SystemExit},
    "workers": {"workers": 2},
    "workers, an exception": {
        "workers": 2,
        "callback": ("on_train_batch_end", Breaks),
        "raises": Breaks,
    },
}


class Data(small.namespace().LightningDataModule):  # type: ignore[misc]
    def __init__(self, workers: int) -> None:
        super().__init__()
        kwargs = {"num_workers": workers, "persistent_workers": workers > 0}
        self.loaders = [small.loader(**kwargs), small.loader(shuffle=False, **kwargs)]

    def setup(self, stage: str) -> None:
        torch.rand(1)

    def train_dataloader(self) -> Any:
        return self.loaders[0]

    def val_dataloader(self) -> Any:
        return self.loaders[1]

    test_dataloader = predict_dataloader = val_dataloader


def process_state() -> dict[str, Any]:
    states = generators.snapshot()
    return {
        "flags": flags.read(),
        "environ": dict(os.environ),
        "generators": digest_tree([repr(states.python), repr(states.numpy), states.torch]),
        "the R that MONAI's transforms share": id(Randomizable.R),
        "children": [child.pid for child in multiprocessing.active_children()],
    }


def data_state(loaders: list[DataLoader[Any]]) -> Any:
    """Every object that the loaders reach: what it holds, and the state of its generators.

    What a MONAI transform has drawn last stands in attributes of its own; only their names are compared.
    """
    found = []
    for obj in reachable(loaders):
        if isinstance(obj, np.ndarray | torch.Tensor):
            continue
        held = getattr(obj, "__dict__", {})
        compared = {"R"} if hasattr(obj, "set_random_state") else set(held)
        names = [(name, id(value) if name in compared else None) for name, value in sorted(held.items())]
        state = obj.get_state(legacy=False) if isinstance(obj, np.random.RandomState) else None
        state = obj.bit_generator.state if isinstance(obj, np.random.Generator) else state
        found.append((type(obj).__name__, id(obj), names, repr(state)))
    return found


def attempt(ending: dict[str, Any], *callbacks: Any) -> dict[str, list[str]]:
    """Run once and return which attributes each object has afterwards; with ours, compare what there was before."""
    extra = [failing(*ending["callback"])] if "callback" in ending else []
    module = small.net(**(failing_method(ending["method"]) if "method" in ending else {}))
    data = Data(ending.get("workers", 0))
    trainer = small.trainer(*callbacks, *extra, max_epochs=1, fast_dev_run=ending.get("fast_dev_run", False))
    before, held = list(trainer.callbacks), data_state(data.loaders)
    state = process_state()
    entry = getattr(trainer, ending.get("entry", "fit"))
    caught: BaseException | None = None
    with small.interruptible():
        try:
            entry(module, datamodule=data)
        except (Breaks, SystemExit) as error:
            caught = error  # kept, with all that its traceback holds, as a debugger or a notebook keeps it
    assert (caught is None) if "raises" not in ending else isinstance(caught, ending["raises"])
    if callbacks:
        assert process_state() == state
        assert data_state(data.loaders) == held
        assert trainer.callbacks == before
        assert callbacks[0]._run is None
    objects = {"trainer": trainer, "module": module, "datamodule": data, "strategy": trainer.strategy}
    return {name: sorted(vars(obj)) for name, obj in objects.items()}


@pytest.mark.parametrize("name", ENDINGS)
def test_everything_is_as_before(name: str) -> None:
    assert attempt(ENDINGS[name], Determinism(0, log=False)) == attempt(ENDINGS[name])


def test_the_comparison_can_fail() -> None:
    loaders = [small.loader()]
    held = data_state(loaders)
    loaders[0].dataset.transform.transforms[0].R = np.random.RandomState(0)  # type: ignore[attr-defined]
    assert data_state(loaders) != held
    held = data_state(loaders)
    loaders[0].dataset.rng.random()  # type: ignore[attr-defined]
    assert data_state(loaders) != held
    state = process_state()
    torch.rand(1)
    assert process_state() != state


def test_without_undoing_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Determinism, "_end", lambda self: None)
    with pytest.raises(AssertionError):
        attempt({}, Determinism(0, log=False))


def test_a_run_that_broke_down_is_ended_by_the_next() -> None:
    callback, first, second = Determinism(0, log=False), small.net(), small.net()
    state = process_state()
    with pytest.raises(Breaks):
        small.trainer(callback, failing("on_exception"), failing("on_train_start")).fit(first, small.loader())
    assert process_state() != state  # Lightning tears nothing down when on_exception itself fails
    small.trainer(callback, max_epochs=1).fit(second, small.loader())
    assert process_state() == state


def test_twice_in_one_process_gives_the_same_twice() -> None:
    set_determinism(0)
    first, second = small.net(), small.net()
    second.load_state_dict(first.state_dict())
    callback = Determinism(0, log=False)
    trainer = small.trainer(callback)
    trainer.fit(first, small.loader())
    torch.rand(7)
    small.trainer(callback).fit(second, small.loader())
    assert first.seen == second.seen
    assert digest_state(first) == digest_state(second)


# -- the record --------------------------------------------------------------------------------------------------------


def checkpointed(folder: Path, callback: Determinism, **kwargs: Any) -> Any:
    module = small.net()
    saves = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    small.trainer(callback, saves, enable_checkpointing=True, **kwargs).fit(
        module, small.loader(), ckpt_path=kwargs.pop("ckpt_path", None)
    )
    return module


def test_the_record_is_in_the_checkpoint_with_the_digest_of_the_initial_weights(tmp_path: Path) -> None:
    initial: list[str] = []
    module = small.net()
    note = small.probe(on_fit_start=lambda _, module: initial.append(digest_state(module)))
    callback = Determinism(5, seeds={"order": 1}, log=False)
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    small.trainer(note, callback, saves, enable_checkpointing=True).fit(module, small.loader())
    state = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["callbacks"]["Determinism"]
    assert state["seeds"] == {"order": 1, "augment": 5, "init": 5, "step": 5}
    record = RunRecord.from_dict(state["record"])
    assert record == callback.record
    assert record.seed == 5
    assert [record.initial_weights] == initial
    assert record.flags["deterministic_algorithms"] is True
    assert record.initial_weights != digest_state(module)


def resumed(path: Path, callback: Determinism) -> tuple[Determinism, list[str]]:
    with small.messages() as said:
        trainer = small.trainer(callback, max_epochs=3)
        trainer.fit(small.net(), small.loader(), ckpt_path=path)
    return callback, said


def test_a_resume_keeps_the_digest_and_another_seed_is_warned_of(tmp_path: Path) -> None:
    first = Determinism(5, log=False)
    checkpointed(tmp_path, first)
    path = tmp_path / "epoch=1.ckpt"
    same, said = resumed(path, Determinism(5, log=False))
    assert same.record is not None
    assert first.record is not None
    assert same.record.initial_weights == first.record.initial_weights
    assert not [message for message in said if "the checkpoint was made with" in message]
    assert not [message for message in said if "differs from the one that wrote the checkpoint" in message]

    _, said = resumed(path, Determinism(6, log=False))
    (message,) = [message for message in said if "the checkpoint was made with the seeds" in message]
    assert "'order': 5" in message
    assert "'order': 6" in message
    assert "Give Determinism the checkpoint's seeds" in message


def test_a_validation_alone_has_a_record_too() -> None:
    callback = Determinism(5, log=False)
    small.trainer(callback).validate(small.net(), small.loader(), verbose=False)
    assert callback.record is not None
    assert callback.record.seed == 5
