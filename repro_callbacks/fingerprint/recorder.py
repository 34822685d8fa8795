"""Takes the digests of a training and writes them: the engine below the Lightning callback and the Ignite handler.

It reads and never writes what is trained, draws from no generator, and waits for an accelerator no earlier than one
step after the one that it writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from repro_callbacks.fingerprint.digest import (
    combine,
    digest_many,
    digest_tree,
    hash_bytes,
    start_digests,
    start_tree,
)
from repro_callbacks.fingerprint.runs import NotComparable, Run
from repro_callbacks.fingerprint.samples import start_batch
from repro_callbacks.fingerprint.state import (
    HostValue,
    describe,
    generator_digests,
    on_accelerator,
    optimizer_states,
    schedule,
)
from repro_callbacks.fingerprint.store import EACH_DIGITS, Position, Writer, rank_path
from repro_callbacks.record import RunRecord

DEFAULTS: Final = {
    "batch": 1,
    "generators": 1,
    "loss": 1,
    "gradients": 1,
    "parameters": 1,
    "optimizer": 50,
    "validation": 1,
}
"""How often each digest is taken: 1 is at every step, 50 at every 50th, 0 never."""

NO_GRADIENT: Final = "-" * EACH_DIGITS


def check_every(every: Mapping[str, int] | None) -> dict[str, int]:
    """Return how often each digest is taken: what is given, over :data:`DEFAULTS`.

    Raises:
        ValueError: If a name is unknown or a number is not an integer of at least 0.

    Example:
        >>> check_every({"parameters": 50})["parameters"]
        50
    """
    given = dict(every or {})
    for name, value in given.items():
        if name not in DEFAULTS:
            raise ValueError(f"every has no digest {name!r}; allowed are {', '.join(DEFAULTS)}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"every[{name!r}] must be an integer of at least 0 (0: never), not {value!r}")
    return {**DEFAULTS, **given}


class Recorder:
    """Records the training of one rank.

    Call :meth:`start`, then for each batch :meth:`begin_step`, :meth:`before_forward`, :meth:`after_forward`, once or
    more :meth:`loss` and :meth:`gradients`, and :meth:`end_step`; then :meth:`end` and :meth:`close`.

    Args:
        path: A file, of any rank; the rank's own is made of it.
        every: How often each digest is taken (see :data:`DEFAULTS`).
        rank: Of this process.
        world_size: How many processes train.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: Mapping[str, int] | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.every = check_every(every)
        self.path = rank_path(path, rank)
        self.rank, self.world_size = rank, world_size
        self._module: nn.Module | None = None
        self._names: list[str] = []
        self._head: dict[str, Any] = {}
        self._continued: dict[str, Any] | None = None
        self._writer: Writer | None = None
        self._line: dict[str, Any] | None = None
        self._waiting: dict[str, Any] | None = None
        self._last: Position | None = None
        self._chains: dict[str, str] = {}

    # -- the course of a training --------------------------------------------------------------------------------------

    def start(
        self,
        module: nn.Module,
        optimizers: Sequence[Any] = (),
        schedulers: Sequence[Any] = (),
        *,
        record: RunRecord,
        resumed: bool = False,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a training, or go on with one.

        Args:
            module: What is trained; its parameters and buffers are read.
            optimizers: Its optimizers.
            schedulers: Its schedulers of the learning rate.
            record: What must be known to repeat the run.
            resumed: Whether it goes on from a checkpoint.
            state: What :meth:`state` returned when that checkpoint was saved, if it was.
        """
        self._module = module
        parameters = dict(module.named_parameters())
        self._names = list(parameters)
        self._continued = dict(state) if state else None
        self._last = None
        self._head = {
            "rank": self.rank,
            "world_size": self.world_size,
            "resumed": {"saved": (state or {}).get("saved")} if resumed else None,
            "every": self.every,
            "state": self.state_digests(optimizers, schedulers),
            "parameters": [f"{name} {describe(tensor)}" for name, tensor in parameters.items()],
            "buffers": [f"{name} {describe(tensor)}" for name, tensor in module.named_buffers()],
            "record": record.to_dict(),
        }

    def begin_step(self, epoch: int, batch: int, number: int) -> None:
        """Begin the step of a batch.

        Args:
            epoch: From 0.
            batch: Within the epoch, from 0.
            number: Within the whole training, from 0; decides which digests are taken.
        """
        if self._writer is None:
            self._open((epoch, batch))
        self._line = {"epoch": epoch, "batch": batch, "number": number, "losses": [], "gradients": []}

    def before_forward(self, batch: Any, indices: list[Any] | None = None) -> None:
        """Take the digests of the batch and of the generators, where the forward pass begins.

        Args:
            batch: As it reaches the forward pass.
            indices: Those of its samples in the dataset, where they are known.
        """
        line = self._line
        if line is None:
            return
        if self._due("batch") and "data" not in line and not hasattr(batch, "__next__"):
            line["data"], line["indices"] = start_batch(batch), indices
        if self._due("generators") and "before" not in line:
            line["before"] = generator_digests()

    def after_forward(self) -> None:
        """Take the digests of the generators, where the forward pass has ended."""
        if self._line is not None and self._due("generators"):
            self._line["after"] = generator_digests()

    def loss(self, loss: Any) -> None:
        """Take the digest of a loss that is about to be propagated back."""
        if self._line is not None and self._due("loss"):
            value = loss.detach() if isinstance(loss, torch.Tensor) else loss
            self._line["losses"].append((start_tree(value), HostValue(value)))

    def gradients(self, optimizers: Sequence[Any] = ()) -> None:
        """Take the digests of the gradients as they are now.

        Args:
            optimizers: Those whose parameters count; without any, all do. What lies in the gradients of other
                parameters is left over, and a validation may clear it.
        """
        if self._line is not None and self._due("gradients"):
            self._line["gradients"].append(start_digests(self._gradients(optimizers)))

    def end_step(self, step: int, optimizers: Sequence[Any] = (), schedulers: Sequence[Any] = ()) -> None:
        """End the step of a batch: take the digests of what it left, and write the line.

        Args:
            step: How many times an optimizer has stepped so far.
            optimizers: The optimizers.
            schedulers: The schedulers of the learning rate.
        """
        line = self._line
        if line is None:
            return
        assert self._module is not None
        line["step"] = step
        line["rates"] = [group.get("lr") for optimizer in optimizers for group in optimizer.param_groups]
        line["schedule"] = start_tree(schedule(optimizers, schedulers))
        if self._due("optimizer"):
            line["optimizer"] = start_tree(optimizer_states(optimizers))
        if self._due("parameters"):
            line["parameters"] = start_digests(dict(self._module.named_parameters()))
            line["buffers"] = start_digests(dict(self._module.named_buffers()))
        self.flush()
        self._waiting, self._line = line, None
        if not on_accelerator(self._module):
            self.flush()

    def validation(self, epoch: int, batch: int, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of a validation that ran after a step."""
        if self._writer is None or not self.every["validation"]:
            return
        self.flush()
        values = {name: float(value) for name, value in sorted(metrics.items())}
        exact = {name: value.hex() for name, value in values.items()}
        self._writer.line("validation", {"epoch": epoch, "batch": batch, "step": step, "metrics": exact})

    def flush(self) -> None:
        """Write the step that waits for its accelerator, if one does."""
        if self._waiting is not None and self._writer is not None:
            waiting, self._waiting = self._waiting, None
            self._writer.line("step", self._finish(waiting))

    def end(self, optimizers: Sequence[Any] = (), schedulers: Sequence[Any] = ()) -> None:
        """Write that the training has ended by itself, with the digests of its final state."""
        self.flush()
        if self._writer is not None:
            self._writer.line("end", {"state": self.state_digests(optimizers, schedulers)})

    def close(self) -> None:
        """Write what waits and close the file."""
        self.flush()
        self._line = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self, optimizers: Sequence[Any] = (), schedulers: Sequence[Any] = ()) -> dict[str, Any]:
        """Return what a checkpoint must hold for a resumed run to go on with this one: strings and integers."""
        self.flush()
        if self._last is None:
            return {}
        return {
            "path": str(self.path.absolute()),
            "rank": self.rank,
            "position": list(self._last),
            "chains": dict(self._chains),
            "saved": self.state_digests(optimizers, schedulers),
        }

    def state_digests(self, optimizers: Sequence[Any] = (), schedulers: Sequence[Any] = ()) -> dict[str, str]:
        """Return digests of the whole state of the training: parameters, buffers, optimizers, schedule."""
        assert self._module is not None
        return {
            "parameters": combine(digest_many(dict(self._module.named_parameters()))),
            "buffers": combine(digest_many(dict(self._module.named_buffers()))),
            "optimizer": digest_tree(optimizer_states(optimizers)),
            "schedule": digest_tree(schedule(optimizers, schedulers)),
        }

    def _open(self, at: Position) -> None:
        """Open the file at the first step, whose position is known only now."""
        state = self._continued or {}
        own = "chains" in state and state["rank"] == self.rank and tuple(state["position"]) < at
        chains = dict(state["chains"]) if own else {"step": "", "validation": ""}
        previous, continues = None, None
        earlier = rank_path(state["path"], self.rank) if "path" in state else None
        writer = Writer(self.path)
        try:
            if writer.segment:
                run = Run(self.path)
                if own and not _holds(run, state):
                    raise FileExistsError(
                        f"{self.path} holds another run than the one whose checkpoint is resumed; "
                        "give this run a path of its own"
                    )
                previous, chains = run.all_segments[-1].begin, _chains_before(run, at)
            elif earlier is not None and earlier.exists():
                run = Run(earlier)
                if not own or _holds(run, state):
                    continues = os.path.relpath(earlier.absolute(), self.path.absolute().parent)
                    chains = _chains_before(run, at)
            writer.head({**self._head, "at": list(at), "chains": chains, "continues": continues}, previous, chains)
        except NotComparable as error:
            writer.close()
            raise FileExistsError(f"can't go on with an earlier fingerprint: {error}") from error
        except BaseException:
            writer.close()
            raise
        self._writer, self._chains = writer, writer.chains

    # -- one line ------------------------------------------------------------------------------------------------------

    def _due(self, name: str) -> bool:
        assert self._line is not None
        every = self.every[name]
        return every > 0 and self._line["number"] % every == 0

    def _gradients(self, optimizers: Sequence[Any]) -> dict[str, torch.Tensor]:
        assert self._module is not None
        groups = (group for optimizer in optimizers for group in optimizer.param_groups)
        counting = {id(parameter) for group in groups for parameter in group["params"]}
        return {
            name: parameter.grad
            for name, parameter in self._module.named_parameters()
            if parameter.grad is not None and (not counting or id(parameter) in counting)
        }

    def _finish(self, line: dict[str, Any]) -> dict[str, Any]:
        """Turn what was started into the fields of a line, in the order in which a step computes them."""
        fields: dict[str, Any] = {name: line[name] for name in ("epoch", "batch", "step", "number")}
        self._last = (line["epoch"], line["batch"])
        if "data" in line:
            data = line["data"].result()
            fields["data"] = data.whole
            if data.samples is not None:
                fields["samples"] = "".join(data.samples)
            if line["indices"] is not None:
                fields["indices"] = line["indices"]
        fields.update({name: line[name] for name in ("before", "after") if name in line})
        if line["losses"]:
            fields["loss"] = _chain_of([tree.result() for tree, _ in line["losses"]])
            fields["loss_value"] = line["losses"][-1][1].result()
        if line["gradients"]:
            passes = [pending.result() for pending in line["gradients"]]
            fields["gradients"] = _chain_of([combine(found) for found in passes])
            fields["each_gradient"] = self._each({name: value for found in passes for name, value in found.items()})
        fields["rates"] = [rate if isinstance(rate, float | int) else None for rate in line["rates"]]
        fields["schedule"] = line["schedule"].result()
        if "optimizer" in line:
            fields["optimizer"] = line["optimizer"].result()
        if "parameters" in line:
            found = line["parameters"].result()
            fields["parameters"] = combine(found)
            fields["each_parameter"] = self._each(found)
            fields["buffers"] = combine(line["buffers"].result())
        return fields

    def _each(self, found: Mapping[str, str]) -> str:
        return "".join(found[name][:EACH_DIGITS] if name in found else NO_GRADIENT for name in self._names)


def _holds(run: Run, state: Mapping[str, Any]) -> bool:
    """Say whether a file holds the run that a checkpoint was written by, up to where it was written."""
    epoch, batch = state["position"]
    line = run.find((epoch, batch))
    return line is not None and bool(line["chain"] == state["chains"]["step"])


def _chains_before(run: Run, at: Position) -> dict[str, str]:
    lines = {kind: run.before(at, kind) for kind in ("step", "validation")}
    return {kind: "" if line is None else line["chain"] for kind, line in lines.items()}


def _chain_of(found: Sequence[str]) -> str:
    return found[0] if len(found) == 1 else hash_bytes(*(value.encode() for value in found))
