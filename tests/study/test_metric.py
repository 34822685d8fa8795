"""A metric's name, direction, unit and digits."""

import pytest

from repro_callbacks.study.metric import Metric
from repro_callbacks.study.statistics import Estimate


@pytest.mark.parametrize(
    ("name", "label", "maximize"),
    [
        ("val_dice", "Dice", True),
        ("val/acc", "Acc", True),
        ("val_loss", "Loss", False),
        ("test_hd95", "Hd95", False),
        ("mean_surface_distance", "Mean surface distance", False),
        ("val", "Val", True),
        ("lossless", "Lossless", True),
    ],
)
def test_guesses(name, label, maximize):
    found = Metric.guess(name, [0.5])
    assert (found.label, found.maximize) == (label, maximize)


def test_what_is_given_is_not_guessed():
    assert Metric.guess("val_loss", [0.5], maximize=True).maximize
    assert not Metric.guess("acc", [0.5], maximize=False).maximize


def test_points_are_for_scores_from_0_to_1_where_high_is_good():
    assert Metric.guess("dice", [0.0, 1.0]).points
    assert not Metric.guess("dice", [81.0, 80.2]).points
    assert not Metric.guess("loss", [0.4, 0.2]).points
    assert not Metric.guess("dice", []).points


def test_an_interval_has_the_digits_of_what_is_larger_its_width_or_its_value():
    metric = Metric.guess("dice", [0.8])
    assert metric.gain_interval(Estimate(0.011, 0.0101, 0.0133, "t")) == "1.0 to 1.3 points"
    assert metric.gain_interval(Estimate(0.0004, -0.0012, 0.002, "t"), signed=True) == "-0.12 to +0.20 points"
