"""The determinism switches: validated first, reported as torch has them, put back exactly."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from repro_callbacks import flags


@pytest.fixture(autouse=True)
def _switches_are_left_as_they_were():
    states = flags.snapshot()
    before = flags.read()
    yield
    flags.restore(states)
    assert flags.read() == before


def _python(code: str, **variables: str) -> str:
    """Run ``code`` in a fresh interpreter with these environment variables and no others of ours; return its output."""
    env = {name: value for name, value in os.environ.items() if name not in flags.VARIABLES} | variables
    return subprocess.run([sys.executable, "-c", code], env=env, text=True, check=True, capture_output=True).stdout


# ---- mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "warn_only"), [(True, False), ("warn", True)])
def test_a_mode_that_is_on_sets_every_switch_of_determinism(mode, warn_only):
    env: dict[str, str] = {}
    names = flags.set_deterministic(mode, env=env)
    report = flags.read(env)
    assert report["deterministic_algorithms"] is True
    assert report["deterministic_algorithms_warn_only"] is warn_only
    assert report["cudnn_deterministic"] is True
    assert report["cudnn_benchmark"] is False
    assert env == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert {"deterministic_algorithms", "cudnn_deterministic", "CUBLAS_WORKSPACE_CONFIG"} <= names


def test_true_makes_an_operator_without_a_deterministic_form_raise_and_false_does_not():
    pool = torch.nn.MaxUnpool2d(2)
    arguments = torch.ones(1, 1, 2, 2), torch.tensor([[[[0, 2], [8, 10]]]])
    pool(*arguments)
    flags.set_deterministic(True, env={})
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        pool(*arguments)
    flags.set_deterministic("warn", env={})
    with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        pool(*arguments)


@pytest.mark.parametrize("already", [True, False])
def test_false_touches_nothing_whether_it_was_on_or_off(already):
    if already:
        flags.set_deterministic(True, env={})
    env: dict[str, str] = {}
    before = flags.read(env)
    assert flags.set_deterministic(False, env=env) == frozenset()
    assert flags.read(env) == before
    assert env == {}


def test_false_still_sets_what_is_asked_for_by_name():
    env: dict[str, str] = {}
    threads = torch.get_num_threads() + 1
    names = flags.set_deterministic(
        False, cublas_workspace_config=":16:8", num_threads=threads, fill_uninitialized_memory=False, env=env
    )
    assert env == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert torch.get_num_threads() == threads
    assert flags.read(env)["fill_uninitialized_memory"] is False
    assert names == {"CUBLAS_WORKSPACE_CONFIG", "num_threads", "fill_uninitialized_memory"}


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_set_and_restore_work_when_torch_has_frozen_its_flags(frozen):
    code = f"""
import torch
from repro_callbacks import flags
if {frozen}:
    torch.backends.disable_global_flags()
states, before = flags.snapshot(), flags.read()
flags.set_deterministic(True, allow_tf32=False)
assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.allow_tf32
flags.restore(states)
assert flags.read() == before
assert torch.backends.flags_frozen() is {frozen}
"""
    _python(code)


# ---- restore ---------------------------------------------------------------------------------------------------

CHANGES = {
    "everything by us": lambda: flags.set_deterministic(
        True, allow_tf32=True, num_threads=3, fill_uninitialized_memory=False, env={}
    ),
    "medium": lambda: flags.set_deterministic(False, matmul_precision="medium"),
    "tf32 off": lambda: flags.set_deterministic(False, allow_tf32=False),
    "warn_only while off": lambda: torch.use_deterministic_algorithms(False, warn_only=True),
    "the old settings of TF32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "the new settings of TF32": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "the parent of all": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
    "the parent of cuda": lambda: setattr(torch.backends.cudnn, "fp32_precision", "tf32"),
    "one operator": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "mkldnn": lambda: torch.backends.mkldnn.set_flags(True, True, None, "bf16"),
    "benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "inductor": lambda: setattr(importlib.import_module("torch._inductor.config"), "deterministic", True),
}


# After these, torch does not tell its precision any more; that these can't be undone then has a test of its own.
MIXING = ("the new settings of TF32", "the parent of cuda", "mkldnn")
PRECISION_OF_PRODUCTS = ("everything by us", "medium", "tf32 off", "the old settings of TF32")
PAIRS = [
    (first, second)
    for first in CHANGES
    for second in CHANGES
    if not (first in MIXING and second in PRECISION_OF_PRODUCTS)
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_restore_puts_every_switch_back_from_any_state_to_any_other(first, second):
    CHANGES[first]()
    states, before = flags.snapshot(), flags.read()
    CHANGES[second]()
    flags.restore(states)
    assert flags.read() == before


def test_without_restore_the_report_differs():
    before = flags.read()
    CHANGES["everything by us"]()
    assert flags.read() != before


def test_a_setting_that_follows_its_parent_still_follows_it_after_restore():
    states = flags.snapshot()
    flags.set_deterministic(False, allow_tf32=True)
    flags.restore(states)
    assert torch.backends.mkldnn.conv.fp32_precision == "none"
    torch.backends.mkldnn.set_flags(None, None, None, "bf16")
    assert torch.backends.mkldnn.conv.fp32_precision == "bf16"


def test_restore_puts_back_only_the_names_that_it_is_given():
    states = flags.snapshot()
    flags.set_deterministic(False, num_threads=torch.get_num_threads() + 2, fill_uninitialized_memory=False)
    flags.restore(states, {"num_threads"})
    assert torch.get_num_threads() == states.switches["num_threads"]
    assert flags.read()["fill_uninitialized_memory"] is False


@pytest.mark.parametrize("environment", [{}, {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "PYTHONHASHSEED": "7", "OTHER": "1"}])
def test_restore_puts_the_environment_back_and_leaves_other_variables_alone(environment):
    env = dict(environment)
    states = flags.snapshot(env)
    env |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0"}
    flags.restore(states, env=env)
    assert env == environment


def test_mixed_settings_of_tf32_are_reported_not_raised():
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.allow_tf32 = False
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    assert flags.read()["matmul_precision"] == flags.MIXED


def test_a_precision_that_could_not_be_put_back_is_refused():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = flags.read()
    with pytest.raises(RuntimeError, match="fp32_precision back to 'none' first"):
        flags.set_deterministic(False, matmul_precision="high", fill_uninitialized_memory=False)
    assert flags.read() == before
    torch.backends.cuda.matmul.fp32_precision = "none"
    flags.set_deterministic(False, matmul_precision="high")


# ---- TF32, precision, threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", flags.MATMUL_PRECISIONS)
@pytest.mark.parametrize("allow", [True, False])
def test_allow_tf32_holds_for_products_and_convolutions_and_torch_can_still_tell(before, allow):
    torch.set_float32_matmul_precision(before)
    flags.set_deterministic(False, allow_tf32=allow)
    report = flags.read()
    assert (report["cuda_matmul_allow_tf32"], report["cudnn_allow_tf32"]) == (allow, allow)
    assert report["matmul_precision"] == ("high" if allow else "highest")


@pytest.mark.parametrize("precision", flags.MATMUL_PRECISIONS)
def test_matmul_precision_is_torchs(precision):
    flags.set_deterministic(False, matmul_precision=precision)
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize(("allow", "precision"), [(False, "high"), (False, "medium"), (True, "highest")])
def test_contradicting_precisions_are_refused(allow, precision):
    with pytest.raises(ValueError, match=f"allow_tf32={allow} and matmul_precision='{precision}' contradict"):
        flags.set_deterministic(False, allow_tf32=allow, matmul_precision=precision)


REFUSED = {
    "mode 1": ({"mode": 1}, ValueError, "mode must be True, 'warn' or False, not 1"),
    "mode None": ({"mode": None}, ValueError, "mode must be True, 'warn' or False, not None"),
    "precision": ({"matmul_precision": "low"}, ValueError, "one of highest, high, medium, not 'low'"),
    "no thread": ({"num_threads": 0}, ValueError, "num_threads must be an integer of 1 or more, not 0"),
    "half a thread": ({"num_threads": 1.5}, TypeError, "num_threads must be an integer of 1 or more, not 1.5"),
    "a true thread": ({"num_threads": True}, TypeError, "num_threads must be an integer of 1 or more, not True"),
    "tf32": ({"allow_tf32": "no"}, TypeError, "allow_tf32 must be True, False or None, not 'no'"),
    "fill": ({"fill_uninitialized_memory": 1}, TypeError, "fill_uninitialized_memory must be True, False or None"),
    "workspace": ({"cublas_workspace_config": ":0:0"}, ValueError, "must be ':4096:8' or ':16:8', not ':0:0'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_before_anything_is_set(case):
    arguments, error, message = REFUSED[case]
    env: dict[str, str] = {}
    before = flags.read(env)
    with pytest.raises(error, match=message):
        flags.set_deterministic(**({"mode": True, "env": env, "fill_uninitialized_memory": False} | arguments))
    assert flags.read(env) == before
    assert env == {}


# ---- CUBLAS_WORKSPACE_CONFIG -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", flags.CUBLAS_ACCEPTED)
def test_an_accepted_value_in_the_environment_is_kept_even_when_cuda_has_started(value):
    env = {"CUBLAS_WORKSPACE_CONFIG": value}
    assert flags.check_cublas(None, env, cuda_started=True) is None
    assert flags.check_cublas(value, env, cuda_started=True) is None


@pytest.mark.parametrize(("wanted", "present"), [(None, None), (":4096:8", None), (":16:8", ":4096:8")])
def test_setting_it_after_cuda_has_started_is_refused(wanted, present):
    env = {} if present is None else {"CUBLAS_WORKSPACE_CONFIG": present}
    assert flags.check_cublas(wanted, env, cuda_started=False) == (wanted or ":4096:8")
    with pytest.raises(RuntimeError, match="CUDA has already started"):
        flags.check_cublas(wanted, env, cuda_started=True)


@pytest.mark.parametrize("present", [":0:0", "", ":4096:2"])
def test_a_value_in_the_environment_that_is_not_repeatable_is_refused_unless_another_is_asked_for(present):
    env = {"CUBLAS_WORKSPACE_CONFIG": present}
    with pytest.raises(ValueError, match=f"CUBLAS_WORKSPACE_CONFIG='{present}'"):
        flags.set_deterministic(True, env=env)
    assert env == {"CUBLAS_WORKSPACE_CONFIG": present}
    flags.set_deterministic(True, cublas_workspace_config=":16:8", env=env)
    assert env == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_too_late_is_refused_on_a_real_device():
    _python(
        """
import pytest, torch
from repro_callbacks import flags
torch.zeros(1, device="cuda")
with pytest.raises(RuntimeError, match="CUDA has already started"):
    flags.set_deterministic(True)
assert not torch.are_deterministic_algorithms_enabled()
"""
    )


# ---- the report -----------------------------------------------------------------------------------------------


def test_the_report_can_be_written_as_json():
    assert json.loads(json.dumps(flags.read())) == flags.read()
