"""MONAI's SmartCacheDataset, which renews a part of its samples at each epoch's end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from monai.data import DataLoader as MonaiLoader
from monai.data import SmartCacheDataset
from monai.handlers import SmartCacheHandler

from repro_callbacks.handlers import smartcache
from tests.handlers.training import Outcome, images, resumes, run, same, transforms

FRESH: dict[str, Any] = {
    "max_epochs": 4,
    "loader": MonaiLoader,
    "make_handlers": lambda data: [SmartCacheHandler(data)],
}
LENGTH = 3  # 12 samples in batches of 4


def smart() -> Any:
    data = [{"image": image, "label": image.mean()[None]} for image in images(20)]
    return SmartCacheDataset(data, transforms(), replace_rate=0.25, cache_num=12, progress=False, shuffle=True, seed=1)


def train(**kwargs: Any) -> Outcome:
    fresh = {"max_epochs": 4, "loader": MonaiLoader, "make_handlers": lambda data: [SmartCacheHandler(data)]}
    return run(**{**fresh, "dataset": smart, **kwargs})


@pytest.fixture(scope="module")
def reference() -> Outcome:
    return train()


@pytest.mark.parametrize("workers", [0, 2])
def test_it_repeats_for_any_number_of_workers(reference: Outcome, workers: int) -> None:
    assert same(train(loader_kwargs={"num_workers": workers}), reference)


def test_its_samples_are_renewed(reference: Outcome) -> None:
    assert not same(train(make_handlers=lambda data: []), reference)


@pytest.mark.slow
def test_resume_in_each_epoch(reference: Outcome, tmp_path: Path) -> None:
    saved = train(save=tmp_path)
    assert same(saved, reference)
    assert len(saved.files) == 4 * LENGTH
    for number in (1, 2, 4, 9):  # in the first epoch, at its last batch, in the second, in the last
        workers = 2 if number == 4 else 0
        assert resumes(reference, train(load=saved.files[number], loader_kwargs={"num_workers": workers})), number


@pytest.mark.slow
def test_a_dataset_that_was_used_before_begins_where_it_began(reference: Outcome) -> None:
    data = smart()
    assert same(train(dataset=lambda: data), reference)
    assert same(train(dataset=lambda: data), reference)


def test_its_window_is_the_one_that_it_moves_to_by_itself() -> None:
    by_itself, moved = smart(), smart()
    for epoch in range(1, 8):
        by_itself.start()
        by_itself.update_cache()
        smartcache.align(moved, epoch)
        assert [id_of(item) for item in moved._cache] == [id_of(item) for item in by_itself._cache]
    smartcache.align(moved, 2)
    moved.start()
    moved.update_cache()
    smartcache.align(by_itself, 3)
    assert [id_of(item) for item in moved._cache] == [id_of(item) for item in by_itself._cache]
    by_itself.shutdown()
    moved.shutdown()


def id_of(item: Any) -> float:
    return float(item["label"])


def test_what_can_t_be_held_is_said() -> None:
    with pytest.warns(UserWarning, match=r"persistent workers keep the samples of the first epoch: set persistent"):
        train(loader_kwargs={"num_workers": 1, "persistent_workers": True}, max_epochs=1)
    with pytest.warns(UserWarning, match="with epoch_length=2 and 3 batches the workers keep the samples that were"):
        train(loader_kwargs={"num_workers": 1}, epoch_length=2, max_epochs=1)


def test_a_resume_without_its_handler_is_warned_of(tmp_path: Path) -> None:
    saved = train(save=tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match="SmartCacheDataset begins with the samples of the first epoch, and what"):
        train(load=saved.files[4], make_handlers=lambda data: [], max_epochs=2)


def test_nothing_is_said_otherwise() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*SmartCacheDataset.*")
        train(make_handlers=lambda data: [], max_epochs=1)
        train(loader_kwargs={"num_workers": 1}, max_epochs=1)
        train(epoch_length=2, max_epochs=1)


# -- each mechanism taken out ------------------------------------------------------------------------------------------


def test_without_moving_the_window_a_resume_differs(reference: Outcome, tmp_path: Path, monkeypatch: Any) -> None:
    saved = train(save=tmp_path)
    monkeypatch.setattr(smartcache, "align", lambda cache, epoch: None)
    assert not resumes(reference, train(load=saved.files[4]))


def test_what_the_warning_says_is_true(reference: Outcome) -> None:
    with pytest.warns(UserWarning, match="persistent workers"):
        kept = train(loader_kwargs={"num_workers": 1, "persistent_workers": True})
    assert not same(kept, reference)


def test_what_we_use_of_it_is_there() -> None:
    data = smart()
    names = ("_update_lock", "_replace_num", "_total_num", "_cache", "_start_pos", "_replace_done", "_round")
    missing = [name for name in names if name not in vars(data)]
    assert missing == []
    assert callable(data._fill_cache)
    assert callable(data._compute_data_idx)
