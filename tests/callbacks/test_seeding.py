"""Which seed a run has: the one given, else that of an earlier call, else one that is drawn and told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import monai.utils
import numpy as np
import pytest
import torch

from repro_callbacks import Determinism, determinism, set_determinism
from repro_callbacks.callbacks import seeding
from repro_callbacks.callbacks.settings import Settings
from repro_callbacks.fingerprint.digest import digest_state
from tests.callbacks import small

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (-1, ValueError, "seed must be an integer from 0 to 4294967295, not -1"),
    (2**32, ValueError, "seed must be an integer from 0 to 4294967295, not 4294967296"),
    (1.0, TypeError, "seed must be an integer from 0 to 4294967295, not 1.0 of type float"),
    (True, TypeError, "seed must be an integer from 0 to 4294967295, not True of type bool"),
    ("3", TypeError, "seed must be an integer from 0 to 4294967295, not '3' of type str"),
]


@pytest.fixture(autouse=True)
def unseeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin each test in a process in which nothing was seeded, as far as that can be told, and put all back."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", seeding._DRAWN):
        monkeypatch.delenv(name, raising=False)
    with determinism.preserved():
        set_determinism(None)
        yield


def fit(callback: Determinism, module: Any = None) -> Any:
    module = small.net(late=True) if module is None else module
    small.trainer(callback, max_epochs=1).fit(module, small.loader())
    return module


@pytest.mark.parametrize(("seed", "error", "message"), REFUSED)
def test_what_is_no_seed_is_refused_by_its_value(seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Determinism(seed)
    assert str(caught.value) == message
    with pytest.raises(error) as caught:
        Determinism(0, seeds={"order": seed})
    assert str(caught.value) == message.replace("seed must", "seeds['order'] must")


def test_an_unknown_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match="no purpose 'shuffle'; allowed are order, augment, init, step"):
        Determinism(0, seeds={"shuffle": 1})


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
def test_a_given_seed_is_the_runs(seed: Any) -> None:
    callback = Determinism(seed, log=False)
    assert callback.seed == int(seed)
    assert type(callback.seed) is int
    fit(callback)
    assert callback.record is not None
    assert callback.record.seed == int(seed)


def by_monai() -> None:
    monai.utils.set_determinism(13)


def by_ours() -> None:
    set_determinism(11)


def by_lightning() -> None:
    L.seed_everything(12, verbose=False)


SOURCES = [
    (by_ours, 11, "set_determinism"),
    (by_lightning, 12, "seed_everything"),
    (by_monai, 13, "monai.utils.set_determinism"),
]


@pytest.mark.parametrize(("source", "seed", "name"), SOURCES)
def test_no_seed_takes_that_of_an_earlier_call_and_says_so(
    source: Any, seed: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = Determinism(log=False)
    assert callback.seed is None
    source()  # also after the callback was made
    found = digest_state(fit(callback))
    assert callback.seed == seed
    assert f"Determinism: seed {seed}, from {name}\n" in capsys.readouterr().out
    assert found == digest_state(fit(Determinism(seed, log=False)))
    assert found != digest_state(fit(Determinism(seed + 1, log=False)))


@pytest.mark.parametrize(("scripts", "name"), [(12, "repro-callbacks run"), (13, "seed_everything")])
def test_below_run_its_seed_is_named_unless_the_script_has_one_of_its_own(
    scripts: int, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in Settings(start_seed=12, log=False).to_environment().items():
        monkeypatch.setenv(variable, value)
    L.seed_everything(scripts, verbose=False)
    fit(Determinism(log=False))
    assert f"Determinism: seed {scripts}, from {name}\n" in capsys.readouterr().out


def test_a_given_seed_wins_over_an_earlier_call(capsys: pytest.CaptureFixture[str]) -> None:
    set_determinism(11)
    callback = Determinism(3, log=False)
    fit(callback)
    assert callback.seed == 3
    assert "seed" not in capsys.readouterr().out


def test_no_seed_at_all_draws_one_and_says_how_to_repeat_it(capsys: pytest.CaptureFixture[str]) -> None:
    callback = Determinism(log=False)
    found = digest_state(fit(callback))
    said = re.search(r"drew seed (\d+); give Determinism\(seed=(\d+)\) to repeat", capsys.readouterr().out)
    assert said is not None
    assert said[1] == said[2] == str(callback.seed)
    assert found == digest_state(fit(Determinism(int(said[1]), log=False)))
    other = Determinism(log=False)
    assert found != digest_state(fit(other))
    assert other.seed != callback.seed


def test_a_second_run_of_the_callback_looks_again() -> None:
    callback = Determinism(log=False)
    fit(callback)
    drawn = callback.seed
    set_determinism(11)
    fit(callback)
    assert callback.seed == 11 != drawn


def test_each_purpose_has_its_seed_in_the_record() -> None:
    callback = Determinism(5, seeds={"order": 1, "step": 2}, log=False)
    fit(callback)
    assert callback.seeds == {"order": 1, "augment": 5, "init": 5, "step": 2}
    assert callback.record is not None
    assert callback.record.seeds == callback.seeds


# -- weights that nobody seeded ----------------------------------------------------------------------------------------

UNSEEDED = "the model's weights were made before anything was seeded"


@pytest.mark.parametrize(
    "source",
    [by_ours, by_lightning, by_monai, lambda: torch.manual_seed(0)],
    ids=["ours", "lightning", "monai", "torch"],
)
def test_seeded_weights_are_not_warned_of(source: Any) -> None:
    source()
    with small.messages() as said:
        fit(Determinism(0, log=False), small.net())
    assert not [message for message in said if UNSEEDED in message]


def test_unseeded_weights_are_warned_of_once_with_the_remedy() -> None:
    with small.messages() as said:
        fit(Determinism(8, log=False), small.net())
    (warning,) = [message for message in said if UNSEEDED in message]
    assert "call repro_callbacks.set_determinism(seed=8) before the model is built" in warning
    assert "configure_model" in warning


def test_weights_that_configure_model_makes_are_not_warned_of_and_follow_the_seed() -> None:
    def weights(seed: int) -> tuple[str, list[str]]:
        with small.messages() as said:
            callback = Determinism(seed, log=False)
            fit(callback)
        assert callback.record is not None
        assert callback.record.initial_weights is not None
        return callback.record.initial_weights, [message for message in said if UNSEEDED in message]

    assert weights(0) == weights(0)
    assert weights(0)[1] == []
    assert weights(0)[0] != weights(1)[0]


SCRIPT = """
import sys, warnings
from repro_callbacks import Determinism, set_determinism
from tests.callbacks import small

if sys.argv[1] == "seeded":
    set_determinism(0)
callback = Determinism(0, log=False)
module = small.net()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    small.trainer(callback, max_epochs=1).fit(module, small.loader())
print("INITIAL", callback.record.initial_weights)
print("WARNED", any("made before anything was seeded" in str(warning.message) for warning in caught))
"""


@pytest.mark.slow
def test_in_fresh_processes_the_warning_tells_the_truth() -> None:
    kinds = ["unseeded", "unseeded", "seeded", "seeded"]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, kind], stdout=subprocess.PIPE, text=True, env=env)
        for kind in kinds
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0, 0]
    initial = [re.findall(r"INITIAL (\w+)", output)[-1] for output in outputs]
    warned = [re.findall(r"WARNED (\w+)", output)[-1] for output in outputs]
    assert warned == ["True", "True", "False", "False"]
    assert initial[0] != initial[1]
    assert initial[2] == initial[3]
