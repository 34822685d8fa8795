"""What is read of a Trainer without being documented: each name has a test that says so when Lightning moves it."""

from __future__ import annotations

import ast
import importlib
import inspect
import multiprocessing
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from repro_callbacks.callbacks import base
from repro_callbacks.callbacks import trainer as trainers
from repro_callbacks.loading import KeyedLoader

SAMPLES, BATCH, STEPS = 6, 2, 3

# Every name that is read and not documented, as the path to it from a trainer that is fitting, and who reads it.
READ: dict[str, str] = {
    "state.stage.value": "stage_of",
    "state.fn.value": "eval_loop",
    "fit_loop.epoch_progress.current.ready": "train_position",
    "fit_loop.epoch_progress.current.processed": "train_position",
    "fit_loop.epoch_progress.current.completed": "end_saved_epoch",
    "fit_loop.epoch_progress.increment_completed": "leave_finished_epoch",
    "fit_loop.epoch_loop.batch_progress.current.ready": "step_of, train_position",
    "fit_loop.epoch_loop.batch_progress.current.processed": "train_position",
    "fit_loop.epoch_loop.batch_progress.current.completed": "train_position",
    "fit_loop.epoch_loop.batch_progress.is_last_batch": "train_position, saved_at_last_batch",
    "fit_loop.epoch_loop.total_batch_idx": "lost_validation",
    "fit_loop.epoch_loop.restarting": "train_position",
    "fit_loop.epoch_loop.restarted_on_train_batch_end": "saved_at_last_batch",
    "fit_loop.restarting": "leave_finished_epoch",
    "fit_loop.restarted_on_epoch_end": "leave_finished_epoch",
    "fit_loop.reset_restart_stage": "leave_finished_epoch, begin_next_epoch",
    "fit_loop.epoch_loop.reset_restart_stage": "leave_finished_epoch",
    "fit_loop.epoch_loop.val_loop.reset_restart_stage": "leave_finished_epoch",
    "fit_loop._restarting": "leave_finished_epoch",
    "fit_loop.epoch_loop._restarting": "leave_finished_epoch",
    "fit_loop.epoch_loop.val_loop._restarting": "leave_finished_epoch, end_saved_epoch",
    "fit_loop.epoch_loop.val_loop.run": "end_saved_epoch",
    "fit_loop.epoch_loop._batches_that_stepped": "begin_next_epoch",
    "fit_loop.epoch_loop._should_accumulate": "begin_next_epoch",
    "fit_loop.epoch_loop.batch_progress.increment_completed": "begin_next_epoch, end_saved_epoch",
    "fit_loop.epoch_loop.batch_progress.total.completed": "end_saved_epoch",
    "fit_loop.max_batches": "train_position, begin_next_epoch, lost_validation",
    "fit_loop._last_train_dl_reload_epoch": "set_reload_epoch",
    "fit_loop._combined_loader.flattened": "home_of, unwrap_loaders",
    "fit_loop._combined_loader._mode": "home_of",
    "fit_loop.epoch_loop.val_loop._combined_loader": "home_of, unwrap_loaders",
    "fit_loop.epoch_loop.val_loop.batch_progress.current.ready": "step_of",
    "validate_loop._combined_loader": "home_of, unwrap_loaders",
    "validate_loop.batch_progress.current.ready": "step_of",
    "test_loop._combined_loader": "home_of, unwrap_loaders",
    "test_loop.batch_progress.current.ready": "step_of",
    "predict_loop._combined_loader": "home_of, unwrap_loaders",
    "predict_loop.batch_progress.current.ready": "step_of",
    "check_val_every_n_epoch": "lost_validation",
    "enable_validation": "lost_validation",
    "val_check_batch": "lost_validation",
    "validating": "end_saved_epoch",
    "training": "end_saved_epoch",
    "reload_dataloaders_every_n_epochs": "loader_epoch",
    "datamodule": "data_sources",
    "lightning_module._trainer": "the log property of Determinism",
    "strategy.process_dataloader": "Determinism",
    "strategy.teardown": "Determinism",
    "lr_scheduler_configs": "Repairs",
    "callback_metrics": "Repairs",
}
DOCUMENTED = {"current_epoch", "max_steps", "lightning_module"}
NOT_LIGHTNINGS = {"wrapped", "append", "value", "import_module", "__name__"}
CALLED = {
    "_call_callback_hooks",
    "_call_lightning_module_hook",
}  # functions of the module trainer.call: end_saved_epoch


@pytest.fixture(params=base.NAMESPACES)
def lightning(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1,), float(index))


def loader(**kwargs: Any) -> DataLoader[torch.Tensor]:
    return DataLoader(Numbers(), BATCH, **kwargs)


def net(lightning: ModuleType, **methods: Any) -> Any:
    class Net(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            parts = batch if isinstance(batch, list) else [batch]
            return torch.stack([self.layer(part).sum() for part in parts if part is not None]).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.layer(batch)

        test_step = validation_step

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    for name, method in methods.items():
        setattr(Net, name, method)
    return Net()


def trainer_of(lightning: ModuleType, *callbacks: Any, **kwargs: Any) -> Any:
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(
        callbacks=list(callbacks),
        **{"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0, **silent, **kwargs},
    )


def probe(lightning: ModuleType, **hooks: Any) -> Any:
    return type("Probe", (lightning.Callback,), {name: staticmethod(hook) for name, hook in hooks.items()})()


def walk(trainer: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), trainer)


# -- the names ---------------------------------------------------------------------------------------------------------


def test_every_name_is_where_it_was(lightning: ModuleType) -> None:
    moved = {}

    def look(trainer: Any, *_: Any) -> None:
        for path, reader in READ.items():
            try:
                walk(trainer, path)
            except AttributeError as error:
                moved[path] = f"read by {reader}: {error}"

    trainer_of(lightning, probe(lightning, on_train_batch_start=look), max_epochs=1).fit(
        net(lightning), loader(), loader()
    )
    assert moved == {}, (
        f"{lightning.__name__} {lightning.__version__} has moved what repro_callbacks reads of a trainer"
    )


def test_a_name_that_is_gone_is_named() -> None:
    with pytest.raises(AttributeError, match="flattened"):
        walk(type("Loop", (), {"_combined_loader": object()})(), "_combined_loader.flattened")


def test_no_other_name_is_read() -> None:
    tree = ast.parse(inspect.getsource(trainers))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    tested = {name for path in READ for name in path.split(".")}
    assert read - tested - DOCUMENTED - NOT_LIGHTNINGS - CALLED == set(), "add these to READ"


def test_the_functions_that_are_called_are_there(lightning: ModuleType) -> None:
    call = importlib.import_module(f"{lightning.__name__}.trainer.call")
    missing = [name for name in CALLED if not callable(getattr(call, name, None))]
    assert not missing, f"{call.__name__} has lost {missing}, which end_saved_epoch calls"
    assert "monitoring_callbacks" in inspect.signature(call._call_callback_hooks).parameters


# -- what they mean ----------------------------------------------------------------------------------------------------


def test_stage_epoch_and_batch(lightning: ModuleType) -> None:
    seen: list[tuple[str, trainers.Step]] = []

    def hook(name: str) -> Any:
        return lambda trainer, *_, **__: seen.append((name, trainers.step_of(trainer)))

    names = ["setup", "on_fit_start", "on_train_start", "on_train_batch_start", "on_validation_batch_start"]
    names += ["on_test_batch_start", "on_predict_batch_start"]
    trainer = trainer_of(
        lightning,
        probe(lightning, **{name: hook(name) for name in names}),
        num_sanity_val_steps=1,
        val_check_interval=2,
    )
    module = net(lightning)

    trainer.fit(module, loader(), loader())
    validations = [("on_validation_batch_start", ("validate", 0, batch)) for batch in (1, 2, 3)]
    expected: list[Any] = [("setup", ("setup", 0, 0)), ("on_fit_start", ("setup", 0, 0))]
    expected += [validations[0], ("on_train_start", ("train", 0, 0))]
    for epoch in (0, 1):
        expected += [("on_train_batch_start", ("train", epoch, batch)) for batch in (1, 2)]
        expected += [*validations, ("on_train_batch_start", ("train", epoch, 3))]
    # At fit's start the stage is not told apart by every version; the batches are.
    assert [entry for entry in seen if "batch" in entry[0]] == [entry for entry in expected if "batch" in entry[0]]
    assert seen[[name for name, _ in seen].index("on_train_start")] == ("on_train_start", ("train", 0, 0))

    for run, stage in ((trainer.validate, "validate"), (trainer.test, "test"), (trainer.predict, "predict")):
        seen.clear()
        run(module, loader(), **({} if stage == "predict" else {"verbose": False}))
        steps = [(name, tuple(step)) for name, step in seen if "batch" in name]
        name = {"validate": "validation"}.get(stage, stage)
        assert steps == [(f"on_{name}_batch_start", (stage, 0, batch)) for batch in (1, 2, 3)]


@pytest.mark.parametrize("every", [{"every_n_train_steps": 1}, {"every_n_epochs": 1}], ids=["step", "epoch"])
def test_the_position_of_a_resumed_trainer(lightning: ModuleType, every: dict[str, int], tmp_path: Path) -> None:
    saves = lightning.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **every)
    trainer_of(lightning, saves, enable_checkpointing=True).fit(net(lightning), loader())
    checkpoints = {int(path.stem.removeprefix("step=")): path for path in tmp_path.glob("*.ckpt")}
    assert sorted(checkpoints) == ([1, 2, 3, 4, 5, 6] if "every_n_train_steps" in every else [3, 6])
    for step, path in checkpoints.items():
        positions: list[tuple[int, int]] = []

        class Late(DataLoader[Any]):
            def __iter__(self) -> Any:  # a generator, as that of a KeyedLoader: it begins at the first batch
                positions.append(trainers.train_position(trainer))  # noqa: B023
                yield from super().__iter__()

        trainer = trainer_of(lightning, max_epochs=3)
        trainer.fit(net(lightning), Late(Numbers(), BATCH), ckpt_path=path)
        assert positions[0] == divmod(step, STEPS), f"resumed from step {step}"


def test_the_home_of_a_loader(lightning: ModuleType) -> None:
    combined = importlib.import_module(f"{lightning.__name__}.utilities.combined_loader").CombinedLoader
    first, second, val = loader(), loader(shuffle=True), loader()
    homes: list[Any] = []

    def look(trainer: Any, *_: Any) -> None:
        homes.extend(trainers.home_of(trainer, candidate) for candidate in (first, second, val, loader()))

    for mode in ("max_size_cycle", "min_size"):
        note = probe(lightning, on_train_start=look)
        trainer_of(lightning, note, max_epochs=1, num_sanity_val_steps=1).fit(
            net(lightning), combined([first, second], mode), val
        )
    cycled, plain = ("train", True), ("train", False)
    assert homes[:4] == [(cycled[0], 0, True), ("train", 1, True), ("validate", 0, False), None]
    assert homes[4:] == [(plain[0], 0, False), ("train", 1, False), ("validate", 0, False), None]


def test_keyed_loaders_are_taken_out_of_a_users_combined_loader(lightning: ModuleType) -> None:
    combined = importlib.import_module(f"{lightning.__name__}.utilities.combined_loader").CombinedLoader
    users = {"a": loader(), "b": loader()}
    both = combined(users, "min_size")
    seeds = {"order": 0, "augment": 0, "init": 0, "step": 0}

    def swap(trainer: Any, *_: Any) -> None:
        both.flattened = [KeyedLoader(plain, seeds) for plain in both.flattened]
        assert all(type(plain) is KeyedLoader for plain in both.iterables.values())
        trainers.unwrap_loaders(trainer)

    module = net(lightning, training_step=lambda self, batch, _: self.layer(batch["a"]).sum())
    trainer_of(lightning, probe(lightning, on_train_end=swap), max_epochs=1).fit(module, both)
    assert both.iterables == users
    assert all(one is other for one, other in zip(both.flattened, users.values(), strict=True))


def test_minus_infinity_makes_the_train_loaders_anew(lightning: ModuleType) -> None:
    made: list[int] = []

    def train_dataloader(self: Any) -> Any:
        made.append(self.trainer.current_epoch)
        return loader()

    def forget(trainer: Any, *_: Any) -> None:
        trainers.set_reload_epoch(trainer, float("-inf"))

    def count(*callbacks: Any) -> list[int]:
        made.clear()
        trainer = trainer_of(lightning, *callbacks, max_epochs=4, reload_dataloaders_every_n_epochs=2)
        trainer.fit(net(lightning, train_dataloader=train_dataloader))
        return list(made)

    assert count() == [0, 2]
    assert count(probe(lightning, on_train_epoch_end=forget)) == [0, 1, 2, 3]


# -- what Determinism hooks into ---------------------------------------------------------------------------------------


def test_a_callback_gets_its_log_before_anything_of_the_users_runs(lightning: ModuleType) -> None:
    order: list[str] = []

    class Early(lightning.Callback):  # type: ignore[name-defined, misc]
        @property
        def log(self) -> Any:
            return self.__dict__["log"]

        @log.setter
        def log(self, value: Any) -> None:
            self.__dict__["log"] = value
            trainer = getattr(value.__self__, "_trainer", None)
            order.append(f"log of the module of {type(trainer).__name__}, strategy {type(trainer.strategy).__name__}")

    class Data(lightning.LightningDataModule):  # type: ignore[name-defined, misc]
        def prepare_data(self) -> None:
            order.append("prepare_data")

        def setup(self, stage: str) -> None:
            order.append("DataModule.setup")

        def train_dataloader(self) -> Any:
            return loader()

    trainer_of(lightning, Early(), max_epochs=1).fit(net(lightning), Data())
    assert order == [
        "log of the module of Trainer, strategy SingleDeviceStrategy",
        "prepare_data",
        "DataModule.setup",
    ], (
        f"{lightning.__name__} {lightning.__version__} no longer sets callback.log before it calls the user's code "
        "(it was done by _attach_model_logging_functions): Determinism begins a run there"
    )


def test_every_loader_passes_through_the_strategy(lightning: ModuleType) -> None:
    passed: list[Any] = []

    def intercept(trainer: Any, *_: Any, **__: Any) -> None:
        original = type(trainer.strategy).process_dataloader.__get__(trainer.strategy)

        def process_dataloader(candidate: Any) -> Any:
            passed.append(candidate)
            return original(candidate)

        trainer.strategy.process_dataloader = process_dataloader

    trainer = trainer_of(lightning, probe(lightning, setup=intercept), max_epochs=1)
    module, train, val = net(lightning), loader(), [loader(), loader()]
    module.validation_step = lambda batch, batch_idx, dataloader_idx: None
    trainer.fit(module, train, val)
    assert passed == [train, *val]
    for run in (trainer.validate, trainer.test, trainer.predict):
        passed.clear()
        single = loader()
        module.validation_step = lambda batch, batch_idx: None
        run(module, single)
        # For predictions Lightning makes the loader anew beforehand, to know the indices of each batch.
        assert [candidate.dataset for candidate in passed] == [single.dataset], (
            f"{run.__name__} no longer calls strategy.process_dataloader"
        )


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_strategy_is_torn_down_after_on_exception(lightning: ModuleType, error: type[BaseException]) -> None:
    import signal

    order: list[str] = []

    def intercept(trainer: Any, *_: Any, **__: Any) -> None:
        original = trainer.strategy.teardown
        trainer.strategy.teardown = lambda: (original(), order.append("strategy.teardown"))

    def fail(*_: Any) -> None:
        raise error

    callback = probe(
        lightning,
        setup=intercept,
        on_train_batch_end=fail,
        on_exception=lambda *_: order.append("on_exception"),
        teardown=lambda *_, **__: order.append("teardown hook"),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            trainer_of(lightning, callback).fit(net(lightning), loader())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C from then on
    assert order == ["on_exception", "strategy.teardown"]


def test_callbacks_run_in_the_order_of_a_list_that_was_replaced(lightning: ModuleType) -> None:
    order: list[str] = []
    last = probe(lightning, on_train_start=lambda *_: order.append("second in the new list"))

    def reverse(trainer: Any, *_: Any) -> None:
        trainer.callbacks = trainer.callbacks[::-1]

    first = probe(lightning, on_fit_start=reverse, on_train_start=lambda *_: order.append("first"))
    trainer_of(lightning, first, last, max_epochs=1).fit(net(lightning), loader())
    assert order == ["second in the new list", "first"]


def test_a_hook_that_cannot_be_called_is_passed_over(lightning: ModuleType) -> None:
    called: list[str] = []
    callback = probe(lightning, on_train_batch_start=lambda *_: called.append("start"), on_train_batch_end=None)
    trainer_of(lightning, callback, max_epochs=1).fit(net(lightning), loader())
    assert called == ["start"] * 3


def test_a_namespace_is_recognised_by_its_trainer(lightning: ModuleType) -> None:
    class Own(lightning.Trainer):  # type: ignore[name-defined, misc]
        pass

    assert base.namespace_of(trainer_of(lightning)) is lightning
    assert base.namespace_of(Own(logger=False, accelerator="cpu", enable_checkpointing=False)) is lightning
    with pytest.raises(TypeError, match=r"expected a Trainer of lightning\.pytorch or pytorch_lightning, not "):
        base.namespace_of(object())


def test_both_namespaces_accept_a_callback_of_ours() -> None:
    for namespace in base.installed_namespaces():
        assert issubclass(base.Callback, namespace.Callback)
    assert [namespace.__name__ for namespace in base.installed_namespaces()] == list(base.NAMESPACES)


def test_lightning_shuts_persistent_workers_down_through_the_iterator_of_a_loader(lightning: ModuleType) -> None:
    from repro_callbacks import Determinism

    users = loader(num_workers=1, persistent_workers=True)
    counted: list[int] = []
    note = probe(lightning, on_train_epoch_end=lambda *_: counted.append(len(multiprocessing.active_children())))
    trainer_of(lightning, Determinism(0, log=False), note).fit(net(lightning), users)
    assert counted == [1, 1]
    assert multiprocessing.active_children() == []
