"""The callback: what it records, that it changes nothing, and that a resumed run continues its file."""

import copy
import json
import logging
import pickle
import random
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from repro_callbacks import Determinism, Fingerprint, compare
from repro_callbacks.fingerprint import digest_state
from repro_callbacks.fingerprint.runs import Run

BATCHES = 5


@pytest.fixture(autouse=True)
def quiet(caplog):
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric"):
        caplog.set_level(logging.ERROR, name)


class Augmented(Dataset):
    def __init__(self, count=BATCHES * 4):
        self.images = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index] + 0.1 * torch.randn(6) * random.random() * np.random.rand()
        return image, self.images[index].sum()


def build(base=L.LightningModule, **methods):
    def __init__(self):
        base.__init__(self)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss(self, batch):
        image, target = batch
        return ((self.net(image).squeeze(1) - target) ** 2).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    own = {
        "__init__": __init__,
        "loss": loss,
        "training_step": training_step,
        "validation_step": validation_step,
        "configure_optimizers": configure_optimizers,
    }
    torch.manual_seed(1)
    return type("Module", (base,), {**own, **methods})()


def fit(
    fingerprint=None,
    module=None,
    *,
    seed=5,
    namespace=L,
    callbacks=(),
    behind=(),
    loader=None,
    validation=None,
    ckpt=None,
    **trainer,
):
    module = build() if module is None else module
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    } | trainer
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    own = [] if fingerprint is None else [fingerprint]
    made = namespace.Trainer(callbacks=[*callbacks, *own, *behind], **settings)
    loader = DataLoader(Augmented(), 4, shuffle=True) if loader is None else loader
    made.fit(module, loader, validation, ckpt_path=ckpt)
    return made, module


def lines(fingerprint, kind="step"):
    return [line for line in map(json.loads, fingerprint.file.read_text().splitlines()) if line["kind"] == kind]


def bits(module, trainer=None):
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tobytes()
    return digest_state(module), generators[0].numpy().tobytes(), generators[1:]


# -- it looks and does not touch ---------------------------------------------------------------------------------------


def test_with_and_without_it_the_training_is_the_same(tmp_path):
    every = {"parameters": 1, "optimizer": 1}
    with_it = bits(fit(Fingerprint(tmp_path, every=every), validation=DataLoader(Augmented(), 4))[1])
    without = bits(fit(validation=DataLoader(Augmented(), 4))[1])
    assert with_it == without
    assert bits(fit(seed=6)[1]) != without  # negative control: what is compared can differ


class Touches(Fingerprint):
    """What a fingerprint must not be."""

    def before_forward(self, batch):
        torch.rand(1)
        super().before_forward(batch)


def test_a_callback_that_draws_would_be_seen(tmp_path):
    assert bits(fit(Touches(tmp_path))[1]) != bits(fit()[1])


def test_nothing_is_left_behind(tmp_path):
    torch_methods = dict(vars(_BaseDataLoaderIter))
    module, other = build(), build()
    fit(Fingerprint(tmp_path), module)
    fit(None, other)
    assert "training_step" not in vars(module)
    assert vars(module).keys() == vars(other).keys()
    assert dict(vars(_BaseDataLoaderIter)) == torch_methods


@pytest.mark.parametrize("determinism", [True, False])
def test_nothing_is_left_behind_by_a_failure(tmp_path, determinism):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise KeyError("in the middle")
        return self.loss(batch)

    torch_methods, module = dict(vars(_BaseDataLoaderIter)), build(training_step=training_step)
    fingerprint = Fingerprint(tmp_path)
    with pytest.raises(KeyError):
        fit(fingerprint, module, callbacks=[Determinism(0)] if determinism else [])
    assert "training_step" not in vars(module)
    assert dict(vars(_BaseDataLoaderIter)) == torch_methods
    assert [line["batch"] for line in lines(fingerprint)] == [0, 1, 2]
    assert Run(fingerprint.file).end is None


def test_a_training_step_of_the_object_itself_is_put_back(tmp_path):
    module = build()
    own = lambda batch, batch_idx: module.loss(batch)  # noqa: E731
    module.training_step = own
    fingerprint = Fingerprint(tmp_path)
    fit(fingerprint, module)
    assert module.training_step is own
    assert len(lines(fingerprint)) == 2 * BATCHES


def test_a_module_can_be_copied_and_pickled_in_the_middle(tmp_path):
    copies = []

    class Copies(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if not copies:
                copies.append(copy.deepcopy(pl_module.net))
                copies.append(pickle.loads(pickle.dumps(pl_module.training_step)).__func__)

    torch.manual_seed(1)
    fit(Fingerprint(tmp_path), PickledModule(), callbacks=[Copies()])
    assert copies[1] is PickledModule.training_step


class PickledModule(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 1)

    def __getstate__(self):
        return {**self.__dict__, "_trainer": None}

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


# -- what it records ---------------------------------------------------------------------------------------------------


def test_a_line_for_each_batch(tmp_path):
    fingerprint = Fingerprint(tmp_path, every={"parameters": 3, "optimizer": 4, "generators": 2})
    fit(fingerprint)
    found = lines(fingerprint)
    assert [(line["epoch"], line["batch"], line["step"], line["number"]) for line in found] == [
        (*divmod(number, BATCHES), number + 1, number) for number in range(2 * BATCHES)
    ]
    for line in found:
        number = line["number"]
        assert ("parameters" in line) == (number % 3 == 0)
        assert ("optimizer" in line) == (number % 4 == 0)
        assert ("before" in line) == ("after" in line) == (number % 2 == 0)
        assert {"data", "samples", "indices", "loss", "gradients", "schedule", "chain"} <= line.keys()
        assert len(line["samples"]) == 12 * 4
        assert len(line["each_gradient"]) == 8 * 4
    assert sorted(index for line in found[:BATCHES] for index in line["indices"]) == list(range(20))
    assert len({line["data"] for line in found}) == len(found)
    head = lines(fingerprint, "head")[0]
    assert head["record"]["versions"]["torch"] == torch.__version__
    assert [name.split(" ")[0] for name in head["parameters"]] == [name for name, _ in build().named_parameters()]
    assert lines(fingerprint, "end")[0]["state"].keys() == head["state"].keys()


def test_nothing_but_what_is_asked_for(tmp_path):
    none = dict.fromkeys(["batch", "generators", "loss", "gradients", "parameters", "optimizer", "validation"], 0)
    fingerprint = Fingerprint(tmp_path, every=none)
    fit(fingerprint, validation=DataLoader(Augmented(), 4))
    assert lines(fingerprint)[0].keys() == {
        *("kind", "epoch", "batch", "step", "number", "rates", "schedule", "chain", "segment")
    }
    assert lines(fingerprint, "validation") == []


@pytest.mark.parametrize(
    ("every", "words"),
    [
        ({"weights": 1}, "no digest 'weights'"),
        ({"loss": -1}, "at least 0"),
        ({"loss": True}, "at least 0"),
        ({"loss": 0.5}, "0.5"),
    ],
)
def test_every_is_checked(every, words):
    with pytest.raises(ValueError, match=words):
        Fingerprint(every=every)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_indices_are_those_of_the_batch(tmp_path, workers, persistent):
    count = 40
    data = TensorDataset(torch.arange(count).float().unsqueeze(1).expand(-1, 6), torch.arange(count).float())
    seen = []

    def training_step(self, batch, batch_idx):
        seen.append(batch[1].long().tolist())
        return self.loss(batch)

    fingerprint = Fingerprint(tmp_path)
    persistent = persistent and workers > 0
    loader = DataLoader(data, 4, shuffle=True, num_workers=workers, persistent_workers=persistent)
    fit(fingerprint, build(training_step=training_step), loader=loader, limit_train_batches=4)
    assert [line["indices"] for line in lines(fingerprint)] == seen


def test_validation_metrics(tmp_path):
    def training_step(self, batch, batch_idx):
        self.log("train_loss", loss := self.loss(batch), on_step=True, on_epoch=True)
        return loss

    fingerprint, seen = Fingerprint(tmp_path), []

    class Sees(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                seen.append(float(trainer.callback_metrics["val_loss"]))

    fit(
        fingerprint,
        build(training_step=training_step),
        validation=DataLoader(Augmented(), 4),
        callbacks=[Sees()],
        val_check_interval=2,
    )
    found = lines(fingerprint, "validation")
    assert [(line["epoch"], line["batch"]) for line in found] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    assert [line["metrics"] for line in found] == [{"val_loss": value.hex()} for value in seen]
    assert len(set(seen)) == 4


def test_a_batch_as_it_reaches_training_step(tmp_path):
    class Changes(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch[0].add_(1)

    found = []
    for name, settings in (("plain", {}), ("before", {"callbacks": [Changes()]}), ("behind", {"behind": [Changes()]})):
        fingerprint = Fingerprint(tmp_path / name)
        fit(fingerprint, max_epochs=1, **settings)
        found.append(lines(fingerprint)[0]["data"])
    assert found[0] != found[1] == found[2]


def test_a_file_is_the_same_where_each_line_waits_for_an_accelerator(tmp_path, monkeypatch):
    at_once, waiting = Fingerprint(tmp_path / "a"), Fingerprint(tmp_path / "b")
    validation = DataLoader(Augmented(), 4)
    fit(at_once, validation=validation)
    seen = []

    class Counts(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(len(lines(waiting)))
            if len(seen) == 3:
                waiting.state_dict()  # what a checkpoint refers to is in the file
                seen.append(len(lines(waiting)))

    monkeypatch.setattr("repro_callbacks.fingerprint.recorder.on_accelerator", lambda module: True)
    fit(waiting, validation=validation, behind=[Counts()])
    assert seen[:6] == [0, 1, 2, 3, 3, 4]
    assert [line["chain"] for line in lines(waiting)] == [line["chain"] for line in lines(at_once)]
    assert [line["metrics"] for line in lines(waiting, "validation")] == [
        line["metrics"] for line in lines(at_once, "validation")
    ]


# -- ways to train -----------------------------------------------------------------------------------------------------


def repeats(tmp_path, make=build, **settings):
    """Train twice, and return the lines of the first."""
    pair = [Fingerprint(tmp_path / name, every={"optimizer": 1}) for name in "ab"]
    for fingerprint in pair:
        fit(fingerprint, make(settings["namespace"].LightningModule) if "namespace" in settings else make(), **settings)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.equal, str(found)
    return lines(pair[0])


def test_both_namespaces(tmp_path):
    one = repeats(tmp_path / "one", namespace=L)
    two = repeats(tmp_path / "two", namespace=pytorch_lightning)
    assert [line["chain"] for line in one] == [line["chain"] for line in two]


def test_gradient_accumulation(tmp_path):
    found = repeats(tmp_path, accumulate_grad_batches=2)
    assert [line["step"] for line in found] == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]
    assert all("gradients" in line for line in found)
    assert found[0]["parameters"] != found[1]["parameters"] == found[2]["parameters"]


def test_mixed_precision(tmp_path):
    repeats(tmp_path, precision="bf16-mixed")


def test_lbfgs_calls_the_step_several_times(tmp_path):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)

    found = repeats(tmp_path, lambda: build(configure_optimizers=configure_optimizers))
    assert len(found) == 2 * BATCHES


def test_manual_optimization_with_two_optimizers(tmp_path):
    def training_step(self, batch, batch_idx):
        self.automatic_optimization = False
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), 0.01), torch.optim.Adam(self.net[2].parameters(), 0.01)

    def make():
        module = build(training_step=training_step, configure_optimizers=configure_optimizers)
        module.automatic_optimization = False
        return module

    found = repeats(tmp_path, make)
    assert all({"loss", "gradients", "parameters"} <= line.keys() for line in found)
    assert len({line["loss"] for line in found}) == len(found)


def test_several_loaders(tmp_path):
    def training_step(self, batch, batch_idx):
        return self.loss(batch["a"]) + self.loss(batch["b"])

    def loaders():
        return CombinedLoader(
            {"a": DataLoader(Augmented(), 4, shuffle=True), "b": DataLoader(Augmented(), 2)}, "min_size"
        )

    pair = [Fingerprint(tmp_path / name) for name in "ab"]
    for fingerprint in pair:
        fit(fingerprint, build(training_step=training_step), loader=loaders())
    assert compare(tmp_path / "a", tmp_path / "b").equal
    assert len(lines(pair[0])[0]["indices"]) == 6


def test_a_step_that_takes_the_iterator(tmp_path):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)

    found = repeats(tmp_path, lambda: build(training_step=training_step))
    assert "data" not in found[0]
    assert "loss" in found[0]


def test_a_skipped_step(tmp_path):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else self.loss(batch)

    found = repeats(tmp_path, lambda: build(training_step=training_step))
    assert "loss" not in found[1]
    assert "loss" in found[2]


def test_two_fits_in_one_process(tmp_path):
    fingerprint = Fingerprint(tmp_path / "a")
    trainer, module = fit(fingerprint, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, DataLoader(Augmented(), 4))
    assert [(line["epoch"], line["batch"]) for line in Run(fingerprint.file).iterate()] == [
        divmod(number, BATCHES) for number in range(2 * BATCHES)
    ]


# -- where it writes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_beside_the_logs(tmp_path, logger):
    made = logger(tmp_path, name="x")
    fingerprint = Fingerprint()
    fit(fingerprint, logger=made)
    assert fingerprint.file == Path(made.log_dir) / "fingerprint.rank0.jsonl"
    assert fingerprint.file.exists()


def test_without_a_logger_each_run_has_a_file_of_its_own(tmp_path):
    files = []
    for _ in range(2):
        fingerprint = Fingerprint()
        fit(fingerprint, default_root_dir=tmp_path)
        files.append(fingerprint.file)
    assert [file.name for file in files] == ["fingerprint.rank0.jsonl", "fingerprint-2.rank0.jsonl"]
    assert compare(*files).equal


def test_a_file_or_a_folder(tmp_path):
    for given, expected in (
        (tmp_path / "runs" / "a.jsonl", tmp_path / "runs" / "a.rank0.jsonl"),
        (tmp_path / "b", tmp_path / "b" / "fingerprint.rank0.jsonl"),
        (str(tmp_path / "c"), tmp_path / "c" / "fingerprint.rank0.jsonl"),
    ):
        fingerprint = Fingerprint(given)
        assert fingerprint.file is None
        fit(fingerprint, max_epochs=1)
        assert fingerprint.file == expected
        assert expected.exists()


def test_a_new_run_in_the_same_file_supersedes_the_old(tmp_path):
    one, two = Fingerprint(tmp_path / "a"), Fingerprint(tmp_path / "b")
    fit(one, seed=1)
    fit(one, seed=2)
    fit(two, seed=2)
    assert compare(tmp_path / "a", tmp_path / "b").equal
    assert len(lines(one)) == 4 * BATCHES


# -- resume ------------------------------------------------------------------------------------------------------------


class Save(L.Callback):
    """Saves at a step; with ``stop``, ends the training behind the step after it, as a kill would."""

    def __init__(self, path, epoch, batch, stop=False):
        self.path, self.at, self.stop = path, (epoch, batch), stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        here = trainer.current_epoch, batch_idx
        if here == self.at:
            trainer.save_checkpoint(self.path)
        elif self.stop and here > self.at:
            raise KeyboardInterrupt


def keyed_fit(fingerprint, *, front=(), behind=(), workers=0, ckpt_path=None):
    fit(
        fingerprint,
        callbacks=[Determinism(3, deterministic=False, log=False), *front],
        behind=behind,
        loader=DataLoader(Augmented(), 4, shuffle=True, num_workers=workers),
        validation=DataLoader(Augmented(), 4),
        ckpt=ckpt_path,
        max_epochs=3,
    )


@pytest.mark.filterwarnings("ignore:the model's weights were made before")
@pytest.mark.parametrize("at", [(0, 1), (1, 4), (2, 0)], ids=str)
@pytest.mark.parametrize("same_path", [True, False])
def test_a_resumed_run_continues(tmp_path, at, same_path):
    straight, checkpoint = Fingerprint(tmp_path / "straight"), tmp_path / "checkpoint"
    keyed_fit(straight)
    stopped = Fingerprint(tmp_path / "stopped")
    with pytest.raises(SystemExit):
        keyed_fit(stopped, behind=[Save(checkpoint, *at, stop=True)])
    resumed = Fingerprint(tmp_path / ("stopped" if same_path else "resumed"))
    keyed_fit(resumed, ckpt_path=checkpoint)
    found = compare(tmp_path / "straight", resumed.file)
    assert found.equal, str(found)
    assert found.steps == 3 * BATCHES
    assert "B was resumed at" in str(found)
    assert "with the same bits" in str(found)  # the step behind the checkpoint was trained twice
    run = Run(resumed.file)
    assert run.last()["chain"] == Run(straight.file).last()["chain"]
    assert len(run.all_segments) == 2
    assert len({line["number"] for line in run.iterate()}) == 3 * BATCHES


@pytest.mark.filterwarnings("ignore:the model's weights were made before")
def test_a_resume_without_the_old_file_is_compared_from_there_on(tmp_path):
    straight, checkpoint = Fingerprint(tmp_path / "straight"), tmp_path / "checkpoint"
    keyed_fit(straight, behind=[Save(checkpoint, 1, 2)])
    moved = tmp_path / "moved"
    straight.file.parent.rename(moved)
    resumed = Fingerprint(tmp_path / "resumed")
    keyed_fit(resumed, ckpt_path=checkpoint)
    found = compare(moved, resumed.file)
    assert found.equal, str(found)
    assert Run(resumed.file).first()["number"] == BATCHES + 3


@pytest.mark.filterwarnings("ignore:the model's weights were made before")
def test_a_callback_that_saves_before_it(tmp_path):
    """The checkpoint then holds the place of the step before."""
    straight, checkpoint = Fingerprint(tmp_path / "straight"), tmp_path / "checkpoint"
    keyed_fit(straight, front=[Save(checkpoint, 1, 2)])
    resumed = Fingerprint(tmp_path / "straight")
    keyed_fit(resumed, ckpt_path=checkpoint)
    other = Fingerprint(tmp_path / "other")
    keyed_fit(other)
    assert compare(tmp_path / "straight", tmp_path / "other").equal


@pytest.mark.filterwarnings("ignore:the model's weights were made before")
def test_a_file_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    keyed_fit(Fingerprint(tmp_path / "one"), behind=[Save(checkpoint, 1, 2)])
    other = Fingerprint(tmp_path / "other")
    fit(other)
    size = other.file.stat().st_size
    with pytest.raises(FileExistsError, match="holds another run"):
        keyed_fit(Fingerprint(tmp_path / "other"), ckpt_path=checkpoint)
    assert other.file.stat().st_size == size


def test_its_state_is_plain(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    fit(Fingerprint(tmp_path / "a"), callbacks=[], max_epochs=1)
    trainer, _ = fit(Fingerprint(tmp_path / "b"), max_epochs=1)
    trainer.save_checkpoint(checkpoint)
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["Fingerprint"]
    assert state["position"] == [0, BATCHES - 1]
    assert Path(state["path"]) == tmp_path / "b" / "fingerprint.rank0.jsonl"


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.callbacks.test_fingerprint import Fingerprint, L, fit

class Kill(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)

fit(Fingerprint({path!r}), behind=[Kill()])
"""


@pytest.mark.slow
def test_whole_up_to_the_last_step_after_a_kill(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED.format(root=str(root), path=str(tmp_path / "a"))], check=False)
    assert done.returncode == -9
    run = Run(tmp_path / "a" / "fingerprint.rank0.jsonl")
    assert (run.last()["epoch"], run.last()["batch"]) == (1, 2)
    fit(Fingerprint(tmp_path / "b"))
    found = compare(tmp_path / "b", tmp_path / "a")
    assert found.divergence.cause == "length"
    assert (found.divergence.epoch, found.divergence.batch) == (1, 3)


# -- no false alarm ----------------------------------------------------------------------------------------------------


class Draws(L.Callback):
    """Draws from every generator, at every place that it can."""

    def _draw(self, *args):
        torch.rand(3), random.random(), np.random.rand()

    on_fit_start = on_train_start = on_train_epoch_start = on_train_batch_start = on_before_zero_grad = _draw
    on_before_backward = on_after_backward = on_before_optimizer_step = on_train_batch_end = on_train_epoch_end = _draw
    on_validation_start = on_validation_batch_start = on_validation_end = on_save_checkpoint = _draw


CIRCUMSTANCES = {
    "again": {},
    "2 workers": {"workers": 2},
    "drawing callbacks": {"front": [Draws()], "behind": [Draws()]},
}


@pytest.mark.filterwarnings("ignore:the model's weights were made before")
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_what_changes_no_bits_is_no_alarm(tmp_path, name):
    keyed_fit(Fingerprint(tmp_path / "a"))
    keyed_fit(Fingerprint(tmp_path / "b"), **CIRCUMSTANCES[name])
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.equal, str(found)
