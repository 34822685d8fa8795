"""What an audit of a pipeline finds, on MONAI's own transforms, datasets and loaders, and that it leaves them alone."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import monai.data
import monai.transforms as mt
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from repro_callbacks.audit import audit, audit_pipeline
from repro_callbacks.audit.draws import Unequal, unequal_draws
from repro_callbacks.audit.transforms import TRANSFORMS
from repro_callbacks.loading import keyed


def items(number: int = 2) -> list[dict[str, torch.Tensor]]:
    return [{"image": torch.linspace(0, 1, 512).reshape(1, 8, 8, 8) + i} for i in range(number)]


def dataset(*transforms, number: int = 2):
    return monai.data.Dataset(items(number), mt.Compose(list(transforms)))


def found(findings):
    return [(finding.level, finding.where) for finding in findings]


FLIP = mt.RandFlipd("image", prob=0.5)
NOISE = mt.RandGaussianNoised("image", prob=1.0)
SHIFT = mt.RandStdShiftIntensityd("image", factors=1.0, prob=1.0)
DROPOUT = mt.RandCoarseDropoutd("image", holes=1, spatial_size=4, fill_value=9.0, prob=1.0)
SHUFFLE = mt.RandCoarseShuffled("image", holes=1, spatial_size=4, prob=1.0)


class Remap(mt.Randomizable, mt.Transform):
    """RandIntensityRemap over a dictionary; MONAI has none."""

    def __init__(self):
        self.remap = mt.RandIntensityRemap(prob=1.0)

    def __call__(self, data):
        return {**data, "image": self.remap(data["image"])}


def test_a_pipeline_that_is_a_function_of_its_generators_has_no_finding():
    data = dataset(FLIP, NOISE, mt.RandSpatialCropSamplesd("image", roi_size=4, num_samples=2, random_size=False))
    for pipeline in (
        data,
        DataLoader(data),
        monai.data.DataLoader(data, num_workers=2),
        keyed(DataLoader(data), seed=0),
    ):
        assert audit_pipeline(pipeline) == []


# ---- by class --------------------------------------------------------------------------------------------------


def test_every_transform_in_the_table_is_one_of_monai():
    import monai.apps.deepedit.transforms as deepedit

    for row in TRANSFORMS:
        for name in row.names:
            assert hasattr(mt, name) or hasattr(deepedit, name), name


@pytest.mark.parametrize(
    ("transform", "level", "words"),
    [
        (mt.RandIntensityRemap(prob=1.0), "note", "set_random_state does not reach it"),
        (mt.SignalRandDrop(), "note", "torch's process-wide generator"),
        (mt.SignalRandAddGaussianNoise(), "note", "torch's process-wide generator"),
        (mt.RandLambda(lambda x: x), "note", "a function of yours"),
        (mt.RandLambdad("image", lambda x: x), "note", "a function of yours"),
        (mt.RandStdShiftIntensity(1.0), "warning", "alters its input in place"),
        (SHIFT, "warning", "alters its input in place"),
        (DROPOUT, "warning", "alters its input in place"),
        (SHUFFLE, "warning", "alters its input in place"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, mt.Transform) else None,
)
def test_a_known_transform_is_found_once_wherever_it_is(transform, level, words):
    places = [transform, mt.Compose([FLIP, transform]), mt.OneOf([transform, FLIP]), [transform], {"train": transform}]
    for place in places:
        (finding,) = audit_pipeline(place, samples=0)
        assert finding.level == level
        assert words in finding.what
        assert finding.where.startswith(type(transform).__name__)


@pytest.mark.parametrize("wrap", [lambda d: d, DataLoader, lambda d: torch.utils.data.ConcatDataset([d, d])])
def test_a_transform_is_found_below_a_loader_and_other_datasets(wrap):
    (finding,) = audit_pipeline(wrap(dataset(FLIP, SHIFT)), samples=0)
    assert finding.where == "RandStdShiftIntensityd(keys=('image',))"


@pytest.mark.parametrize(
    "data",
    [
        dataset(mt.LoadImaged("image"), SHIFT),
        monai.data.CacheDataset(items(), mt.Compose([FLIP, SHIFT]), progress=False),
    ],
)
def test_altering_the_input_is_only_noted_where_the_input_is_fresh(data):
    assert [finding.level for finding in audit_pipeline(data, samples=0)] == ["note"]


def test_a_cache_that_is_not_copied_is_not_fresh():
    data = monai.data.CacheDataset(items(), mt.Compose([FLIP, SHIFT]), progress=False, copy_cache=False)
    assert [finding.level for finding in audit_pipeline(data, samples=0)] == ["warning"]


def test_a_class_of_the_same_name_from_elsewhere_is_not_meant():
    class RandLambda:
        def __call__(self, x):
            return x

    assert audit_pipeline(RandLambda()) == []


def test_loading_in_threads_and_out_of_order_are_found():
    data = dataset(FLIP)
    assert found(audit_pipeline(monai.data.ThreadDataLoader(data, use_thread_workers=True, num_workers=1))) == [
        ("warning", "ThreadDataLoader(use_thread_workers=True)")
    ]
    assert found(audit_pipeline(DataLoader(data, num_workers=1, in_order=False))) == [
        ("warning", "DataLoader(in_order=False)")
    ]
    assert audit_pipeline(monai.data.ThreadDataLoader(data)) == []


def test_an_iterable_dataset_depends_on_the_number_of_workers():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    assert found(audit_pipeline(DataLoader(Stream()))) == [("note", "Stream")]


# ---- by drawing twice ------------------------------------------------------------------------------------------


class Draws(Dataset):
    """A dataset that draws as it is told to."""

    def __init__(self, draw):
        self.draw = draw
        self.calls = 0
        self.generator = np.random.default_rng()

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.draw(self)


def count(self):
    self.calls += 1
    return self.calls


UNREPEATABLE = {
    "entropy": lambda self: random.SystemRandom().random(),
    "a fresh generator": lambda self: np.random.default_rng().random(),
    "the time": lambda self: time.perf_counter_ns(),
    "a state that goes on": count,
}
REPEATABLE = {
    "python": lambda self: random.random(),
    "numpy": lambda self: np.random.rand(3),
    "torch": lambda self: torch.rand(3),
    "its own generator": lambda self: self.generator.random(3),
}


@pytest.mark.parametrize("case", UNREPEATABLE)
def test_a_sample_that_is_no_function_of_its_key_is_found(case):
    (finding,) = audit_pipeline(Draws(UNREPEATABLE[case]))
    assert (finding.level, finding.where) == ("error", "Draws")
    assert finding.what == "sample 0 differs when it is drawn again under the same key"


@pytest.mark.parametrize("case", REPEATABLE)
def test_a_sample_that_is_a_function_of_its_key_is_not(case):
    assert audit_pipeline(Draws(REPEATABLE[case])) == []


def test_no_sample_is_drawn_if_none_is_asked_for():
    assert audit_pipeline(Draws(UNREPEATABLE["entropy"]), samples=0) == []


def test_the_transform_whose_result_differs_is_named():
    data = dataset(FLIP, mt.Lambdad("image", lambda x: x + time.perf_counter_ns()), NOISE)
    assert unequal_draws(data, [0, 1]) == Unequal(0, step="Lambdad", altered=None)
    (finding,) = audit_pipeline(data)
    assert (finding.level, finding.where) == ("error", "Lambdad in Dataset")


def test_a_transform_after_one_that_crops_several_patches_is_named():
    crop = mt.RandSpatialCropSamplesd("image", roi_size=4, num_samples=2, random_size=False)
    data = dataset(crop, mt.Lambdad("image", lambda x: x + time.perf_counter_ns()))
    assert unequal_draws(data, [1]) == Unequal(1, step="Lambdad", altered=None)


def test_the_remapped_intensities_of_monai_are_keyed_and_noted():
    findings = audit_pipeline(dataset(Remap()))
    assert ("note", "RandIntensityRemap") in found(findings)
    assert [finding for finding in findings if finding.level == "error"] == []


@pytest.mark.parametrize("transform", [SHIFT, DROPOUT, SHUFFLE], ids=lambda t: type(t).__name__)
def test_altering_the_stored_data_is_found_and_the_callers_data_is_not_altered_by_looking(transform):
    data = dataset(transform)  # alone: a flip that happens to be done would copy
    before = [item["image"].clone() for item in data.data]
    findings = audit_pipeline(data)
    assert [level for level, _ in found(findings)] == ["warning", "error"]
    assert findings[1].where == f"{type(transform).__name__} in Dataset"
    assert "alters the stored data in place" in findings[1].what
    assert all(torch.equal(item["image"], kept) for item, kept in zip(data.data, before, strict=True))
    data[0]  # by hand, it is
    assert not torch.equal(data.data[0]["image"], before[0])


@pytest.mark.parametrize("transform", [SHIFT, DROPOUT, SHUFFLE], ids=lambda t: type(t).__name__)
def test_the_remedy_that_is_named_is_one(transform):
    import copy

    data = dataset(mt.Lambdad("image", copy.deepcopy), transform)
    assert [finding for finding in audit_pipeline(data) if finding.level == "error"] == []


def test_what_the_dataset_raises_comes_through():
    def fail(self):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        audit_pipeline(Draws(fail))


def test_a_negative_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="samples must be 0 or more, not -1"):
        audit_pipeline(dataset(FLIP), samples=-1)


# ---- the way in ------------------------------------------------------------------------------------------------


def test_audit_takes_pipelines_and_refuses_what_is_none():
    assert not audit(dataset(FLIP, SHIFT))
    assert audit(mt.Compose([FLIP]))
    for thing in (3, None, mt.RandFlipd):
        with pytest.raises(TypeError, match="audit needs a module, a DataLoader, a dataset or a transform, not"):
            audit(thing)
    with pytest.raises(TypeError, match="example_inputs are for a model, and Dataset is none"):
        audit(dataset(FLIP), torch.rand(1))


@pytest.mark.slow
def test_it_imports_neither_framework():
    code = "import sys, repro_callbacks.audit as a; print(bool(a.audit([1])), *sys.modules)"
    words = subprocess.run([sys.executable, "-c", code], text=True, check=True, capture_output=True).stdout.split()
    assert words[0] == "True"
    assert not {"monai", "lightning", "pytorch_lightning"} & set(words)
    code = code.replace("print", "import monai; print")
    words = subprocess.run([sys.executable, "-c", code], text=True, check=True, capture_output=True).stdout.split()
    assert "monai" in words
