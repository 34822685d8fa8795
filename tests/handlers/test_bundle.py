"""A MONAI bundle with the handler in its config."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from repro_callbacks import DeterminismHandler, RunRecord, set_determinism
from repro_callbacks.fingerprint.digest import digest_tree

CONFIG = Path(__file__).parent / "bundle" / "train.json"


@pytest.fixture(autouse=True)
def _scope() -> Any:
    with set_determinism(0):
        yield


def train(folder: Path, **override: Any) -> str:
    """Run the bundle in this process, and return the digest of its final weights."""
    folder.mkdir()
    workflow = ConfigWorkflow(
        str(CONFIG), meta_file=None, logging_file=False, output_dir=f"$Path({str(folder)!r})", **override
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return final(folder)


def final(folder: Path) -> str:
    return digest_tree(torch.load(folder / "final.pth", weights_only=True))


def test_the_config_makes_a_handler() -> None:
    parser = ConfigParser.load_config_file(str(CONFIG))
    config = ConfigParser(parser)
    handler = config.get_parsed_content("determinism")
    assert isinstance(handler, DeterminismHandler)
    assert handler.seeds == {"order": 1, "augment": 3407, "init": 3407, "step": 3407}


def test_a_bundle_repeats_and_resumes(tmp_path: Path) -> None:
    reference = train(tmp_path / "a")
    assert train(tmp_path / "b", workers=2) == reference
    assert train(tmp_path / "c", seed=1) != reference
    record = RunRecord.load(tmp_path / "a" / "run_record.json")
    assert (record.seed, record.seeds["order"]) == (3407, 1)
    assert record.initial_weights is not None
    for iteration in (2, 4):
        load = str(tmp_path / "a" / f"checkpoint_iteration={iteration}.pt")
        assert train(tmp_path / f"resumed{iteration}", load_path=load, workers=1) == reference


def test_without_the_handler_a_bundle_does_neither(tmp_path: Path) -> None:
    bare: dict[str, Any] = {
        "train#handlers": [],
        "saved": {"network": "@network"},
        "validate#evaluator#val_handlers": [],
    }
    reference = train(tmp_path / "a", **bare)
    assert train(tmp_path / "b", **bare) == reference
    assert train(tmp_path / "c", **bare, workers=2) != reference


@pytest.mark.slow
def test_a_bundle_in_a_process_of_its_own(tmp_path: Path) -> None:
    reference = train(tmp_path / "here")
    there = tmp_path / "there"
    there.mkdir()
    script = (
        "import monai.bundle\n"
        f"folder = \"$Path('{there}')\"\n"
        f"monai.bundle.run('run', 'initialize', config_file={str(CONFIG)!r}, output_dir=folder, workers=1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CONFIG.parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert final(there) == reference
