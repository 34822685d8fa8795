"""Each injected fault that an operator brings about or shows: zooming into its step names the right one."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks.callbacks.zoom import RecordOperators, zoom_fit
from repro_callbacks.fingerprint import memory
from repro_callbacks.fingerprint.operators import OperatorDifference
from tests.fingerprint.faults import FAULTS

OPERATORS = {
    "transforms in another order": ("input", "aten.convolution.default (forward in stem"),
    "one bit of one sample": ("input", "aten.convolution.default (forward in stem"),
    "one label negated": ("input", "aten.sub.Tensor (forward, fingerprint/training.py:62 in loss)"),
    "torch's generator drawn from once more": ("input", "aten.bernoulli_.float (forward in dropout"),
    "a draw inside training_step": ("program", "B runs aten.rand.default"),
    "another dropout": ("input", "aten.bernoulli_.float (forward in dropout"),
    "another activation from a step on": ("program", "A runs aten.relu.default .* and B runs aten.gelu.default"),
    "a sum in another order": ("program", "A runs aten.clone.default .* and B runs aten.flip.default"),
    "another precision": ("program", "B runs aten._to_copy.default"),
    "buffers with another momentum": ("input", "aten.native_batch_norm.default (forward in norm"),
    "one bit of one gradient": ("program", "B runs aten.clone.default (backward"),
    "a gradient scaled by a hook": ("program", "B runs aten.mul.Tensor (backward"),
    "gradients clipped": ("program", "B runs aten._foreach_norm.Scalar"),
    "another learning rate from a step on": ("input", "aten.mul_.Tensor (no grad"),
    "another weight decay": ("input", "aten.mul_.Tensor (no grad"),
    "the optimizer's moments lost": ("program", "A runs aten.add_.Tensor (no grad"),
    "one bit of one parameter": ("program", "in flip_bit"),
    "another number of threads": ("operator", "aten.convolution_backward.default (backward in stem"),
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "lightning.pytorch")


def zoom(name: str, folder: Path) -> OperatorDifference | None:
    fault, paths = FAULTS[name], (folder / str(number) for number in itertools.count())
    faulty = fault.inject(fault.sound, folder)
    assert fault.position is not None

    def fit_sound(record: RecordOperators) -> Any:
        fault.sound.run(next(paths), after=[*fault.sound.after, record])

    def fit_faulty(record: RecordOperators) -> Any:
        with fault.under():
            faulty.run(next(paths), after=[*faulty.after, record])

    return zoom_fit(fit_sound, fit_faulty, epoch=fault.position[0], batch=fault.position[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_is_right(name: str, tmp_path: Path) -> None:
    found = zoom(name, tmp_path)
    assert found is not None
    kind, told = OPERATORS[name]
    assert found.kind == kind, found.sentence
    for part in told.split(" .* "):
        assert part in found.sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NumPy's generator drawn from once more", "Python's generator drawn from once more"])
def test_a_draw_that_no_operator_of_the_step_uses_names_none(name: str, tmp_path: Path) -> None:
    assert zoom(name, tmp_path) is None


@pytest.mark.slow
def test_without_care_for_unwritten_memory_the_wrong_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_POINTING", "")
    found = zoom("a gradient scaled by a hook", tmp_path)
    assert found is not None
    assert "aten.mul.Tensor" not in found.sentence
