"""Whether PYTHONHASHSEED is in force, asked of real interpreters that were started with it, without it, or too late."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from repro_callbacks import hashseed


def _python(code: str, *options: str, **variables: str) -> str:
    """Run ``code`` in a fresh interpreter, with PYTHONHASHSEED only if it is given; return what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"} | variables
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, env=env, text=True, check=True, capture_output=True).stdout


SEEDS = ("0", "1", "3407", "4294967295")
ASK = f"from repro_callbacks.hashseed import in_force; print([in_force(value) for value in {SEEDS}])"


@pytest.mark.parametrize("value", SEEDS)
def test_a_value_is_in_force_if_the_interpreter_was_started_with_it(value):
    assert _python(ASK, PYTHONHASHSEED=value).strip() == str([value == other for other in SEEDS])


def test_no_value_is_in_force_if_the_interpreter_was_started_without_one():
    assert _python(ASK).strip() == str([False] * 4)
    assert _python(ASK, PYTHONHASHSEED="random").strip() == str([False] * 4)


def test_a_value_that_the_interpreter_was_told_to_ignore_is_not_in_force():
    code = f"exec(open({hashseed.__file__!r}).read()); print(in_force('1'))"
    assert _python(code, PYTHONHASHSEED="1").strip() == "True"
    assert _python(code, "-E", PYTHONHASHSEED="1").strip() == "False"


def test_a_value_set_inside_is_in_force_in_child_processes_and_not_here():
    code = """
import os, subprocess, sys
from repro_callbacks.hashseed import describe
print([*describe(os.environ).values()], flush=True)
if sys.orig_argv[-1] != "child":
    os.environ["PYTHONHASHSEED"] = "0"
    print([*describe(os.environ).values()], flush=True)
    subprocess.run([*sys.orig_argv, "child"], check=True)
"""
    assert _python(code).splitlines() == ["[None, False, True]", "['0', False, True]", "['0', True, False]"]


@pytest.mark.parametrize("value", ["-1", "4294967296", "abc", "1.0", " 1"])
def test_a_hash_seed_that_python_refuses_is_refused_by_name(value):
    with pytest.raises(ValueError, match="PYTHONHASHSEED must be 'random' or an integer from 0 to 4294967295"):
        hashseed.parse(value)
    assert hashseed.describe({"PYTHONHASHSEED": value})["PYTHONHASHSEED_in_force"] is False
