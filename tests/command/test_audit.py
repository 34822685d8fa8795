"""``repro-callbacks audit`` as it is typed: what it reads, prints and returns."""

from __future__ import annotations

import json

import pytest

from repro_callbacks.command.audit import CannotRead, load
from repro_callbacks.command.main import main

SCRIPT = """
import random
import torch
from torch import nn
from torch.utils.data import Dataset

clean = nn.Sequential(nn.Conv3d(1, 1, 1), nn.ReLU())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1)

    def forward(self, x, y=0):
        return nn.functional.avg_pool3d(self.conv(x + y), 2)

def make():
    return nn.Sequential(nn.Conv3d(1, 1, 1), nn.AvgPool3d(2))

class Entropy(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return random.SystemRandom().random()

def broken():
    raise KeyError("mine")

seven = 7
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "audited_script.py"
    path.write_text(SCRIPT)
    return path


def run(capsys, *arguments):
    code = main(["audit", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_clean_model_returns_0(script, capsys):
    assert run(capsys, f"{script}:clean") == (0, f"{script}:clean: nothing found\n", "")


def test_a_factory_is_called_and_what_is_found_is_printed_and_returns_1(script, capsys):
    code, out, _ = run(capsys, f"{script}:make")
    assert code == 1
    assert out.startswith(
        f"{script}:make: 1 found\nerror: 1 (AvgPool3d): the backward of avg_pool3d has no deterministic"
    )
    assert "instead: a strided convolution" in out


def test_another_device_gives_another_answer(script, capsys):
    assert run(capsys, f"{script}:make", "--device", "cpu")[0] == 0


def test_a_model_is_run_on_the_inputs_that_are_asked_for(script, capsys):
    assert run(capsys, f"{script}:Net")[0] == 0
    code, out, _ = run(capsys, f"{script}:Net", "--input", "1x1x4x4x4")
    assert code == 1
    assert "the model itself (Net)" in out
    assert run(capsys, f"{script}:Net", "--input", "1x1x4x4x4", "--input", "1x1x4x4x4")[0] == 1


def test_a_dataset_is_drawn_from_unless_told_not_to(script, capsys):
    code, out, _ = run(capsys, f"{script}:Entropy")
    assert code == 1
    assert "sample 0 differs when it is drawn again" in out
    assert run(capsys, f"{script}:Entropy", "--samples", "0")[0] == 0


def test_several_targets_and_json(script, capsys):
    code, out, _ = run(capsys, f"{script}:clean", f"{script}:make", "torch.nn:MaxPool3d", "--json")
    assert code == 2  # MaxPool3d can't be made without arguments
    code, out, _ = run(capsys, f"{script}:clean", f"{script}:make", "--json")
    assert code == 1
    report = json.loads(out)
    assert report[f"{script}:clean"] == []
    assert report[f"{script}:make"][0]["where"] == "1 (AvgPool3d)"
    assert {"level", "where", "what", "instead", "source"} == set(report[f"{script}:make"][0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{}", "a target is module:object or path/to/script.py:object"),
        ("{}:", "a target is module:object or path/to/script.py:object"),
        ("{}:nothing", "has no nothing"),
        ("nowhere.py:x", "there is no file nowhere.py"),
        ("no_such_module:x", "there is no module no_such_module"),
        ("torch.no_such_module:x", "there is no module torch.no_such_module"),
    ],
)
def test_a_target_that_names_nothing_returns_2_and_says_why(script, capsys, target, message):
    target = target.format(script)
    code, out, err = run(capsys, target)
    assert (code, out) == (2, "")
    assert err.startswith(f"repro-callbacks audit: {target}: ")
    assert message in err
    with pytest.raises(CannotRead, match=r".*"):
        load(target)


@pytest.mark.parametrize(
    ("name", "error"), [("broken", "KeyError: 'mine'"), ("seven", "TypeError: audit needs a module")]
)
def test_a_target_that_fails_returns_2_with_its_traceback(script, capsys, name, error):
    code, out, err = run(capsys, f"{script}:{name}")
    assert (code, out) == (2, "")
    assert error in err
    assert err.endswith("could not be run (see above)\n")


@pytest.mark.parametrize("arguments", [["--input", "1x"], ["--input", "0x2"], ["--samples", "-1"], ["--device", "tpu"]])
def test_an_argument_that_is_not_allowed_is_refused(script, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["audit", f"{script}:clean", *arguments])
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
