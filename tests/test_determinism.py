"""set_determinism: MONAI's bits, MONAI's behaviour, and everything put back."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import lightning
import monai.utils
import numpy as np
import pytest
import torch

from repro_callbacks import determinism as home
from repro_callbacks import flags, generators, keys
from repro_callbacks.determinism import get_seed, known_seed, overridden, preserved, seeded, set_determinism

SEEDS = [0, 1, 255, 3407, 2**31, keys.MAX_SEED]


def draw() -> tuple[bytes, ...]:
    return (
        repr([random.random(), random.gauss(0, 1)]).encode(),
        np.random.standard_normal(700).tobytes(),
        torch.randn(700).numpy().tobytes() + torch.randperm(9).numpy().tobytes(),
    )


def everything() -> tuple[object, ...]:
    """All that set_determinism may change, the generators by what they give next."""
    with generators.isolate():
        drawn = draw()
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    seeds = torch.initial_seed(), get_seed(), monai.utils.get_seed()
    return drawn, seeds, flags.read(), environment, [*sys.meta_path]


@pytest.fixture(autouse=True)
def _everything_is_left_as_it_was(monkeypatch):
    """No test sees what another, or whoever started the tests, has seeded."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", *flags.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    with preserved():
        set_determinism(None)
        before = everything()[1:]
        with preserved():
            yield
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            os.environ.pop(name, None)
        assert everything()[1:] == before


def run(code: str, **variables: str) -> str:
    """Run ``code`` in a fresh interpreter, without any seed of ours in its environment; return what it printed."""
    ours = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", *flags.VARIABLES)
    env = {name: value for name, value in os.environ.items() if name not in ours} | variables
    return subprocess.run([sys.executable, "-c", code], env=env, text=True, check=True, capture_output=True).stdout


# ---- a drop-in for MONAI's -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bits_are_those_of_monai(seed):
    monai.utils.set_determinism(seed)
    expected = draw()
    set_determinism(seed)
    assert draw() == expected


def test_the_default_seed_and_the_positional_arguments_are_those_of_monai():
    ours, monais = (
        list(inspect.signature(f).parameters.values()) for f in (set_determinism, monai.utils.set_determinism)
    )
    assert [(p.name, p.default) for p in ours[:3]] == [(p.name, p.default) for p in monais]
    assert {p.kind for p in ours[3:]} == {inspect.Parameter.KEYWORD_ONLY}
    monai.utils.set_determinism()
    expected = draw()
    set_determinism()
    assert draw() == expected


def test_additional_settings_are_called_with_the_seed_after_seeding_as_by_monai():
    calls: list[tuple[int | None, int | None, float]] = []

    def setting(seed):
        calls.append((seed, monai.utils.get_seed(), random.random()))

    monai.utils.set_determinism(7, None, [setting, setting])
    monai.utils.set_determinism(7, additional_settings=setting)
    expected = calls.copy()
    calls.clear()
    set_determinism(7, None, [setting, setting])
    set_determinism(7, additional_settings=setting)
    assert calls == expected
    set_determinism(None, additional_settings=setting)
    assert calls[-1][:2] == (None, None)


@pytest.mark.parametrize("seed", SEEDS)
def test_get_seed_of_both_agrees(seed):
    set_determinism(seed)
    assert get_seed() == monai.utils.get_seed() == seed
    set_determinism(None)
    assert get_seed() is None
    assert monai.utils.get_seed() is None


@pytest.mark.parametrize("flag", [True, False, None])
def test_the_switches_are_those_of_monai(flag):
    def read():
        return {name: value for name, value in flags.read().items() if not name.isupper() and "HASHSEED" not in name}

    monai.utils.set_determinism(1, flag)
    expected = read()
    monai.utils.set_determinism(None, False)
    set_determinism(1, flag)
    assert read() == expected


def test_a_seed_that_monai_folds_is_refused():
    monai.utils.set_determinism(-1)
    assert monai.utils.get_seed() == keys.MAX_SEED
    for seed, error in [(-1, ValueError), (2**32, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)]:
        before = everything()
        with pytest.raises(error, match="seed must be an integer from 0 to 4294967295, not"):
            set_determinism(seed)
        assert everything() == before


def test_a_numpy_integer_is_a_seed():
    set_determinism(np.uint32(3407))
    assert type(get_seed()) is int
    assert get_seed() == monai.utils.get_seed() == 3407


MONAI_LATER = """
import sys
from repro_callbacks import set_determinism
{call}
assert "monai" not in sys.modules and "lightning" not in sys.modules
import inspect, monai.utils
from monai.transforms import Compose, RandRotate90
print(monai.utils.get_seed(), Compose([RandRotate90()]).R.randint(2**31))
inspect.getsource(monai.utils.set_determinism)
assert not [finder for finder in sys.meta_path if "repro_callbacks" in type(finder).__module__]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "seed"),
    [
        ("set_determinism(7)", 7),
        ("set_determinism(8)\nwith set_determinism(7): pass", 8),
        ("set_determinism(7); set_determinism(None)", None),
        ("with set_determinism(7): pass", None),
        ("", None),
    ],
)
def test_monai_imported_later_has_the_seed_and_a_compose_is_seeded_from_it(call, seed):
    answer, drawn = run(MONAI_LATER.format(call=call)).split()
    assert answer == str(seed)
    # without a seed it is an entropy-seeded class attribute, and equal once in 2³¹ runs
    monai.utils.set_determinism(seed)
    expected = monai.transforms.Compose([monai.transforms.RandRotate90()]).R.randint(2**31)
    assert (drawn == str(expected)) == (seed is not None)


@pytest.mark.slow
def test_monai_imported_inside_a_block_has_the_seed_until_the_block_is_left():
    code = """
from repro_callbacks import set_determinism, get_seed
with set_determinism(7):
    import monai.utils
    print(monai.utils.get_seed(), get_seed())
print(monai.utils.get_seed(), get_seed())
"""
    assert run(code).split() == ["7", "7", "None", "None"]


@pytest.mark.slow
def test_importing_it_imports_neither_framework_nor_the_record():
    code = "import sys, repro_callbacks.determinism; print(*sys.modules)"
    modules = run(code).split()
    assert not {"lightning", "pytorch_lightning", "monai", "repro_callbacks.record"} & set(modules)
    assert "monai" in run(code + "; import monai; print(*sys.modules)").split()


# ---- MONAI's own test ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_monais_own_test_asks():
    """The behaviours that MONAI's tests/utils/test_set_determinism.py asserts, with its own ``get_seed``."""
    code = """
import numpy as np, torch
from monai.utils import get_seed
from repro_callbacks import set_determinism
cudnn = torch.backends.cudnn
set_determinism(None)
assert not cudnn.deterministic and get_seed() is None
set_determinism()
assert get_seed() is not None and cudnn.deterministic and not cudnn.benchmark
set_determinism(None)
assert not cudnn.deterministic and not cudnn.benchmark and get_seed() is None
set_determinism(seed=255)
assert get_seed() == 255
first = np.random.randint(255), torch.randint(255, (1,))
torch.backends.disable_global_flags()
set_determinism(seed=255)
assert first == (np.random.randint(255), torch.randint(255, (1,)))
assert cudnn.deterministic and not cudnn.benchmark
set_determinism(seed=None)
set_determinism(1, use_deterministic_algorithms=True)
assert torch.are_deterministic_algorithms_enabled()
set_determinism(None, use_deterministic_algorithms=False)
assert not torch.are_deterministic_algorithms_enabled()
"""
    run(code)


@pytest.mark.slow
@pytest.mark.skipif(
    "MONAI_SOURCE" not in os.environ,
    reason="MONAI_SOURCE names no checkout of MONAI (the sdist of MONAI on PyPI has no tests)",
)
def test_monais_own_test_passes_with_ours_in_its_place():
    path = Path(os.environ["MONAI_SOURCE"]) / "tests" / "utils" / "test_set_determinism.py"
    code = f"""
import importlib.util, sys, types, unittest
import monai.utils, torch
from repro_callbacks import set_determinism
helpers = types.ModuleType("tests.test_utils")  # all that the file needs of MONAI's tests
helpers.skip_if_no_cuda = unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA device")
sys.modules["tests"], sys.modules["tests.test_utils"] = types.ModuleType("tests"), helpers
monai.utils.set_determinism = set_determinism
spec = importlib.util.spec_from_file_location("monais", {str(path)!r})
monais = importlib.util.module_from_spec(spec)
spec.loader.exec_module(monais)
assert monais.set_determinism is set_determinism
result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromModule(monais))
assert result.wasSuccessful(), result
print(result.testsRun)
"""
    assert run(code).strip() == "3"


# ---- as a block ------------------------------------------------------------------------------------------------


def everything_at_once() -> home.DeterminismScope:
    return set_determinism(
        3407,
        use_deterministic_algorithms=True,
        warn_only=True,
        cublas_workspace_config=":16:8",
        fill_uninitialized_memory=False,
        allow_tf32=True,
        matmul_precision="medium",
        num_threads=torch.get_num_threads() + 1,
    )


def test_every_setting_takes_effect_at_once():
    threads = torch.get_num_threads()
    everything_at_once()
    report = flags.read()
    expected = {
        "deterministic_algorithms": True,
        "deterministic_algorithms_warn_only": True,
        "fill_uninitialized_memory": False,
        "cudnn_deterministic": True,
        "cudnn_benchmark": False,
        "matmul_precision": "medium",
        "cudnn_allow_tf32": True,
        "num_threads": threads + 1,
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
        "PYTHONHASHSEED": "3407",
        "PYTHONHASHSEED_in_force": False,
    }
    assert {name: report[name] for name in expected} == expected


@pytest.mark.parametrize("outer", [None, 42])
def test_a_block_puts_everything_back(outer):
    set_determinism(outer)
    draw()
    before = everything()
    with everything_at_once():
        assert everything() != before
        torch.use_deterministic_algorithms(True)
        os.environ["PYTHONHASHSEED"] = "1"
        draw()
    assert everything() == before


def test_without_leaving_the_block_it_is_not_put_back():
    before = everything()
    everything_at_once().__enter__()
    assert everything() != before


def test_a_block_puts_everything_back_after_an_exception_and_lets_it_through():
    before = everything()
    with pytest.raises(KeyError, match="mine"), everything_at_once():
        {}["mine"]
    assert everything() == before


def test_blocks_nest():
    set_determinism(1)
    draw()
    outer = everything()
    with set_determinism(2, use_deterministic_algorithms=True, warn_only=True):
        draw()
        middle = everything()
        with set_determinism(3), set_determinism(None):
            assert get_seed() is None
            draw()
        assert everything() == middle
    assert everything() == outer


def test_a_block_that_was_left_is_not_entered_again():
    scope = set_determinism(1)
    with scope:
        pass
    with pytest.raises(RuntimeError, match="was left already"), scope:
        pass


def test_an_accelerator_that_starts_after_a_block_takes_the_seed_from_before_the_block():
    def waiting() -> list[int]:
        # private to torch: the seeds that CUDA takes when it starts; there is no other way to see them without a device
        calls = torch.cuda._lazy_seed_tracker.get_calls()
        return [inspect.getclosurevars(function).nonlocals["seed"] for function, _ in filter(None, calls)]

    if torch.cuda.is_initialized():
        pytest.skip("CUDA has started in this process")
    set_determinism(42)
    assert waiting() == [42]
    with set_determinism(7):
        assert waiting() == [7]
    assert waiting() == [42]
    set_determinism(None)
    with set_determinism(7):
        pass
    assert waiting() == [67280421310721]


REFUSED = {
    "the flag": ({"use_deterministic_algorithms": 1}, TypeError, "use_deterministic_algorithms must be True, False or"),
    "warn_only": (
        {"warn_only": True},
        ValueError,
        "warn_only=True has an effect only with use_deterministic_algorithms",
    ),
    "no function": ({"additional_settings": [print, 3]}, TypeError, "must be functions of the seed, not 3"),
    "the workspace": ({"cublas_workspace_config": ":0:0"}, ValueError, "must be ':4096:8' or ':16:8', not ':0:0'"),
    "a precision": ({"matmul_precision": "low"}, ValueError, "not 'low'"),
    "failing setting": ({"additional_settings": {}.__getitem__}, KeyError, "5"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("outer", [None, 42])
def test_a_call_that_fails_changes_nothing(case, outer):
    arguments, error, message = REFUSED[case]
    set_determinism(outer)
    before = everything()
    with pytest.raises(error, match=message):
        set_determinism(5, **arguments)
    assert everything() == before


# ---- turned off ------------------------------------------------------------------------------------------------


def test_none_puts_the_switches_back_to_before_the_first_call():
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ["PYTHONHASHSEED"] = "random"
    before = flags.read()
    set_determinism(1)
    everything_at_once()
    set_determinism(2, use_deterministic_algorithms=False)
    set_determinism(None)
    assert flags.read() == before


def test_none_leaves_alone_what_we_never_set():
    set_determinism(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    before = flags.read()
    set_determinism(None)
    changed = {name for name, value in flags.read().items() if value != before[name]}
    assert changed == {"cudnn_deterministic", "PYTHONHASHSEED"}


def test_none_seeds_every_generator_from_entropy():
    drawn = []
    for _ in range(3):
        set_determinism(1)
        set_determinism(None)
        drawn.append(draw())
    for one in zip(*drawn, strict=True):
        assert len(set(one)) == 3


def test_none_first_and_none_twice_change_no_switch():
    before = flags.read()
    set_determinism(None)
    set_determinism(None)
    assert flags.read() == before


def test_after_none_the_next_first_call_counts():
    set_determinism(1)
    set_determinism(None)
    torch.backends.cudnn.benchmark = True
    set_determinism(1)
    set_determinism(None)
    assert torch.backends.cudnn.benchmark is True


# ---- MONAI's exporters -----------------------------------------------------------------------------------------


def export() -> None:
    network = torch.nn.Linear(2, 2)
    monai.networks.utils.convert_to_torchscript(network, None, inputs=[torch.ones(1, 2)], verify=True)


def test_an_export_in_the_middle_of_a_run_destroys_its_seeding_and_preserved_keeps_it():
    torch.backends.cudnn.benchmark = True
    set_determinism(3407)
    draw()
    before = everything()
    with preserved():
        export()
    assert everything() == before
    assert overridden() is None
    export()
    assert everything()[0] != before[0]
    assert torch.backends.cudnn.deterministic is False
    assert get_seed() is None
    assert "monai.utils.set_determinism(None) was called after set_determinism(3407)" in str(overridden())


# ---- PYTHONHASHSEED --------------------------------------------------------------------------------------------

HASHES = """
import os, subprocess, sys
from repro_callbacks import set_determinism
set_determinism(7)
report = set_determinism(8).record.flags
print(os.environ["PYTHONHASHSEED"], report["PYTHONHASHSEED_in_force"], flush=True)
subprocess.run([sys.executable, "-c", "print(hash('a'))"], check=True)
"""


@pytest.mark.slow
def test_the_hash_seed_reaches_child_processes_and_the_record_says_that_it_is_not_in_force_here():
    value, in_force, hashed = run(HASHES).split()
    assert (value, in_force) == ("8", "False")
    assert hashed == run("print(hash('a'))", PYTHONHASHSEED="8").strip()


@pytest.mark.slow
def test_a_hash_seed_that_was_set_before_is_kept_and_one_in_force_is_told():
    value, in_force, hashed = run(HASHES, PYTHONHASHSEED="3").split()
    assert (value, in_force) == ("3", "True")
    assert hashed == run("print(hash('a'))", PYTHONHASHSEED="3").strip()


def test_the_hash_seed_can_be_left_alone():
    set_determinism(7, pythonhashseed=False)
    assert "PYTHONHASHSEED" not in os.environ


def test_a_hash_seed_with_which_no_child_would_start_is_refused():
    os.environ["PYTHONHASHSEED"] = "abc"
    with pytest.raises(
        ValueError, match="PYTHONHASHSEED must be 'random' or an integer from 0 to 4294967295, not 'abc'"
    ):
        set_determinism(7)


# ---- who has seeded --------------------------------------------------------------------------------------------


def test_the_seed_is_known_whoever_set_it_and_the_last_one_wins():
    assert (known_seed(), get_seed(), seeded()) == (None, None, None)
    set_determinism(1)
    assert (known_seed(), seeded()) == ((1, home.OURS), home.OURS)
    lightning.seed_everything(2, verbose=False)
    assert (known_seed(), get_seed()) == ((2, home.LIGHTNINGS), 2)
    monai.utils.set_determinism(3)
    assert (known_seed(), seeded()) == ((3, home.MONAIS), home.MONAIS)
    set_determinism(4)
    assert known_seed() == (4, home.OURS)


def test_a_keyed_generator_does_not_hide_a_known_seed():
    set_determinism(1)
    generators.key_all(keys.derive(1, "step", 0, 0))
    assert known_seed() == (1, home.OURS)


def test_lightnings_seed_is_known_and_seen():
    lightning.seed_everything(2, verbose=False)
    assert (known_seed(), seeded()) == ((2, home.LIGHTNINGS), home.LIGHTNINGS)


@pytest.mark.slow
def test_an_inherited_lightning_seed_is_known_but_has_seeded_nothing_yet():
    os.environ["PL_GLOBAL_SEED"] = "2"
    assert (
        run("from repro_callbacks.determinism import *; print(known_seed(), seeded())", PL_GLOBAL_SEED="2").strip()
        == "(2, 'seed_everything') None"
    )


def test_once_turned_off_an_old_lightning_seed_is_not_taken_for_a_seed():
    lightning.seed_everything(2, verbose=False)
    set_determinism(None)
    assert get_seed() is None


def test_a_lightning_seed_that_is_none_is_refused_by_name():
    os.environ["PL_GLOBAL_SEED"] = "abc"
    set_determinism(1)
    with pytest.raises(ValueError, match="PL_GLOBAL_SEED must be an integer from 0 to 4294967295, not 'abc'"):
        get_seed()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("pass", "None"),
        ("torch.rand(3)", "None"),
        ("torch.seed()", "None"),
        ("torch.manual_seed(0)", "torch.manual_seed"),
        ("torch.manual_seed(4294967295); torch.rand(3)", "torch.manual_seed"),
        ("random.seed(0)", "None"),
        ("set_determinism(0)", "set_determinism"),
        ("set_determinism(0); set_determinism(None)", "None"),
    ],
)
def test_whether_anything_was_seeded_is_seen_in_a_fresh_process(call, answer):
    code = f"import random, torch; from repro_callbacks.determinism import *; {call}; print(seeded())"
    assert run(code).strip() == answer


# ---- what it returns -------------------------------------------------------------------------------------------


def test_the_record_is_read_at_the_first_access_and_kept():
    scope = set_determinism(3407)
    assert "record" not in vars(scope)
    record = scope.record
    assert record.seed == 3407
    assert record.flags["cudnn_deterministic"] is True
    assert json.dumps(record.to_dict())
    assert scope.record is record


def test_it_shows_itself_shortly():
    assert repr(set_determinism(3407)) == "set_determinism(seed=3407)"
