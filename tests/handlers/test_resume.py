"""Promise 4 in MONAI's engines: from the checkpoint of any iteration or epoch, the bits of an unbroken run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import DataLoader as MonaiLoader

from repro_callbacks import DeterminismHandler
from repro_callbacks.handlers.attachment import Attachment
from repro_callbacks.loading import Start
from tests.handlers.training import SEED, Draws, StopAt, resumes, run, same

SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validation and draws": {"validation": 1, "handlers": [Draws()]},
    "validation in mid-epoch": {"validation": 4, "validation_by_epoch": False},
    "short epochs": {"epoch_length": 4},
    "long epochs": {"epoch_length": 9, "max_epochs": 2},
    "accumulation": {"accumulation_steps": 4},
    "workers": {"loader": MonaiLoader, "loader_kwargs": {"num_workers": 1}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_resume_at_every_iteration(name: str, tmp_path: Path) -> None:
    kwargs = SCENARIOS[name]
    reference = run(**kwargs, save=tmp_path)
    assert same(run(**kwargs), reference)
    assert len(reference.files) == len(reference.seen) >= 12
    for number, file in enumerate(reference.files):
        workers = {"loader_kwargs": {"num_workers": 2}} if number % 5 == 1 else {}
        assert resumes(reference, run(**{**kwargs, **workers}, load=file)), file.name


@pytest.mark.slow
def test_resume_at_some_iterations(tmp_path: Path) -> None:
    reference = run(save=tmp_path)
    for number in (0, 5, 7):  # the first, the last of an epoch, one in mid-epoch
        assert resumes(reference, run(load=reference.files[number])), reference.files[number].name
    assert resumes(reference, run(load=reference.files[8], loader_kwargs={"num_workers": 2}))


@pytest.mark.slow
def test_resume_at_every_epoch_end(tmp_path: Path) -> None:
    reference = run(validation=1, save=tmp_path, save_by_epoch=True)
    assert len(reference.files) == 3
    for file in reference.files:
        assert resumes(reference, run(validation=1, load=file)), file.name


@pytest.mark.slow
def test_resume_of_a_resume_with_other_workers(tmp_path: Path) -> None:
    reference = run()
    first = run(save=tmp_path / "first", handlers=[StopAt(5)])
    second = run(
        save=tmp_path / "second", handlers=[StopAt(10)], load=first.files[-1], loader_kwargs={"num_workers": 2}
    )
    assert len(first.files) == 4
    assert resumes(reference, run(load=second.files[-1]))


@pytest.mark.slow
def test_training_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    longer = run(max_epochs=4)
    shorter = run(max_epochs=3, save=tmp_path, save_by_epoch=True)
    resumed = run(max_epochs=4, load=shorter.files[-1])
    assert len(resumed.seen) == 6
    assert resumes(longer, resumed)


@pytest.mark.slow
def test_no_sample_is_loaded_to_be_skipped(tmp_path: Path) -> None:
    from tests.handlers.training import Images

    loaded: list[int] = []

    class Counted(Images):
        def __getitem__(self, index: int) -> Any:
            loaded.append(index)
            return super().__getitem__(index)

    reference = run(dataset=Counted, save=tmp_path)
    assert len(loaded) == 3 * 22
    loaded.clear()
    assert resumes(reference, run(dataset=Counted, load=reference.files[3]))
    assert len(loaded) == 3 * 22 - 4 * 4


def test_the_state_is_loaded_with_weights_only(tmp_path: Path) -> None:
    outcome = run(save=tmp_path, max_epochs=1)
    state = torch.load(outcome.files[2], weights_only=True)["determinism"]
    assert state["seeds"] == {"order": SEED, "augment": SEED, "init": SEED, "step": SEED}
    assert state["iteration"] == 3
    assert state["record"] == outcome.handler.record.to_dict()


@pytest.mark.slow
def test_the_record_of_a_resume_has_the_first_runs_initial_weights(tmp_path: Path) -> None:
    first = run(save=tmp_path / "saved", determinism=DeterminismHandler(SEED, record_path=tmp_path / "records"))
    again = DeterminismHandler(SEED, record_path=tmp_path / "records")
    resumed = run(load=first.files[3], determinism=again)
    assert resumed.handler.record.initial_weights == first.handler.record.initial_weights
    assert [path.name for path in sorted((tmp_path / "records").iterdir())] == ["run_record.json"]


@pytest.mark.slow
def test_without_the_handlers_state_a_resume_is_exact_but_for_an_epochs_end(tmp_path: Path) -> None:
    """The position comes from the engine's own counters."""
    reference = run(save=tmp_path, scheduled=False)
    for number in (2, 5, 8):
        states = torch.load(reference.files[number], weights_only=True)
        states["determinism"] = {}
        torch.save(states, tmp_path / "less.pt")
        assert resumes(reference, run(load=tmp_path / "less.pt", scheduled=False))


def test_other_seeds_are_warned_of(tmp_path: Path) -> None:
    reference = run(save=tmp_path, max_epochs=1)
    other = DeterminismHandler(SEED, seeds={"order": 7})
    with pytest.warns(UserWarning, match="was made with the seeds .* and the run goes on with .*'order': 7"):
        resumed = run(load=reference.files[0], determinism=other, max_epochs=1)
    assert not resumes(reference, resumed)


def test_other_software_is_warned_of(tmp_path: Path) -> None:
    reference = run(save=tmp_path, max_epochs=1)
    states = torch.load(reference.files[0], weights_only=True)
    states["determinism"]["record"]["versions"]["torch"] = "1.0"
    torch.save(states, tmp_path / "other.pt")
    with pytest.warns(UserWarning, match=r"(?s)differs from the one that wrote the checkpoint.*torch is .* 1.0 there"):
        run(load=tmp_path / "other.pt", max_epochs=1)


def test_another_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not the state of a DeterminismHandler: it holds \['weight'\]"):
        DeterminismHandler(0).load_state_dict({"weight": 1})


# -- each mechanism taken out ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_the_handler_a_resume_differs(tmp_path: Path) -> None:
    reference = run(determinism=None, save=tmp_path)
    assert not resumes(reference, run(determinism=None, load=reference.files[2]))
    by_epoch = run(determinism=None, save=tmp_path / "epochs", save_by_epoch=True)
    assert not resumes(by_epoch, run(determinism=None, load=by_epoch.files[0]))


@pytest.mark.slow
def test_without_positions_from_the_engine_a_resume_differs(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Attachment, "_where", lambda self, loader: Start())
    reference = run(save=tmp_path)
    assert not resumes(reference, run(load=reference.files[2]))
