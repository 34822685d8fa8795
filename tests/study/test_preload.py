"""Which imports are done ahead."""

from __future__ import annotations

import functools
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from repro_callbacks.study import targets
from repro_callbacks.study.engines import preload


def test_imports_inside_a_function_are_found_and_not_done() -> None:
    def fit(seed: int) -> Any:
        import mlflow.tracking

        def inner() -> Any:
            from wandb import sdk

            return sdk

        return mlflow.tracking, inner

    found = preload.modules(targets.FunctionTarget(functools.partial(fit, 1)))
    assert found[:2] == ["torch", "torch._dynamo"]
    assert {"mlflow.tracking", "wandb"} <= set(found)


def test_a_scripts_installed_modules_are_found_through_the_files_beside_it(tmp_path: Path) -> None:
    """Its own modules are read, and never imported: what they do belongs into each run."""
    (tmp_path / "model.py").write_text("import lightning.pytorch as pl\nimport train\nraise AssertionError\n")
    script = tmp_path / "train.py"
    script.write_text(
        "import os\nimport model\nfrom monai.data import Dataset\nimport no_such_module\nraise AssertionError"
    )
    found = preload.modules(targets.CommandTarget(("python", str(script))))
    assert found == ["torch", "torch._dynamo", "lightning.pytorch", "monai.data"]
    script.write_text("not Python")
    assert preload.modules(targets.CommandTarget(("python", str(script)))) == ["torch", "torch._dynamo"]


def test_what_a_process_imported_since(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "of_the_user.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules) - {"wsgiref.util"}
    import wsgiref.util

    import of_the_user  # type: ignore[import-not-found]

    assert of_the_user
    assert wsgiref.util
    found = preload.imported_since(before)
    assert "wsgiref.util" in found
    assert "of_the_user" not in found


def test_words_drawn() -> None:
    state = random.getstate()
    random.seed(5)
    assert preload.words_drawn(5) == 0
    random.getrandbits(24), random.random(), random.getrandbits(100)
    assert preload.words_drawn(5) == 1 + 2 + 4
    random.seed(6)
    assert preload.words_drawn(5) == 0, "no longer known"
    random.setstate(state)
