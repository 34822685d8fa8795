import math

import pytest

from repro_callbacks.record import Difference, Differences, RunRecord
from repro_callbacks.record.differences import NOT_RECORDED, RULES, compare, rule_of


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [
        (Difference("versions/torch", "2.13.0", "2.12.0"), "torch is 2.13.0 here and 2.12.0 there: can change bits"),
        (Difference("versions/monai", "1.6.1", None), "monai is 1.6.1 here and not installed there: can change bits"),
        (Difference("versions/cuda", None, "12.6"), "CUDA is absent here and 12.6 there: can change bits"),
        (Difference("seed", 1, None), "the seed is 1 here and not set there: can change bits"),
        (Difference("seeds/order", 1, 2), "the seed for order is 1 here and 2 there: can change bits"),
        (
            Difference("environment/MKL_CBWR", None, "AVX2"),
            "MKL_CBWR is not set here and AVX2 there: can change bits",
        ),
        (
            Difference("hardware/accelerators", "NVIDIA A100", None),
            "the accelerator is 'NVIDIA A100' here and none there: can change bits",
        ),
        (
            Difference("flags/cudnn_benchmark", True, False),
            "cudnn_benchmark is True here and False there: can change bits",
        ),
        (
            Difference("system/kernel", "6.1", "6.2"),
            "the kernel of the operating system is 6.1 here and 6.2 there: can't change bits",
        ),
        (Difference("extra/note", "", "x y"), "note is '' here and 'x y' there: can change bits"),
        (
            Difference("code/dirty", True, NOT_RECORDED),
            "the dirty state of the code is True here and not recorded there: can change bits",
        ),
    ],
)
def test_a_difference_is_a_sentence(difference, sentence):
    assert difference.sentence == str(difference) == sentence


def test_every_rule_has_a_reason_and_every_recorded_field_a_rule_of_its_own():
    assert all(rule.label and rule.reason for rule in RULES.values())
    record = RunRecord.capture(seed=1, seeds={"order": 1}, initial_weights="a")
    assert [field for field in record.flat() if rule_of(field) is RULES["*"]] == []
    assert rule_of("something/else") is RULES["*"]  # the control: a field without a rule is seen by this test


def test_what_is_not_known_is_not_ruled_out():
    assert rule_of("a field of a later version").can_change_bits
    assert rule_of("extra/anything").can_change_bits


def test_what_cannot_change_bits_is_a_short_list():
    """Each of these was decided; a new one has to be decided here too."""
    harmless = {field for field, rule in RULES.items() if not rule.can_change_bits}
    assert harmless == {
        "code/repository",
        "extra/num_workers",
        "flags/num_interop_threads",
        "hardware/accelerator_count",
        "hardware/cpu_count",
        "schema",
        "system/kernel",
    }


def test_the_filter_keeps_only_what_can_change_bits():
    here = RunRecord(seed=1, system={"kernel": "6.1"})
    there = RunRecord(seed=2, system={"kernel": "6.2"})
    differences = here.diff(there)
    assert [difference.field for difference in differences] == ["seed", "system/kernel"]
    assert [difference.field for difference in differences.changing_bits()] == ["seed"]
    assert isinstance(differences.changing_bits(), Differences)


def test_as_a_string_the_worst_comes_first_and_nothing_is_said_to_be_nothing():
    lines = str(
        RunRecord(seed=1, hardware={"cpu_count": 1}).diff(RunRecord(seed=2, hardware={"cpu_count": 2}))
    ).splitlines()
    assert lines[0].startswith("the seed is 1 here and 2 there: can change bits (")
    assert lines[1].startswith("the number of CPUs is 1 here and 2 there: can't change bits (")
    assert str(Differences()) == "no differences"


@pytest.mark.parametrize(
    ("ours", "theirs", "differ"),
    [
        ({"versions/itk": None}, {}, False),
        ({}, {"versions/itk": None}, False),
        ({"versions/itk": "1"}, {}, True),
        ({"extra/a": float("nan")}, {"extra/a": float("nan")}, False),
        ({"extra/a": 1}, {"extra/a": True}, True),
        ({"extra/a": 0.1}, {"extra/a": 0.1}, False),
        ({"extra/a": 0.1}, {"extra/a": math.nextafter(0.1, 1)}, True),
    ],
)
def test_values_are_compared_exactly(ours, theirs, differ):
    assert bool(compare(ours, theirs)) is differ


def test_diff_is_the_same_seen_from_the_other_side():
    here = RunRecord(seed=1, versions={"torch": "2.13.0"}, environment={"MKL_CBWR": "AVX2"})
    there = RunRecord(seed=2, versions={"torch": "2.12.0", "numpy": "2.0"})
    forth = {(difference.field, difference.ours, difference.theirs) for difference in here.diff(there)}
    back = {(difference.field, difference.theirs, difference.ours) for difference in there.diff(here)}
    assert forth == back
    assert len(forth) == 4
