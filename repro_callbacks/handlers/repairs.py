"""What a resumed engine of MONAI or Ignite loses that is not randomness, and how it gets it back.

- A checkpoint of the last iteration of an epoch: Ignite goes on with the next epoch, and the end of that one, with its
  schedule and validation, never comes.
- A checkpoint between two optimizer steps (``accumulation_steps``): it holds no gradients.
- ``amp=True``: ``Trainer.run`` makes a new gradient scaler.
- A checkpoint in the middle of an iteration, as after an exception: the iteration counts as done.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from repro_callbacks.handlers import engine as engines
from repro_callbacks.handlers.attachment import Attachment
from repro_callbacks.handlers.engine import Events


def state_dict(attachment: Attachment) -> dict[str, Any]:
    """Return what the repairs need, as values that ``torch.load(weights_only=True)`` reads."""
    engine = attachment.engine
    state: dict[str, Any] = {"within": attachment.within, "epoch_ended": attachment.epoch_ended}
    if engines.accumulates(engine) and not attachment.within:
        state["gradients"] = {
            name: {key: weight.grad.clone() for key, weight in network.named_parameters() if weight.grad is not None}
            for name, network in engines.networks(engine).items()
        }
    scaler = getattr(engine, "scaler", None)
    if scaler is not None and scaler.is_enabled():
        state["scaler"] = scaler.state_dict()
    return state


def restore(engine: Any, state: Mapping[str, Any]) -> None:
    """Give an engine back its gradients and its gradient scaler."""
    networks = engines.networks(engine)
    for name, gradients in state.get("gradients", {}).items():
        for key, weight in networks[name].named_parameters() if name in networks else ():
            if key in gradients:
                weight.grad = gradients[key].to(weight)
    scaler = getattr(engine, "scaler", None)
    if "scaler" in state and scaler is not None and scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])


def lost_epoch_end(engine: Any, state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was made after the last iteration of an epoch, and before the epoch's end."""
    iteration, length = engine.state.iteration, engine.state.epoch_length
    return bool(length) and iteration % length == 0 and not state["epoch_ended"]


def make_up_for_epoch_end(engine: Any) -> None:
    """Announce the end of the epoch that a checkpoint cut off, unless its metrics can't be computed any more."""
    metrics = engines.epoch_metrics(engine)
    if not metrics:
        with warnings.catch_warnings():
            # a schedule steps, and its optimizer has not stepped yet in this process
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            engine.fire_event(Events.EPOCH_COMPLETED)
        return
    warnings.warn(
        f"the checkpoint was made at iteration {engine.state.iteration}, the last of epoch {engine.state.epoch}, and "
        f"before that epoch's end, which can't be made up for because {' and '.join(metrics)} of it is lost: what is "
        "done at the end of that epoch (a learning rate schedule, validation) is left out. Save at the end of epochs, "
        "or at iterations that are not the last of one.",
        stacklevel=2,
    )


def warn_of_cut_iteration(engine: Any, state: Mapping[str, Any]) -> None:
    """Say that a checkpoint was made in the middle of an iteration."""
    if state["within"]:
        warnings.warn(
            f"the checkpoint was made in the middle of iteration {engine.state.iteration}, as after an exception, and "
            "Ignite counts that iteration as done: the run does not go on with the bits of one that was never "
            "stopped. Resume from a checkpoint that was made at ITERATION_COMPLETED or EPOCH_COMPLETED.",
            stacklevel=2,
        )
