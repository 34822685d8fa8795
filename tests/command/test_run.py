"""``repro-callbacks run``: what is in force in the processes below it, and that the command is left as it is."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro_callbacks.callbacks.settings import Settings
from repro_callbacks.command import launch
from tests.command.processes import COMMAND, SCRIPTS, call, ends, environment, write

DRAWS = """
import json, os, random, sys
first = random.random()
import numpy as np
import torch
print(json.dumps({
    "python": first, "numpy": np.random.rand(), "torch": torch.rand(1).item(), "hash": hash("a"),
    "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "argv": sys.argv[1:], "path": sys.path, "main": __name__,
    "loader": type(torch.__loader__).__name__, "spec": __spec__ is None,
}))
"""


def observed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def expected(seed: int) -> dict[str, float]:
    return {
        "python": random.Random(seed).random(),
        "numpy": np.random.RandomState(seed).rand(),
        "torch": torch.rand(1, generator=torch.Generator().manual_seed(seed)).item(),
    }


@pytest.mark.slow
def test_the_script_is_seeded_before_its_first_line(tmp_path: Path) -> None:
    script = write(tmp_path, "draws.py", DRAWS)
    found = observed(call("run", "--seed", "3407", "--", "python", "draws.py", cwd=tmp_path))
    assert {name: found[name] for name in expected(3407)} == expected(3407)
    # control: without `run` nothing is seeded
    plain = observed(
        subprocess.run([sys.executable, script], env=environment(), capture_output=True, text=True, check=False)
    )
    assert all(plain[name] != value for name, value in expected(3407).items())


@pytest.mark.slow
def test_hashes_and_cublas_are_in_force(tmp_path: Path) -> None:
    write(tmp_path, "draws.py", DRAWS)
    first, second = (observed(call("run", "--seed", seed, "--", "draws.py", cwd=tmp_path)) for seed in ("1", "2"))
    assert first["hash"] == second["hash"]
    assert first["cublas"] == ":4096:8"
    # control: another PYTHONHASHSEED, which is kept where it is a number
    env = environment(PYTHONHASHSEED="5", CUBLAS_WORKSPACE_CONFIG=":16:8")
    third = observed(call("run", "--seed", "1", "--", "draws.py", cwd=tmp_path, env=env))
    assert third["hash"] != first["hash"]
    assert third["cublas"] == ":16:8"


@pytest.mark.slow
def test_the_script_sees_what_it_sees_without_run(tmp_path: Path) -> None:
    script = write(tmp_path, "draws.py", DRAWS)
    found = observed(call("run", "--seed", "1", "--", "python", "draws.py", "--lr", "--", "-x", cwd=tmp_path))
    plain = observed(
        subprocess.run(
            [sys.executable, script, "--lr", "--", "-x"], env=environment(), capture_output=True, text=True, check=False
        )
    )
    for name in ("argv", "path", "main", "loader", "spec"):
        assert found[name] == plain[name]


@pytest.mark.slow
def test_a_module_and_its_spec(tmp_path: Path) -> None:
    write(tmp_path, "draws.py", DRAWS)
    found = observed(call("run", "--seed", "3407", "--", "python", "-m", "draws", cwd=tmp_path))
    assert found["torch"] == expected(3407)["torch"]
    assert (found["main"], found["spec"]) == ("__main__", False)


@pytest.mark.slow
def test_the_initial_weights_can_have_a_seed_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "draws.py", DRAWS)
    found = observed(call("run", "--seed", "1", "--seeds", "init=2", "--", "draws.py", cwd=tmp_path))
    assert found["torch"] == expected(2)["torch"]


@pytest.mark.slow
def test_spawned_processes_draw_what_their_parent_draws_when_it_is_imported(tmp_path: Path) -> None:
    write(
        tmp_path,
        "spawns.py",
        "import multiprocessing, torch\n"
        "NOISE = torch.rand(1).item()\n"
        "def noise(_):\n    return NOISE\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(f'[{NOISE}, {pool.map(noise, [0])[0]}]')\n",
    )
    done = call("run", "--seed", "3407", "--", "python", "spawns.py", cwd=tmp_path)
    parent, child = json.loads(done.stdout)
    assert parent == child == expected(3407)["torch"]
    # control
    plain = subprocess.run(
        [sys.executable, "spawns.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    parent, child = json.loads(plain.stdout)
    assert parent != child


SEEDS_ITSELF = """
import torch
from lightning import seed_everything
from monai.utils import get_seed, set_determinism
before = seed_everything(42, verbose=False), torch.initial_seed()
set_determinism(43)
print([*before, get_seed(), seed_everything(verbose=False)])
"""


@pytest.mark.slow
def test_the_seed_asked_for_wins_over_those_of_the_script(tmp_path: Path) -> None:
    write(tmp_path, "seeds.py", SEEDS_ITSELF)
    asked = call("run", "--seed", "7", "--", "python", "seeds.py", cwd=tmp_path)
    assert json.loads(asked.stdout.splitlines()[-1]) == [7, 7, 7, 7]
    assert "seed_everything(42) of the script gets 7 in its place, as --seed asks" in asked.stderr
    assert "set_determinism(43) of the script gets 7 in its place, as --seed asks" in asked.stderr
    # control: nothing was asked for, and the script's own seeds are in force
    own = call("run", "--", "python", "seeds.py", cwd=tmp_path)
    assert json.loads(own.stdout.splitlines()[-1]) == [42, 42, 43, 42]


@pytest.mark.slow
def test_without_a_seed_one_is_drawn_and_told(tmp_path: Path) -> None:
    write(tmp_path, "draws.py", DRAWS)
    done = call("run", "--", "python", "draws.py", cwd=tmp_path)
    told = "repro-callbacks: the script's own seed is in force; where it sets none, it is "
    seed = int(next(line for line in done.stderr.splitlines() if line.startswith(told)).removeprefix(told))
    assert observed(done)["torch"] == expected(seed)["torch"]


def test_a_sitecustomize_of_the_environment_runs_as_well(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    write(tmp_path / "site", "sitecustomize.py", "import sys\nsys.own = __file__\n")
    write(tmp_path, "own.py", "import sys, sitecustomize, random\nprint([sys.own, sitecustomize.__file__])")
    env = environment(PYTHONPATH=str(tmp_path / "site"))
    done = call("run", "--seed", "1", "--", "python", "own.py", cwd=tmp_path, env=env)
    assert done.stdout.count(str(tmp_path / "site" / "sitecustomize.py")) == 2


def test_exit_codes_are_the_commands(tmp_path: Path) -> None:
    assert call("run", "--seed", "1", "--", "python", "-c", "raise SystemExit(3)", cwd=tmp_path).returncode == 3
    killed = call("run", "--seed", "1", "--", "bash", "-c", "kill -9 $$", cwd=tmp_path)
    assert killed.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "no-such-program"], "there is no program 'no-such-program' on PATH"),
        (["--"], "no command was given; write it behind two dashes"),
        (["--seed", "-1", "--", "x"], "seed must be an integer from 0 to 4294967295, not '-1'"),
        (["--seeds", "colour=1", "--", "x"], "seeds has no purpose 'colour'"),
        (["--seeds", "order", "--", "x"], "seeds must be written as order=1,augment=2 with integers, not 'order'"),
        (["--deterministic", "maybe", "--", "x"], "deterministic must be one of true, warn, false, not 'maybe'"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    done = call("run", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_bad_hash_seed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PYTHONHASHSEED must be 'random' or an integer"):
        launch.environment(Settings(start_seed=0), {"PYTHONHASHSEED": "many"})


def test_settings_of_an_outer_run_are_dropped_and_others_kept() -> None:
    outer = Settings(start_seed=1, seed=1, num_workers=3).to_environment() | {"REPRO_CALLBACKS_RUN_DIR": "kept"}
    made = launch.environment(Settings(start_seed=2), outer)
    assert Settings.from_environment(made) == Settings(start_seed=2)
    assert made["REPRO_CALLBACKS_RUN_DIR"] == "kept"


def test_it_says_so_when_no_trainer_ran(tmp_path: Path) -> None:
    done = call("run", "--seed", "1", "--", "python", "-c", "1", cwd=tmp_path)
    assert done.returncode == 0
    assert "no Lightning Trainer ran under our control" in done.stderr


def test_a_signal_to_stop_reaches_the_command(tmp_path: Path) -> None:
    write(
        tmp_path,
        "waits.py",
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n",
    )
    process = subprocess.Popen(
        [*COMMAND, "run", "--seed", "1", "--", "python", "waits.py"], cwd=tmp_path, env=environment()
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_the_command_dies_with_a_run_that_is_killed(tmp_path: Path) -> None:
    write(
        tmp_path,
        "waits.py",
        "import os, pathlib, time\npathlib.Path('pid.tmp').write_text(str(os.getpid()))\n"
        "os.rename('pid.tmp', 'pid')\ntime.sleep(60)\n",
    )
    process = subprocess.Popen(
        [*COMMAND, "run", "--seed", "1", "--", "python", "waits.py"], cwd=tmp_path, env=environment()
    )
    while not (tmp_path / "pid").exists():
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait(30)
    assert ends(child)


def _result(folder: Path, *words: str, seed: str | None = "3407") -> dict[str, Any]:
    seeds = [] if seed is None else ["--seed", seed]
    done = call("run", *seeds, "--result", "result.json", "--fingerprint", "run.jsonl", "--", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.slow
def test_metrics_and_weights_are_the_result_and_repeat(tmp_path: Path) -> None:
    words = ["python", str(SCRIPTS / "autoencoder.py"), "--epochs", "1"]
    first = _result(tmp_path, *words)
    assert set(first["metrics"]) == {"train_loss", "val_loss", "test_loss"}
    assert (tmp_path / "run.rank0.jsonl").exists()
    # the variable stands in for the option, for those who start `run` themselves
    env = environment(REPRO_CALLBACKS_RESULT=str(tmp_path / "other.json"))
    assert call("run", "--seed", "3407", "--", *words, cwd=tmp_path, env=env).returncode == 0
    assert json.loads((tmp_path / "other.json").read_text()) == first
    # control: another seed, also against the script's own
    assert _result(tmp_path, *words, "--seed", "3407", seed="1")["weights"] != first["weights"]


@pytest.mark.slow
def test_lightning_cli(tmp_path: Path) -> None:
    words = ["fit", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--seed_everything", "5"]
    found = _result(tmp_path, "python", str(SCRIPTS / "classifier_cli.py"), *words)
    assert set(found["metrics"]) == {"val_acc"}
    written = next(tmp_path.glob("lightning_logs/version_0/config.yaml")).read_text()
    assert "seed_everything: 3407" in written


@pytest.mark.slow
def test_hydra(tmp_path: Path) -> None:
    found = _result(tmp_path, "python", str(SCRIPTS / "hydra_app.py"), "hydra.job.chdir=true", "+steps=2")
    assert found["weights"] is not None


@pytest.mark.slow
def test_a_path_that_was_replaced_is_named(tmp_path: Path) -> None:
    write(
        tmp_path,
        "tiny.py",
        "import lightning as L\nL.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)\n",
    )
    done = call("run", "--seed", "1", "--", "bash", "-c", "PYTHONPATH=src python tiny.py", cwd=tmp_path)
    assert "this Python was not seeded when it started, since PYTHONPATH was replaced" in done.stderr
    # control
    done = call("run", "--seed", "1", "--", "bash", "-c", "PYTHONPATH=src:$PYTHONPATH python tiny.py", cwd=tmp_path)
    assert "was not seeded" not in done.stderr


def test_the_folder_on_the_path_holds_one_module_only() -> None:
    assert [name for name in os.listdir(launch.STARTUP) if name != "__pycache__"] == ["sitecustomize.py"]
