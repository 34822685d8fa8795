"""What a training may hand back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro_callbacks.study import results


def test_numbers_of_every_kind() -> None:
    for value in (0.5, np.float32(0.5), torch.tensor(0.5), torch.tensor([[0.5]]), np.array(0.5), True):
        assert results.read(value).named("dice").metrics == {"dice": float(value)}
    given = {"dice": 1, "loss": math.inf, "weights": "ab", "cases": {1: 0.5, "p2": {"dice": 0.25, "hd": 3}}}
    result = results.read(given).named("dice")
    assert result.metrics == {"dice": 1.0, "loss": math.inf}
    assert (result.weights, result.cases) == ("ab", {"1": {"dice": 0.5}, "p2": {"dice": 0.25, "hd": 3.0}})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "what the function returned must be a number, not None of type NoneType"),
        ("0.5", "must be a number, not '0.5' of type str"),
        (torch.zeros(2), "must be a number, not tensor"),
        ([0.5], "must be a number"),
        ({"dice": "high"}, "dice must be a number, not 'high'"),
        ({"dice": 0.5, "seed": 1}, "a metric can't be named 'seed'"),
        ({"dice": 0.5, "check": 1}, "a metric can't be named 'check'"),
        ({"dice": 0.5, 3: 1}, "a metric can't be named 3"),
        ({"dice": 0.5, "weights": 3}, "'weights' must be a digest, a string, not 3 of type int"),
        ({"dice": 0.5, "cases": [1, 2]}, "'cases' must map each case to its score, not be a list"),
        ({"dice": 0.5, "cases": {"p1": None}}, "the score of case 'p1' must be a number"),
        ({"loss": 0.5}, "the run gave no metric 'dice'; it gave loss"),
        ({}, "it gave none at all"),
        ({"dice": math.nan}, "dice is nan, which is no score"),
        (-math.inf, "dice is -inf, which is no score"),
    ],
)
def test_what_is_no_result_is_refused(value: Any, message: str) -> None:
    with pytest.raises(results.ResultError, match=message):
        results.read(value).named("dice")


def test_the_file_of_a_command(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(results.ResultError, match="the command ended without a result: no Lightning trainer"):
        results.read_file(path)
    path.write_text('{"metrics": {"dice": 0.5}, "weights": "ab"}')
    assert results.read_file(path).named("dice") == results.Result({"dice": 0.5}, "ab", {})
