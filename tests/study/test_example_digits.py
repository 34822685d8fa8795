"""The digits example: a run is a function of its seeds, each purpose has its own, and the command does what it says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repro_callbacks.keys import PURPOSES

pytest.importorskip("sklearn")
SCRIPT = Path(__file__).parents[2] / "examples" / "seed_study" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    specification = importlib.util.spec_from_file_location("digits_example", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_seed_gives_the_same_bits_whatever_was_drawn_before(digits):
    first = digits.fit(7, epochs=1)
    torch.rand(5)
    assert digits.fit(7, epochs=1) == first
    assert digits.fit(8, epochs=1)["weights"] != first["weights"]


@pytest.mark.slow
def test_each_purpose_has_its_own_seed(digits):
    base = digits.fit(7, epochs=1)["weights"]
    changed = {purpose: digits.fit(7, {purpose: 8}, epochs=1)["weights"] for purpose in PURPOSES}
    assert len({base, *changed.values()}) == 5
    assert digits.fit(8, dict.fromkeys(PURPOSES, 7), epochs=1)["weights"] == base


def test_sets_do_not_overlap(digits):
    data = digits.load()
    assert [len(images) for images, _ in data.values()] == [400, 397, 500, 500]
    flat = torch.cat([images.flatten(1) for images, _ in data.values()])
    assert len(flat) == 1797


def test_shifted_images_are_the_images_moved_by_a_pixel(digits):
    images = digits.load()["train"][0][:50]
    moved = digits.shift(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-0.3)
    for one, frame in zip(moved, padded, strict=True):
        assert any(torch.equal(one, frame[:, r : r + 8, c : c + 8]) for r in range(3) for c in range(3))
    assert not torch.equal(moved, images)


@pytest.mark.slow
def test_pretrained_features_leave_only_the_last_layer_to_the_seed(digits, tmp_path):
    digits.pretrain(tmp_path / "a.pt", epochs=1)
    digits.pretrain(tmp_path / "b.pt", epochs=1)
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert digits.fit(1, epochs=1, start=str(tmp_path / "a.pt"))["weights"] != digits.fit(1, epochs=1)["weights"]


@pytest.mark.slow
def test_the_command_studies_and_reports(tmp_path):
    command = [sys.executable, str(SCRIPT), "--seeds", "0:2", "--variants", "short", "--out", "study"]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500)
    text = (tmp_path / "study" / "summary.md").read_text(encoding="utf-8")
    assert "Between seeds, Accuracy varies by" in text
    assert "Seed 3407 scores" in text
    assert (tmp_path / "study" / "report.html").exists()
