"""Faults put into a training on purpose, and what a comparison with the sound one must say."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler

from tests.fingerprint.training import BATCH, BATCHES, At, Data, Model, Training, draw, flip_bit


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        cause: The class that a comparison must name.
        position: The epoch and batch that it must name; None where no step is meant.
        inject: Makes the faulty training of the sound one, given a folder for checkpoints.
        sound: The sound training.
        under: What the faulty training runs under.
        says: A word that the result must hold.
    """

    cause: str
    position: tuple[int, int] | None
    inject: Callable[[Training, Path], Training]
    sound: Training = field(default_factory=Training)
    under: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    says: str = ""


def changed(**changes: Any) -> Callable[[Training, Path], Training]:
    return lambda sound, folder: replace(sound, **changes)


def at(hook: str, do: Callable[..., Any], epoch: int, batch: int) -> Callable[[Training, Path], Training]:
    return changed(before=[At(hook, do, epoch, batch)])


def data(change: Callable[[Any, int, int], Any], **settings: Any) -> Callable[[], Data]:
    def make() -> Data:
        made = Data(**settings)
        made.change = change
        return made

    return make


# -- order of samples ------------------------------------------------------------------------------------


class Order(Sampler):
    """The same permutation in every run, with a change from one epoch on."""

    def __init__(self, change: Callable[[list[int], int], list[int]] | None = None, epoch: int = 0) -> None:
        self.change, self.epoch = change or (lambda order, epoch: order), epoch

    def __len__(self) -> int:
        return BATCH * BATCHES

    def __iter__(self) -> Any:
        order = np.random.default_rng(self.epoch).permutation(len(self)).tolist()
        self.epoch += 1
        return iter(self.change(order, self.epoch - 1))


def swapped(one: int, two: int) -> Callable[[list[int], int], list[int]]:
    def change(order: list[int], epoch: int) -> list[int]:
        if epoch == 1:
            order[one], order[two] = order[two], order[one]
        return order

    return change


def sampler(change: Any = None, epoch: int = 0) -> dict[str, Any]:
    return {"sampler": lambda: Order(change, epoch)}


# -- content of samples ----------------------------------------------------------------------------------


class Reordered(Data):
    def transform(self, image: np.ndarray) -> np.ndarray:
        return image * np.random.uniform(0.9, 1.1) + 0.1 * np.random.standard_normal(image.shape)


def one_sample(sample: Any, epoch: int, index: int) -> Any:
    if epoch == 1 and index == 5:
        flip_bit(sample["image"])
    return sample


def one_label(sample: Any, epoch: int, index: int) -> Any:
    if epoch == 2 and index == 11:
        sample["label"] = -sample["label"]
    return sample


class InOrder(Sampler):
    def __len__(self) -> int:
        return BATCH * BATCHES

    def __iter__(self) -> Any:
        return iter(range(len(self)))


def seed_worker(worker: int) -> None:
    np.random.seed(worker)


def seed_worker_but_one(worker: int) -> None:
    np.random.seed(worker if worker != 1 else int.from_bytes(random.SystemRandom().randbytes(4), "little"))


# -- generators ------------------------------------------------------------------------------------------


class DrawsInStep(Model):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if (self.current_epoch, batch_idx) == (1, 3):
            torch.rand(2)
        return loss


# -- forward, gradient -----------------------------------------------------------------------------------


class Summed(Model):
    """Adds the squares up by hand, in one order or another."""

    backwards = False

    def loss(self, batch: Any) -> torch.Tensor:
        error = (self(batch["image"]) - batch["label"]) ** 2
        many = (error * torch.linspace(0.1, 1.0, 1000)).flatten()
        return (many.flip(0) if self.backwards else many.clone()).sum() / len(many)


class SummedBackwards(Summed):
    backwards = True


def where(model: L.LightningModule) -> tuple[int, int]:
    return model.trainer.current_epoch, model.trainer.fit_loop.epoch_loop.batch_idx


class OtherActivation(Model):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        early = where(self) < (1, 2)
        relu = torch.relu if early else nn.functional.gelu
        return self.head(self.dropout(relu(self.norm(self.stem(image)))).flatten(1))


class Wide(Model):
    """Holds a sum that is long enough to be split over threads."""

    def loss(self, batch: Any) -> torch.Tensor:
        grown = (self(batch["image"]) * torch.linspace(0.0, 1.0, 1 << 18)).square()
        return grown.sum() / (1 << 18)


def dropout_of(p: float) -> Callable[[L.LightningModule], None]:
    def prepare(model: Any) -> None:
        model.dropout.p = p

    return prepare


def momentum(model: Any) -> None:
    model.norm.momentum = 0.11


def flip_gradient_bit(epoch: int, batch: int) -> Callable[[Any], None]:
    def prepare(model: Any) -> None:
        def hook(gradient: torch.Tensor) -> torch.Tensor:
            if where(model) == (epoch, batch):
                gradient = gradient.clone()
                flip_bit(gradient, place=3)
            return gradient

        model.stem.weight.register_hook(hook)

    return prepare


def scaled_gradient(model: Any) -> None:
    model.head.weight.register_hook(lambda gradient: gradient * 1.0000001)


# -- optimizer, parameters -------------------------------------------------------------------------------


class WeightDecay(Model):
    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        made["optimizer"].param_groups[0]["weight_decay"] = 0.02
        return made


def other_rate(trainer: Any, module: Any) -> None:
    trainer.optimizers[0].param_groups[0]["lr"] *= 1.01


def forget_moments(trainer: Any, module: Any) -> None:
    trainer.optimizers[0].state.clear()


ALL = {"optimizer": 1}


# -- initial state, environment, structure ---------------------------------------------------------------


def one_bit_of_a_weight(model: Any) -> None:
    flip_bit(model.stem.weight)


class Renamed(Model):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.stem
        del self.stem

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.first(image)))).flatten(1))


class Larger(Model):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def loss(self, batch: Any) -> torch.Tensor:
        return super().loss(batch) * self.scale


class NoisyValidation(Model):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch) + (1e-6 if self.current_epoch == 1 else 0.0))


@contextlib.contextmanager
def threads(count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def variable() -> Any:
    os.environ["MKL_CBWR"] = "AVX2"
    try:
        yield
    finally:
        del os.environ["MKL_CBWR"]


# -- resume ----------------------------------------------------------------------------------------------


class Plateau(Model):
    """Its rate falls after each epoch that is no better than the one before by a margin that none reaches."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


PLAIN = Training(data=lambda: Data(augment=False), loader=sampler(), prepare=dropout_of(0.0), every={"generators": 0})


def resumed(
    spoil: Callable[[dict[str, Any]], None] = lambda checkpoint: None, epoch: int = 1, **changes: Any
) -> Callable[[Training, Path], Training]:
    """Train up to an epoch, save a checkpoint, spoil it, and go on from it."""

    def inject(sound: Training, folder: Path) -> Training:
        first, path = replace(sound, trainer={**sound.trainer, "max_epochs": epoch}), folder / "checkpoint.ckpt"
        save = At("on_train_epoch_end", lambda trainer, module: trainer.save_checkpoint(path), epoch - 1, BATCHES - 1)
        replace(first, after=[save]).run(folder / "faulty")
        checkpoint = torch.load(path, weights_only=False)
        spoil(checkpoint)
        torch.save(checkpoint, path)
        loader = sampler(epoch=epoch) if "sampler" in sound.loader else sound.loader
        return replace(sound, ckpt=path, loader=loader, **changes)

    return inject


def older_weights(checkpoint: dict[str, Any]) -> None:
    torch.manual_seed(7)
    checkpoint["state_dict"] = Model().state_dict()


def no_moments(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["state"] = {}


def other_schedule(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] *= 2


FAULTS: dict[str, Fault] = {
    "two samples of a batch swapped": Fault(
        "order of samples",
        (1, 2),
        changed(loader=sampler(swapped(9, 10))),
        Training(loader=sampler()),
        says="asked for",
    ),
    "two samples of an epoch swapped": Fault(
        "order of samples", (1, 0), changed(loader=sampler(swapped(1, 22))), Training(loader=sampler())
    ),
    "the order of an epoch repeated": Fault(
        "order of samples",
        (1, 0),
        changed(
            loader=sampler(
                lambda order, epoch: np.random.default_rng(0 if epoch == 1 else epoch).permutation(24).tolist()
            )
        ),
        Training(loader=sampler()),
    ),
    "a loader with a generator of its own": Fault(
        "order of samples",
        (0, 0),
        changed(loader={"generator": lambda: torch.Generator().manual_seed(5)}),
        Training(loader={"generator": lambda: torch.Generator().manual_seed(4)}),
    ),
    "not shuffled": Fault("order of samples", (0, 0), changed(loader={"shuffle": False})),
    "another batch size": Fault("order of samples", (0, 0), changed(loader={"batch_size": 2})),
    "transforms in another order": Fault("content of a sample", (0, 0), changed(data=Reordered)),
    "one bit of one sample": Fault(
        "content of a sample",
        (1, 1),
        changed(data=data(one_sample)),
        Training(loader={"shuffle": False}),
        says="1 of its 4",
    ),
    "one label negated": Fault(
        "content of a sample",
        (2, 2),
        changed(data=data(one_label)),
        Training(loader={"shuffle": False}),
        says="index 11",
    ),
    "augmentation switched off": Fault("content of a sample", (0, 0), changed(data=lambda: Data(augment=False))),
    "a worker without a seed": Fault(
        "content of a sample",
        (0, 1),
        changed(loader={"shuffle": False, "num_workers": 2, "worker_init_fn": seed_worker_but_one}),
        Training(loader={"shuffle": False, "num_workers": 2, "worker_init_fn": seed_worker}),
        says="one of 2 workers",
    ),
    "torch's generator drawn from once more": Fault(
        "generator state", (0, 4), at("on_train_batch_end", draw("torch"), 0, 3), says="generator of torch:"
    ),
    "NumPy's generator drawn from once more": Fault(
        "generator state",
        (1, 2),
        at("on_train_batch_end", draw("numpy"), 1, 1),
        Training(data=lambda: Data(augment=False)),
        says="generator of numpy:",
    ),
    "Python's generator drawn from once more": Fault(
        "generator state", (2, 1), at("on_train_batch_start", draw("python"), 2, 1), says="generator of python:"
    ),
    "a draw inside training_step": Fault(
        "generator state", (1, 3), changed(model=DrawsInStep), says="training_step drew from it more often"
    ),
    "another dropout": Fault("forward", (0, 0), changed(prepare=dropout_of(0.31))),
    "another activation from a step on": Fault("forward", (1, 2), changed(model=OtherActivation)),
    "a sum in another order": Fault("forward", (0, 0), changed(model=SummedBackwards), Training(model=Summed)),
    "another precision": Fault("forward", (0, 0), changed(trainer={"precision": "bf16-mixed"})),
    "buffers with another momentum": Fault("forward", (0, 0), changed(prepare=momentum)),
    "one bit of one gradient": Fault(
        "gradient", (1, 4), changed(prepare=flip_gradient_bit(1, 4)), says="that of stem.weight"
    ),
    "a gradient scaled by a hook": Fault(
        "gradient", (0, 0), changed(prepare=scaled_gradient), says="that of head.weight"
    ),
    "gradients clipped": Fault("optimizer", (0, 0), changed(trainer={"gradient_clip_val": 0.01})),
    "another learning rate from a step on": Fault(
        "optimizer", (1, 1), at("on_train_batch_start", other_rate, 1, 1), says="learning rates"
    ),
    "another weight decay": Fault("optimizer", (0, 0), changed(model=WeightDecay)),
    "the optimizer's moments lost": Fault(
        "optimizer", (1, 3), at("on_train_batch_start", forget_moments, 1, 3), Training(every=ALL)
    ),
    "one bit of one parameter": Fault(
        "parameters",
        (1, 0),
        at("on_train_batch_end", lambda trainer, module: flip_bit(module.head.weight), 1, 0),
        Training(every=ALL),
        says="1 of 6 parameters differ: head.weight",
    ),
    "other initial weights": Fault("initial weights", (0, 0), changed(prepare=one_bit_of_a_weight)),
    "another number of threads": Fault(
        "environment",
        (0, 0),
        changed(),
        Training(model=Wide),
        lambda: threads(1),
        says="number of threads inside an operator",
    ),
    "another environment variable": Fault(
        "environment", (0, 0), changed(model=SummedBackwards), Training(model=Summed), variable, "MKL_CBWR"
    ),
    "another seed": Fault("environment", (0, 0), changed(seed=8), says="the seed is 7 in A and 8 in B"),
    "a parameter renamed": Fault("model structure", None, changed(model=Renamed), says="may only be renamed"),
    "a parameter added": Fault("model structure", None, changed(model=Larger), says="Only B has scale"),
    "fewer epochs": Fault("length", (2, 0), changed(trainer={"max_epochs": 2}), says="All 12 batches of B agree"),
    "fewer batches in an epoch": Fault(
        "length", (0, 5), changed(trainer={"limit_train_batches": 5}), Training(validation=None)
    ),
    "another validation": Fault("validation", (1, 5), changed(model=NoisyValidation), says="val_loss is"),
    "resumed without the generators' states": Fault(
        "resume", (1, 0), resumed(), Training(), says="B was resumed right there"
    ),
    "resumed from older weights": Fault("resume", (1, 0), resumed(older_weights), PLAIN, says="other parameters"),
    "resumed without the moments": Fault("resume", (1, 0), resumed(no_moments), PLAIN, says="other optimizer state"),
    "resumed with another learning rate": Fault(
        "resume", (1, 0), resumed(other_schedule), PLAIN, says="other schedule"
    ),
    "a plateau's update lost at a resume": Fault(
        "resume", (2, 0), resumed(epoch=2), replace(PLAIN, model=Plateau), says="learning rates are"
    ),
}
