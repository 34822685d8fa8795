"""A hundred runs that are equal by promise, under other circumstances: not one alarm."""

import itertools
import logging
import warnings
from dataclasses import replace

import lightning as L
import pytest
import torch

from repro_callbacks import Determinism, compare
from tests.fingerprint.training import BATCHES, EPOCHS, At, Model, Training, draw


class OneCycle(Model):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class TwoOptimizers(Model):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self):
        return torch.optim.Adam(self.stem.parameters(), 1e-2), torch.optim.SGD(self.head.parameters(), 1e-3)


def draws(hook):
    return [At(hook, draw(which)) for which in ("torch", "numpy", "python")]


HOOKS = ("on_fit_start", "on_train_batch_start", "on_after_backward", "on_train_batch_end", "on_validation_end")
LAYOUTS = {
    "1 worker": {"loader": {"num_workers": 1}},
    "2 workers": {"loader": {"num_workers": 2}},
    "2 persistent workers, 4 ahead": {"loader": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4}},
    "no validation": {"validation": None},
    "validation in the middle": {"trainer": {"val_check_interval": 3}},
    "validation with workers": {"validation_loader": {"num_workers": 2}},
    "a sanity check": {"trainer": {"num_sanity_val_steps": 2}},
    "plain repeat": {},
    **{f"draws in {hook}, before": {"before": draws(hook)} for hook in HOOKS},
    **{f"draws in {hook}, behind": {"after": draws(hook)} for hook in HOOKS},
}
# Where an optimizer has stepped, as ModelCheckpoint saves: no checkpoint holds half-accumulated gradients.
RESUMES = list(itertools.product([(0, 1), (0, 3), (1, 5), (2, 1)], [0, 2]))
KINDS = {
    "plain": Training(),
    "accumulated": Training(trainer={"accumulate_grad_batches": 2}),
    "one cycle": Training(model=OneCycle),
    "two optimizers": Training(model=TwoOptimizers),
}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, "lightning.pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def keyed(training):
    return replace(training, before=[Determinism(7, deterministic=False, log=False), *training.before])


def changed(training, changes):
    return replace(training, **{**changes, "trainer": {**training.trainer, **changes.get("trainer", {})}})


class Stop(Exception):
    pass


class SaveThenStop(L.Callback):
    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        here = trainer.current_epoch, batch_idx
        if here == self.at:
            trainer.save_checkpoint(self.path)
        if here > self.at:
            raise Stop


def test_there_are_a_hundred():
    assert len(KINDS) * (len(LAYOUTS) + len(RESUMES)) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_alarm(kind, tmp_path):
    training = KINDS[kind]
    keyed(training).run(tmp_path / "base")
    alarms = []

    def check(name, folder):
        found = compare(tmp_path / "base", folder)
        if not found.equal or found.steps != EPOCHS * BATCHES:
            alarms.append(f"{name}: {found}")

    for number, (name, changes) in enumerate(LAYOUTS.items()):
        keyed(changed(training, changes)).run(tmp_path / str(number))
        check(name, tmp_path / str(number))
    for number, (at, workers) in enumerate(RESUMES):
        folder, checkpoint = tmp_path / f"resume{number}", tmp_path / f"{number}.ckpt"
        with pytest.raises(Stop):
            keyed(changed(training, {"after": [SaveThenStop(checkpoint, at)]})).run(folder)
        keyed(changed(training, {"ckpt": checkpoint, "loader": {"num_workers": workers}})).run(folder)
        check(f"resumed at {at}, {workers} workers", folder)
    assert not alarms, "\n\n".join(alarms)


@pytest.mark.slow
def test_without_keying_there_are_alarms(tmp_path):
    """Negative control: the same circumstances under bare seed_everything are seen."""
    Training().run(tmp_path / "base")
    found = {}
    for name in ("2 workers", "draws in on_train_batch_end, before", "plain repeat"):
        folder = tmp_path / name.replace(" ", "-")
        changed(Training(), LAYOUTS[name]).run(folder)
        found[name] = compare(tmp_path / "base", folder).equal
    assert found == {"2 workers": False, "draws in on_train_batch_end, before": False, "plain repeat": True}
