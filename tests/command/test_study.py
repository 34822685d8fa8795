"""The command line of a study, on unmodified scripts; and that a fork runs a script as ``repro-callbacks run`` does."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks.command import forked, study
from repro_callbacks.command.main import main

SCRIPT = """
import argparse
import random
import sys

import lightning as L
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--fail", action="store_true")
arguments = parser.parse_args()
drawn = random.random(), np.random.rand(), torch.rand(()).item()  # before it seeds itself
L.seed_everything(42)  # a study over seeds would train the same weights again and again
x = torch.linspace(-1, 1, 256).reshape(64, 4)
data = TensorDataset(x, (x.sum(1) > 0).long())


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 2)
        )

    def training_step(self, batch, index):
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))
        for name, value in zip(("drawn_python", "drawn_numpy", "drawn_torch"), drawn):
            self.log(name, torch.tensor(value, dtype=torch.float64))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), arguments.lr)


if __name__ == "__main__":
    if arguments.fail:
        raise RuntimeError("no data")
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(Net(), DataLoader(data, 8, shuffle=True), DataLoader(data, 64))
    print("main is", sys.modules["__main__"].__file__, "in", sys.path[0], "with", sys.argv)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return path


def cli(*arguments: str) -> int:
    return main(["study", "--metric", "val_loss", "--out", "out", "--workers", "2", *arguments])


def rows(out: str = "out") -> list[dict[str, str]]:
    with Path(out, "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_script_gives_the_bits_of_run(script: Path, capsys: Any) -> None:
    """Forks that have done the imports, against interpreters that ``repro-callbacks run`` starts."""
    code = cli("--seeds", "0:3", "--check", "1", "--", "python", "train.py", "--lr", "0.1")
    printed, said = capsys.readouterr()
    assert code == 0, said
    assert "Between seeds, Loss varies by" in printed
    assert "out/report.html" in said
    found = rows()
    assert [row["check"] for row in found] == ["same", "", ""]
    assert len({row["weights"] for row in found}) == 3, "the script's own seed_everything(42) doesn't win"
    assert not Path("lightning_logs").exists(), "runs side by side would race for its versions"
    for row in found:
        command = [sys.executable, "-m", "repro_callbacks", "run", "--seed", row["seed"], "--result", "alone.json"]
        subprocess.run([*command, "--", "python", "train.py", "--lr", "0.1"], check=True, capture_output=True)
        alone = json.loads(Path("alone.json").read_text())
        assert alone["weights"] == row["weights"]
        assert alone["metrics"] == {name: float(row[name]) for name in alone["metrics"]}
    log = Path("out/runs/seed-1/log.txt").read_text()
    assert f"main is {script} in {script.parent} with ['train.py', '--lr', '0.1']" in log
    assert list(Path("out/runs").glob("seed-1/lightning_logs/version_0"))


@pytest.mark.slow
def test_purposes_and_variants(script: Path) -> None:
    """The order alone: other weights in the end, from the same initial ones; and two learning rates."""
    arguments = ["--seeds", "0:2", "--check", "1", "--vary", "order,init", "--fixed", "9", "--no-report"]
    assert cli(*arguments, "--variant", "A=--lr 0.1", "--variant", "B=--lr 0.01", "--", "python", "train.py") == 0
    found = rows()
    assert [(row["seed"], row["variant"], row["vary"]) for row in found] == [
        (seed, variant, vary) for seed in "01" for variant in "AB" for vary in ("order", "init")
    ]
    assert [row["check"] for row in found] == ["same", "", "same", "", "", "", "", ""]
    assert len({row["weights"] for row in found}) == 8
    starts = [row["drawn_torch"] for row in found if row["vary"] == "order"]
    assert len(set(starts)) == 1, "what is drawn before the fit has the seed of the initial weights"


@pytest.mark.slow
def test_failures_are_reported(script: Path, capsys: Any) -> None:
    assert cli("--seeds", "0:2", "--no-report", "--", "python", "train.py", "--fail") == 1
    assert "seed-1 gave no score: RuntimeError: no data" in capsys.readouterr().err
    assert [(row["status"], row["attempts"]) for row in rows()] == [("failed", "2")] * 2
    assert cli("--seeds", "0:2", "--no-report", "--", "python", "train.py") == 2
    assert "holds a study with targets" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_that_is_no_plain_script(script: Path, capsys: Any) -> None:
    command = ["sh", "-c", "python train.py --lr 0.1"]
    assert cli("--seeds", "1", "--no-report", "--check", "0", "--", *command) == 0
    assert main(["study", "--metric", "val_loss", "--out", "plain", "--seeds", "1", "--no-report", "--check", "0",
                 "--", "python", "train.py", "--lr", "0.1"]) == 0  # fmt: skip
    assert rows()[0]["weights"] == rows("plain")[0]["weights"]


@pytest.mark.slow
def test_a_function(script: Path, capsys: Any) -> None:
    Path("experiment.py").write_text("def fit(seed):\n    return {'val_loss': seed / 4}\n")
    assert cli("--seeds", "0:3", "--", "experiment:fit") == 0
    assert [row["val_loss"] for row in rows()] == ["0.0", "0.25", "0.5"]
    page = Path("out/report.html").read_bytes()
    capsys.readouterr()
    Path("out/report.html").unlink()
    assert main(["study", "report", "out"]) == 0
    assert Path("out/report.html").read_bytes() == page
    assert "Between seeds" in capsys.readouterr().out


@pytest.mark.slow
def test_bits_that_differ_are_said_loudly(script: Path, capsys: Any) -> None:
    Path("experiment.py").write_text("import os\ndef fit(seed):\n    return {'val_loss': float(os.getpid())}\n")
    assert cli("--seeds", "0:2", "--check", "1", "--no-report", "--", "experiment:fit") == 1
    said = capsys.readouterr().err
    assert "seed-0 was run twice and gave DIFFERENT results" in said
    assert "WARNING: seed-0: run twice, with different results" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "python", "train.py"], "--seeds is missing"),
        (["--seeds", "0:3"], "no command was given"),
        (
            ["--seeds", "0:3", "--variant", "A", "--", "python", "train.py"],
            "a variant must be written as NAME=ARGUMENTS",
        ),
        (["--seeds", "0:3", "--vary", "colour", "--", "python", "train.py"], "vary must be 'all', 'each', or purposes"),
        (["--seeds", "0:3", "--", "no_such_module:fit"], "No module named 'no_such_module'"),
        (["--seeds", "0:3", "--", "json:fit"], "json has no function 'fit'"),
        (["report", "nowhere"], "there is no study in"),
    ],
)
def test_what_cannot_be_run_is_refused(script: Path, capsys: Any, arguments: list[str], message: str) -> None:
    assert cli(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a", "1:2:3:4", "0:10:-1", "1;2", ""])
def test_seeds_are_read_strictly(text: str, capsys: Any) -> None:
    with pytest.raises(ValueError, match="seeds must be written as 0:100 or 0,3,7"):
        study.parse_seeds(text)
    with pytest.raises(SystemExit):
        cli("--seeds", text, "--", "python", "train.py")
    assert "seeds must be written as" in capsys.readouterr().err


def test_seeds() -> None:
    assert study.parse_seeds("0:10:4,3407") == (0, 4, 8, 3407)


def test_only_this_python_running_a_script_is_a_plain_command(script: Path) -> None:
    assert forked.plain_script(["python", "train.py", "--lr", "1"]) == Path("train.py")
    assert forked.plain_script([sys.executable, str(script)]) == script
    assert forked.plain_script(["train.py"]) == Path("train.py")
    for other in (
        ["python3.1", "train.py"],
        ["python", "-O", "train.py"],
        ["python", "-m", "train"],
        ["sh", "train.py"],
        [],
    ):
        assert forked.plain_script(other) is None
