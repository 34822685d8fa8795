"""``verify``: unmodified scripts proved equal under every circumstance, faults found, and a clean end in any case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks import verify
from repro_callbacks.command import call as call_module
from repro_callbacks.command import trials
from repro_callbacks.command.verify import CannotRun
from tests.command.processes import COMMAND, SCRIPTS, call, ends, environment, write

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


# -- what is planned ---------------------------------------------------------------------------------------------------


def test_one_circumstance_at_a_time_is_compared_with_a_plain_run() -> None:
    planned = trials.plan(3, {"num_workers": [0, "4"], "OMP_NUM_THREADS": [2]}, ["25%", 7])
    assert [one.name for one in planned] == [
        "reference",
        "repeat-1",
        "repeat-2",
        "num_workers=0",
        "num_workers=4",
        "OMP_NUM_THREADS=2",
        "resume-at-25%",
        "resume-at-7",
    ]
    assert [one.num_workers for one in planned[3:5]] == [0, 4]
    assert planned[5].environ == {"OMP_NUM_THREADS": "2"}
    assert [one.resume_at for one in planned[6:]] == [0.25, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 1}, "there is nothing to compare with one run"),
        ({"runs": 0}, "runs must be an integer, 1 or more, not 0"),
        ({"runs": True}, "runs must be an integer, 1 or more, not True"),
        ({"vary": {"num_workers": [-1]}}, "num_workers must be an integer, 0 or more, not -1"),
        ({"vary": {"batch_size": [1]}}, "vary takes num_workers or the name of an environment variable in capitals"),
        ({"vary": {"num_workers": [0, 0]}}, "num_workers=0 is asked for twice"),
        ({"resume_at": ["half"]}, "resume_at must be a share such as '50%' or a step such as 120, not 'half'"),
        ({"resume_at": ["100%"]}, "resume_at must be a share"),
        ({"resume_at": [1.5]}, "resume_at must be a share"),
        ({"resume_at": [0]}, "resume_at must be a share"),
        ({"resume_at": [True]}, "resume_at must be a share"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trials.plan(**arguments)


def test_seeds_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295, not -1"):
        verify(["python", "x.py"], seed=-1, out=tmp_path / "out")
    with pytest.raises(ValueError, match="seeds has no purpose 'dropout'"):
        verify(["python", "x.py"], seeds={"dropout": 1}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- unmodified scripts ------------------------------------------------------------------------------------------------

RESUMED = ["--runs", "1", "--resume-at", "50%"]
DDP = ["--devices", "2", "--strategy", "ddp"]
CLI = ["fit", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "circumstances"),
    [
        ("autoencoder.py", [], ["--runs", "2", "--vary", "num_workers=0,2", "--resume-at", "50%"]),
        ("autoencoder.py", ["--start-method", "spawn", "--epochs", "1"], ["--runs", "1", "--vary", "num_workers=0"]),
        ("autoencoder.py", DDP, [*RESUMED, "--vary", "num_workers=0"]),
        ("autoencoder.py", ["--devices", "2", "--strategy", "ddp_spawn", "--workers", "0"], RESUMED),
        ("classifier_cli.py", CLI, [*RESUMED, "--vary", "num_workers=1"]),
        ("gan.py", [], ["--runs", "1", "--resume-at", "9"]),
        pytest.param("gan.py", [], RESUMED),
        ("spheres.py", [], [*RESUMED, "--vary", "num_workers=0"]),
        ("hydra_app.py", ["hydra.job.chdir=true", "+steps=6"], ["--runs", "1", "--resume-at", "1,50%"]),
        ("hydra_app.py", ["+devices=2", "+strategy=ddp"], RESUMED),
    ],
)
def test_unmodified_scripts_are_equal(tmp_path: Path, script: str, words: list[str], circumstances: list[str]) -> None:
    done = call("verify", "--out", "kept", *circumstances, "--", "python", str(SCRIPTS / script), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "kept/verification.json").read_text())
    assert summary["equal"]
    assert len({trial["weights"] for trial in summary["trials"]}) == 1
    assert len({json.dumps(trial["metrics"], sort_keys=True) for trial in summary["trials"]}) == 1
    assert all(trial["killed_after"] for trial in summary["trials"] if trial["name"].startswith("resume"))
    for trial in summary["trials"]:
        folder = tmp_path / "kept" / trial["name"]
        assert (folder / "log.txt").stat().st_size > 0
        assert (folder / "fingerprint.rank0.jsonl").exists()


@pytest.mark.slow
def test_a_generator_that_nobody_can_seed_is_found(tmp_path: Path) -> None:
    done = call("verify", "--out", "kept", "--", "python", str(SCRIPTS / "entropy.py"), cwd=tmp_path)
    assert done.returncode == 1
    assert "repeat-1: Epoch 0, batch 0" in done.stdout
    assert "content of a sample differs first" in done.stdout


@pytest.mark.slow
def test_a_state_that_the_checkpoint_does_not_hold_is_found(tmp_path: Path) -> None:
    words = ["--runs", "2", "--resume-at", "3", "--out", "kept", "--", "python", str(SCRIPTS / "forgetful.py")]
    done = call("verify", *words, cwd=tmp_path)
    assert done.returncode == 1
    summary = json.loads((tmp_path / "kept/verification.json").read_text())
    found = {trial["name"]: trial["divergence"] for trial in summary["trials"]}
    assert found["repeat-1"] is None  # only the resume differs
    assert "Epoch 0, batch 3" in found["resume-at-3"]


# -- what can't be verified --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_operator_behind_a_difference_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "threads.py")]
    verification = verify(command, seed=3407, runs=1, vary={"OMP_NUM_THREADS": [1, 3]}, out=tmp_path / "out")
    assert list(verification.divergences) == ["OMP_NUM_THREADS=3"]
    told = verification.operators["OMP_NUM_THREADS=3"]
    assert "aten.sum.default (forward, " in told
    assert "threads.py:18" in told
    assert "its inputs agree and its output differs, in 1 of 1 elements, by at most" in told
    assert told in str(verification)
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["trials"][-1]["operator"] == told


@pytest.mark.slow
def test_a_difference_that_does_not_come_again_is_told_as_that(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = tmp_path / "once.py"  # of all its starts the second alone differs
    text = (SCRIPTS / "threads.py").read_text().replace("torch.rand(3_000_001).sum()", "(1 + (STARTS == 2))")
    script.write_text(f"open({str(count)!r}, 'a').write('.')\nSTARTS = len(open({str(count)!r}).read())\n{text}")
    verification = verify([sys.executable, str(script)], seed=1, runs=2, out=tmp_path / "out")
    assert "Epoch 1, batch 2 " in verification.divergences["repeat-1"]
    assert "this step came out the same in both settings" in verification.operators["repeat-1"]


def test_a_script_that_fails_is_not_verified(tmp_path: Path) -> None:
    write(tmp_path, "fails.py", "print('on the way')\nraise RuntimeError('on purpose')\n")
    done = call("verify", "--out", "kept", "--", "python", "fails.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "could not verify: reference ended with exit code 1" in done.stderr
    assert "RuntimeError: on purpose" in done.stderr


def test_a_script_without_lightning_is_not_verified(tmp_path: Path) -> None:
    write(tmp_path, "plain.py", "print('trained')\n")
    done = call("verify", "--out", "kept", "--", "python", "plain.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "no Lightning Trainer ran under our control" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "no-such-program"], "there is no program 'no-such-program' on PATH"),
        (["--vary", "num_workers", "--", "python"], "--vary takes a name and values, such as num_workers=0,2"),
        (["--runs", "1", "--", "python"], "there is nothing to compare with one run"),
        (["--out", ".", "--", "python"], "exists and is not an empty folder"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, words: list[str], message: str) -> None:
    write(tmp_path, "something.txt", "")
    done = call("verify", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="the run took longer than 1 s and was ended"):
        verify(["sleep", "60"], timeout=1, out=tmp_path / "kept")


def test_a_step_behind_the_last_is_refused() -> None:
    with pytest.raises(CannotRun, match="can't be killed after step 8: the fit has 8 steps in all"):
        trials._where({1: 8, 2: 4}, 8)
    assert trials._where({1: 4, 2: 8}, 0.5) == (2, 4)


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

WAITS = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN) if "stubborn" in sys.argv else None
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {other.pid}")
os.rename("pids.tmp", "pids")
time.sleep(120)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_all_processes_and_says_what_is_kept(tmp_path: Path, number: signal.Signals) -> None:
    write(tmp_path, "waits.py", WAITS)
    process = subprocess.Popen(
        [*COMMAND, "verify", "--out", "kept", "--", "python", "waits.py"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "pids").exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "reference: stopped" in told
    assert "stopped; all processes have ended. Kept in" in told
    assert "no run had ended" in told
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert ends(pid, 0.2)


@pytest.mark.slow
def test_a_command_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repro_callbacks.command.launch.GRACE_SECONDS", 1.0)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "waits.py", WAITS)
    with pytest.raises(CannotRun, match="took longer"):
        verify(["python", "waits.py", "stubborn"], timeout=4, out=tmp_path / "kept")
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert ends(pid, 0.2)


# -- from Python and from pytest ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_function_is_verified_in_fresh_processes(tmp_path: Path) -> None:
    steps, here = 4, os.getpid()

    def fit(callback: Any) -> None:
        import lightning as L
        from lightning.pytorch.demos.boring_classes import BoringModel

        assert os.getpid() != here
        L.Trainer(max_steps=steps, callbacks=[callback], **OPTIONS).fit(BoringModel())

    found = verify(fit, runs=1, vary={"num_workers": [1]}, resume_at=0.5, seed=3, out=tmp_path / "kept")
    assert found
    assert [trial.steps for trial in found.trials] == [{1: 4}] * 3
    assert found.trials[-1].killed == (1, 2)
    assert str(found).startswith("equal: 3 runs of 4 steps agree bit for bit: reference, num_workers=1, resume-at-0.5")


def _needs_two(one: int, two: int) -> None: ...


def test_a_function_that_needs_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="fit must take nothing, or the callback to give to the Trainer"):
        verify(_needs_two, out=tmp_path / "kept")


def test_a_function_that_cannot_be_pickled_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file, pytest.raises(TypeError, match="can't be handed to a fresh process"):
        verify(lambda: file.write("x"), out=tmp_path / "kept")


def test_a_function_of_a_module_that_cannot_be_imported_is_pickled_by_value(tmp_path: Path) -> None:
    write(tmp_path, "hidden_module.py", "VALUE = 3\ndef fit():\n    print('called', VALUE)\n")
    code = (
        "import importlib.util, sys; from pathlib import Path; from repro_callbacks.command import call\n"
        "spec = importlib.util.spec_from_file_location('hidden', 'hidden_module.py')\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['hidden'] = module\n"
        "spec.loader.exec_module(module)\n"
        "call.write(module.fit, Path('fit.pickle'))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=True)
    (tmp_path / "hidden_module.py").unlink()
    words = [sys.executable, "-m", call_module.__name__, "fit.pickle"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "called 3\n"


TESTS = """
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel

def train(entropy=False):
    if entropy:
        import os, torch
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    trainer = L.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(BoringModel())

def test_equal(assert_reproducible):
    assert assert_reproducible(train).equal

def test_different(assert_reproducible):
    assert_reproducible(lambda: train(entropy=True))
"""


@pytest.mark.slow
def test_the_fixture_passes_and_fails_a_projects_tests(tmp_path: Path) -> None:
    write(tmp_path, "test_training.py", TESTS)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_training.py"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in done.stdout
    assert "FAILED test_training.py::test_different" in done.stdout
    assert "the initial weights differ first" in done.stdout


@pytest.mark.slow
def test_the_plugin_imports_nothing_heavy() -> None:
    code = "import repro_callbacks.command.pytest_plugin, sys; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["torch", "numpy", "lightning", "monai", "rich", "repro_callbacks.command.verify"]
    words = [sys.executable, "-c", code, *heavy]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "[]\n"
    # control
    words[2] = "import torch; " + code
    assert "torch" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
