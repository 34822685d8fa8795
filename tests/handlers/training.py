"""One small training with MONAI's engines that draws from every kind of generator, and what its run is compared by."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import DataLoader as MonaiLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointLoader, CheckpointSaver, LrScheduleHandler, ValidationHandler
from monai.transforms import Compose, OneOf, RandFlipd, RandGaussianNoised, RandScaleIntensityd, RandZoomd
from torch import nn
from torch.utils.data import DataLoader, Dataset

from repro_callbacks import DeterminismHandler, set_determinism
from repro_callbacks.fingerprint.digest import digest_state, digest_tree

SEED = 3407
SAMPLES, BATCH, LENGTH = 22, 4, 6


def transforms() -> Compose:
    return Compose(
        [
            RandFlipd("image", prob=0.5, spatial_axis=0),
            OneOf([RandGaussianNoised("image", prob=1.0), RandScaleIntensityd("image", factors=0.5, prob=1.0)]),
            RandZoomd("image", prob=0.3, min_zoom=0.8, max_zoom=1.2),
        ]
    )


def images(size: int) -> torch.Tensor:
    return torch.linspace(0, 1, size * 64).reshape(size, 1, 8, 8)


class Images(Dataset[Any]):
    """Small images, transformed by MONAI's transforms, the process-wide generators and one of its own."""

    def __init__(self, size: int = SAMPLES) -> None:
        self.images = images(size)
        self.rng = np.random.default_rng()
        self.transform = transforms()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.as_tensor(self.transform({"image": self.images[index].clone()})["image"])
        drawn = [self.rng.random(), random.random(), np.random.rand(), torch.rand(1).item()]
        return {"image": image.as_subclass(torch.Tensor), "label": torch.tensor(drawn).mean()[None], "index": index}


def make_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))


def draw(*_: Any) -> None:
    random.random(), np.random.rand(), torch.rand(1)


class Draws:
    """A handler that draws from every process-wide generator at every event."""

    def attach(self, engine: Any) -> None:
        for event in engine._allowed_events:
            if event is not Events.EXCEPTION_RAISED:
                engine.add_event_handler(event, draw)


@dataclass
class Outcome:
    """What two runs are compared by: the batches in the order seen, the weights and optimizer states, validation."""

    seen: list[tuple[int, str]] = field(default_factory=list)
    validated: list[str] = field(default_factory=list)
    state: str = ""
    trainer: Any = None
    handler: Any = None
    files: list[Path] = field(default_factory=list)


class Stop(Exception):
    """Ends a training in the middle."""


class StopAt:
    """Raises in the middle of a training."""

    def __init__(self, iteration: int, event: Any = Events.ITERATION_STARTED) -> None:
        self.iteration, self.event = iteration, event

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(self.event, self)

    def __call__(self, engine: Any) -> None:
        if engine.state.iteration == self.iteration:
            raise Stop


def run(**kwargs: Any) -> Outcome:
    """Run the training and return what came out; see :func:`_run`."""
    with set_determinism(SEED):
        return _run(**kwargs)


def _run(
    *,
    determinism: Any = True,
    dataset: Callable[[], Any] = Images,
    loader: Any = DataLoader,
    loader_kwargs: dict[str, Any] | None = None,
    validation: int = 0,
    validation_by_epoch: bool = True,
    validation_determinism: bool = True,
    scheduled: bool = True,
    handlers: Sequence[Any] = (),
    last: Sequence[Any] = (),
    make_handlers: Callable[[Any], Sequence[Any]] | None = None,
    save: Path | None = None,
    save_every: int = 1,
    save_by_epoch: bool = False,
    load: Path | None = None,
    final: Callable[[dict[str, Any]], Any] | None = None,
    max_epochs: int = 3,
    process: Callable[..., Any] | None = None,
    **trainer_kwargs: Any,
) -> Outcome:
    outcome = Outcome()
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    handler = DeterminismHandler(SEED) if determinism is True else determinism
    own = [handler] if handler is not None else []
    data = dataset()
    train = loader(data, **{"batch_size": BATCH, "shuffle": True, **(loader_kwargs or {})})

    def see(engine: Any) -> None:
        outcome.seen.append((engine.state.epoch, digest_tree(engine.state.batch)))

    class See:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED, see)

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=MonaiLoader(Images(8), batch_size=4, num_workers=0),
        network=net,
        mode="train",  # so that it draws
        val_handlers=own if validation_determinism else [],
        decollate=False,
    )
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: outcome.validated.append(digest_tree(engine.state.batch))
    )
    saved: dict[str, Any] = {"net": net, "optimizer": optimizer, "scheduler": scheduler}
    if handler is not None:
        saved["determinism"] = handler
    attached = [
        *handlers,
        *([LrScheduleHandler(scheduler, print_lr=False)] if scheduled else []),
        *([ValidationHandler(validation, evaluator, epoch_level=validation_by_epoch)] if validation else []),
        *own,
        See(),
        *last,
    ]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=train,
        network=net,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[*attached, *(make_handlers(data) if make_handlers else [])],
        decollate=False,
        **{"iteration_update": process, **trainer_kwargs},
    )
    saved = {"trainer": trainer, **saved}
    if load is not None:
        CheckpointLoader(str(load), saved).attach(trainer)
    if save is not None:
        CheckpointSaver(str(save), saved, save_interval=save_every, epoch_level=save_by_epoch, n_saved=None).attach(
            trainer
        )
    if final is not None:
        final(saved).attach(trainer)
    outcome.trainer, outcome.handler = trainer, handler
    with contextlib.suppress(Stop):
        trainer.run()
    state = [optimizer.state_dict()["state"], [group["lr"] for group in optimizer.param_groups]]
    outcome.state = digest_tree([digest_state(net), state])
    outcome.files = sorted(save.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns) if save is not None else []
    return outcome


def same(a: Outcome, b: Outcome) -> bool:
    return a.seen == b.seen and a.state == b.state


def resumes(reference: Outcome, resumed: Outcome) -> bool:
    """Whether the resumed run has seen the tail of what the reference saw, and ends in the same state."""
    tail = reference.seen[len(reference.seen) - len(resumed.seen) :]
    return resumed.seen == tail and resumed.state == reference.state
