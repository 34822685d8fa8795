"""The entry point: nothing outside of ``run``; below it the callbacks, while a trainer runs, in both namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks.callbacks import autoload
from repro_callbacks.callbacks import settings as settings_module
from repro_callbacks.callbacks.settings import Settings, parse_deterministic, parse_seeds
from repro_callbacks.command import launch
from tests.command.processes import environment, write

EVERYTHING = Settings(
    start_seed=2,
    seed=1,
    seeds={"init": 2, "order": 3},
    deterministic="warn",
    num_workers=0,
    fingerprint=Path("/a/b.jsonl"),
    result=Path("/a/r.json"),
    state=Path("/a/s"),
    stop=(2, 50),
    resume=3,
    checkpoint=Path("/a/c.ckpt"),
    zoom=(1, 0, 7, 3),
    trace=Path("/a/t.pt"),
    log=False,
)


# -- outside of run ----------------------------------------------------------------------------------------------------

CALLED = """
import json, sys
from importlib.metadata import entry_points
found = [entry.load()() for entry in entry_points(group="lightning.pytorch.callbacks_factory")
         if entry.name == "repro_callbacks"]
heavy = [name for name in ("torch", "numpy", "lightning", "pytorch_lightning", "monai") if name in sys.modules]
print(json.dumps([len(callbacks) for callbacks in found] + heavy))
"""


def called(env: dict[str, str]) -> list[Any]:
    done = subprocess.run([sys.executable, "-c", CALLED], env=env, capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_outside_of_run_it_adds_nothing_and_imports_nothing() -> None:
    assert called(environment()) == [0]


@pytest.mark.slow
def test_below_run_it_adds_one_callback_and_imports_lightning() -> None:
    """The control of the test above: that nothing is imported can fail."""
    found = called(environment(**Settings(start_seed=0).to_environment()))
    assert found[0] == 1
    assert "lightning" in found


@pytest.mark.parametrize("group", ["lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory"])
def test_both_namespaces_are_given_it(group: str) -> None:
    assert [entry.load() for entry in entry_points(group=group, name="repro_callbacks")] == [autoload.callbacks]


def test_there_is_nothing_to_hand_over_outside_of_run() -> None:
    with pytest.raises(RuntimeError, match="this process was not started by repro-callbacks"):
        autoload.hand_over()


# -- the settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [Settings(start_seed=0), EVERYTHING, replace(EVERYTHING, deterministic=False)])
def test_settings_survive_the_environment(settings: Settings) -> None:
    written = settings.to_environment()
    assert Settings.from_environment(written) == settings
    assert set(written) <= settings_module.NAMES


def test_every_setting_has_a_variable() -> None:
    assert len(EVERYTHING.to_environment()) == len(settings_module.NAMES)


def test_no_settings_outside_of_run() -> None:
    written = EVERYTHING.to_environment()
    assert Settings.from_environment({**written, settings_module.IN_FORCE: "0"}) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("START_SEED", "x", "REPRO_CALLBACKS_START_SEED must be an integer, not 'x'"),
        ("NUM_WORKERS", "-1", "REPRO_CALLBACKS_NUM_WORKERS must be an integer, not '-1'"),
        ("DETERMINISTIC", "yes", "deterministic must be one of true, warn, false, not 'yes'"),
        ("SEEDS", "dropout=1", "seeds has no purpose 'dropout'"),
        ("SEEDS", "order=99999999999", "seeds\\['order'\\] must be an integer from 0 to 4294967295"),
    ],
)
def test_a_variable_that_holds_what_it_cannot_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.from_environment(EVERYTHING.to_environment() | {settings_module.PREFIX + name: value})


def test_what_is_read() -> None:
    assert parse_seeds("") == {}
    assert [parse_deterministic(text) for text in ("True", "warn", "false")] == [True, "warn", False]


# -- below run ---------------------------------------------------------------------------------------------------------

TRAININGS = '''
import json, sys, warnings
from pathlib import Path
import lightning.pytorch as first
import pytorch_lightning as second
import torch
from lightning.pytorch.tuner import Tuner
from repro_callbacks import Determinism, Fingerprint

OPTIONS = {"max_steps": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
           "enable_model_summary": False, "num_sanity_val_steps": 0}
seen = {}

class Looks(first.Callback):
    """Writes down which callbacks run, what the Determinism among them has, and how many workers load."""
    def __init__(self, name): self.name = name
    def on_train_start(self, trainer, module):
        own = next(one for one in trainer.callbacks if isinstance(one, Determinism))
        seen[self.name] = {"callbacks": [type(one).__name__ for one in trainer.callbacks], "seed": own.seed,
                           "seeds": own.seeds, "deterministic": own.deterministic,
                           "workers": trainer.train_dataloader.num_workers,
                           "algorithms": torch.are_deterministic_algorithms_enabled()}

def fit(name, namespace=first, *callbacks, **options):
    import importlib
    demos = importlib.import_module(namespace.__name__ + ".demos.boring_classes")
    base = type("Looks", (namespace.Callback,), dict(vars(Looks)))
    trainer = namespace.Trainer(callbacks=[base(name), *callbacks], **{**OPTIONS, **options})
    before = list(trainer.callbacks)
    trainer.fit(demos.BoringModel())
    seen[name]["left"] = before == trainer.callbacks
    return trainer

fit("first")
fit("second", second)
own = Determinism(seed=99, deterministic="warn", seeds={"step": 4}, num_workers=None)
trainer = fit("own", first, own, Fingerprint("own.jsonl"), enable_checkpointing=False)
seen["own"]["after"] = [own.seed, own.deterministic, own.num_workers]
trainer.test(first.demos.boring_classes.BoringModel(), verbose=False)

class Tuned(first.demos.boring_classes.BoringModel):
    def __init__(self):
        super().__init__()
        self.lr = 0.1
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

trainer = first.Trainer(**OPTIONS)
model = Tuned()
Tuner(trainer).lr_find(model, num_training=4, early_stop_threshold=None)
trainer.fit(model)

class Fails(first.demos.boring_classes.BoringModel):
    def training_step(self, batch, batch_idx): raise RuntimeError("on purpose")
trainer = first.Trainer(**OPTIONS)
before = list(trainer.callbacks)
try:
    trainer.fit(Fails())
except RuntimeError:
    seen["failed"] = {"left": before == trainer.callbacks, "algorithms": torch.are_deterministic_algorithms_enabled()}
print(json.dumps(seen))
'''


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What trainings in one process below ``run`` saw, and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("trainings")
    write(folder, "trainings.py", TRAININGS)
    settings = Settings(
        start_seed=5,
        seed=5,
        seeds={"order": 6},
        num_workers=1,
        fingerprint=folder / "run.jsonl",
        state=folder / "state",
        result=folder / "result.json",
    )
    (folder / "state").mkdir()
    env = launch.environment(settings, environment())
    done = subprocess.run(
        [sys.executable, "trainings.py"], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "second"])
def test_the_callbacks_run_in_either_namespace(trainings: tuple[dict[str, Any], Path], name: str) -> None:
    seen = trainings[0][name]
    assert seen["callbacks"] == ["Determinism", "Looks", "RunFingerprint", "ModelCheckpoint", "Control"]
    assert seen["seeds"] == {"order": 6, "augment": 5, "init": 5, "step": 5}
    assert (seen["seed"], seen["deterministic"], seen["workers"], seen["algorithms"]) == (5, True, 1, True)


@pytest.mark.slow
def test_what_was_asked_for_wins_over_the_scripts_own_callback_and_no_second_is_added(
    trainings: tuple[dict[str, Any], Path],
) -> None:
    seen = trainings[0]["own"]
    assert seen["callbacks"] == ["Determinism", "Looks", "Fingerprint", "RunFingerprint", "Control"]
    assert seen["seeds"] == {"order": 6, "augment": 5, "init": 5, "step": 4}
    assert (seen["seed"], seen["workers"]) == (5, 1)
    assert seen["deterministic"] == "warn"  # nothing was asked for
    assert seen["after"] == [99, "warn", None]
    assert (trainings[1] / "own.rank0.jsonl").exists()


@pytest.mark.slow
def test_the_trainer_is_left_as_it_was(trainings: tuple[dict[str, Any], Path]) -> None:
    seen = trainings[0]
    assert all(seen[name]["left"] for name in ("first", "second", "own", "failed"))
    assert not seen["failed"]["algorithms"]


@pytest.mark.slow
def test_each_fit_has_a_fingerprint_and_the_search_for_a_learning_rate_has_none(
    trainings: tuple[dict[str, Any], Path],
) -> None:
    folder = trainings[1]
    written = {path.name for path in folder.glob("run*.jsonl")}
    assert written == {f"run{name}.rank0.jsonl" for name in ("", "-fit2", "-fit3", "-fit4", "-fit5")}
    # the fifth is the fit that fails in its first step, and does not come to its end
    told = {int(path.stem.removeprefix("fit-")): json.loads(path.read_text()) for path in folder.glob("state/fit-*")}
    assert told == {fit: {"fit": fit, "steps": 2} for fit in (1, 2, 3, 4)}
