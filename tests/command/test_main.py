"""The command line: which sub-commands there are, and that each is imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys

import pytest

import repro_callbacks
from repro_callbacks.command.main import COMMANDS, main

LOADED = """
import contextlib, io, json, sys
from repro_callbacks.command.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(json.dumps([name for name in sys.modules if name.startswith("repro_callbacks.command.")]
                 + [name for name in ("torch", "lightning", "monai") if name in sys.modules]))
"""


def loaded(*words: str) -> set[str]:
    """Return the modules of the command line, and the frameworks, that a call has imported."""
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True)
    return {name.removeprefix("repro_callbacks.command.") for name in json.loads(done.stdout)}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_has_arguments_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(COMMANDS[name][0])
    module.add_arguments(argparse.ArgumentParser())
    assert callable(module.run)
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert f"usage: repro-callbacks {name}" in capsys.readouterr().out


def test_help_names_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert all(name in told and summary.split()[0] in told for name, (_, summary) in COMMANDS.items())
    assert loaded("--help") == {"main"}


def test_a_command_imports_no_other_and_no_framework_before_it_works() -> None:
    found = loaded("run", "--help")
    assert "run" in found
    assert not found & {"verify", "study", "demo", "compare", "torch", "lightning", "monai"}
    # control: another command imports what this one does not
    assert "verify" in loaded("verify", "--help")


@pytest.mark.parametrize("words", [[], ["no-such-command"], ["run", "--no-such-option"]])
def test_what_is_not_there_is_an_error_of_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: repro-callbacks" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"repro-callbacks {repro_callbacks.__version__}\n"


def test_it_is_a_module_too() -> None:
    words = [sys.executable, "-m", "repro_callbacks", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"repro-callbacks {repro_callbacks.__version__}\n"
