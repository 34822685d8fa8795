"""What a resumed engine would lose, and what can't be brought back is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.handlers import CheckpointSaver

from repro_callbacks.handlers import repairs
from tests.handlers.training import StopAt, resumes, run


@pytest.mark.slow
def test_without_the_repair_the_end_of_an_epoch_is_lost(tmp_path: Path, monkeypatch: Any) -> None:
    reference = run(save=tmp_path)
    assert resumes(reference, run(load=reference.files[5]))
    monkeypatch.setattr(repairs, "lost_epoch_end", lambda engine, state: False)
    assert not resumes(reference, run(load=reference.files[5]))
    assert resumes(reference, run(load=reference.files[4]))


def test_a_validation_that_was_lost_is_made_up_for(tmp_path: Path) -> None:
    reference = run(save=tmp_path, validation=1)
    resumed = run(load=reference.files[5], validation=1)
    assert resumed.validated == reference.validated


@pytest.mark.slow
def test_the_end_of_an_epoch_with_a_metric_is_lost_and_that_is_said(tmp_path: Path) -> None:
    def metric() -> Any:
        return {"key_train_metric": {"loss": Average(output_transform=lambda output: output["loss"].detach())}}

    reference = run(save=tmp_path, **metric())
    with pytest.warns(UserWarning, match=r"made at iteration 6, the last of epoch 1, .* because Average of it is lost"):
        run(load=reference.files[5], **metric())
    assert resumes(reference, run(load=reference.files[6], **metric()))


@pytest.mark.slow
def test_without_the_repair_accumulated_gradients_are_lost(tmp_path: Path, monkeypatch: Any) -> None:
    kwargs: dict[str, Any] = {"accumulation_steps": 4}
    reference = run(save=tmp_path, **kwargs)
    for number in (1, 3, 4, 5):
        assert resumes(reference, run(load=reference.files[number], **kwargs))
    states = [torch.load(file, weights_only=True)["determinism"] for file in reference.files[:6]]
    assert ["gradients" in state for state in states] == [True, True, True, False, True, False]
    monkeypatch.setattr(repairs, "restore", lambda engine, state: None)
    assert not resumes(reference, run(load=reference.files[1], **kwargs))


class Scaled:
    """Gives a trainer a gradient scaler that works on the CPU: MONAI makes one for CUDA only."""

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=2)


def scaled_step(engine: Any, batch: Any) -> None:
    loss = (engine.network(batch["image"]) - batch["label"]).square().mean()
    engine.optimizer.zero_grad()
    engine.scaler.scale(loss).backward()
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()


@pytest.mark.slow
def test_without_the_repair_a_gradient_scaler_begins_anew(tmp_path: Path, monkeypatch: Any) -> None:
    kwargs: dict[str, Any] = {"handlers": [Scaled()], "process": scaled_step}
    reference = run(save=tmp_path, **kwargs)
    assert reference.trainer.scaler.get_scale() == 2.0 ** (1 + 18 // 2)
    assert run(load=reference.files[6], **kwargs).trainer.scaler.state_dict() == reference.trainer.scaler.state_dict()
    monkeypatch.setattr(repairs, "restore", lambda engine, state: None)
    assert run(load=reference.files[6], **kwargs).trainer.scaler.get_scale() == 2.0 ** (1 + 11 // 2)


def test_a_checkpoint_in_the_middle_of_an_iteration_is_warned_of(tmp_path: Path) -> None:
    def saver(trainer_save: dict[str, Any]) -> Any:
        return CheckpointSaver(str(tmp_path), trainer_save, save_final=True, final_filename="final.pt")

    stopped = run(handlers=[StopAt(4)], final=saver)
    assert len(stopped.seen) == 3
    with pytest.warns(UserWarning, match="in the middle of iteration 4, as after an exception"):
        run(load=tmp_path / "final.pt")
