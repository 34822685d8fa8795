"""The example's own arithmetic: Dice of a slice, and what tests over cases say of two seeds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_dice

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def brain() -> Any:
    spec = importlib.util.spec_from_file_location("brain", ROOT / "examples" / "seed_study" / "brain.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["brain"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["brain"]


def test_the_dice_of_each_slice_is_monais(brain: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, label = torch.randint(0, 3, (2, 8, 4, 6), generator=generator)
    hot = [torch.nn.functional.one_hot(volume, 3).permute(3, 0, 1, 2) for volume in (prediction, label)]
    expected = [
        compute_dice(*(one[None, :, :, place] for one in hot), include_background=False).mean().item()
        for place in range(4)
    ]
    assert brain.slice_dice(prediction, label) == pytest.approx(expected, abs=1e-6)
    assert brain.slice_dice(label, label) == [1.0] * 4


def test_a_test_over_cases_calls_equal_methods_different_where_models_differ(brain: Any) -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, (17, 3))
    scores = np.linspace(0.7, 0.9, 17)[:, None] + np.array([0.0, 0.0, 0.02]) + noise
    cases = pd.DataFrame(
        [("short", seed, f"slice {row:02d}", scores[row, seed]) for row in range(17) for seed in range(3)],
        columns=["variant", "seed", "case", "val_dice"],
    )
    told = brain.tests_between_seeds(cases)
    assert "the best seed (2) is significantly better (p < 0.05) than 2 of 2 others (100%)" in told
    assert "of all 3 pairs, 67% differ significantly" in told
