"""The demo: what it trains on, what it repeats, and that its table tells the truth."""

from __future__ import annotations

import argparse
import signal
from dataclasses import replace
from io import StringIO

import matplotlib.image
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from repro_callbacks.command import demo
from repro_callbacks.command.demo import show
from repro_callbacks.command.demo.brain import TISSUES, load_brain, one_hot_prediction, train_transforms
from repro_callbacks.command.demo.train import BARE, OURS, Training


@pytest.fixture(scope="module")
def brain():
    return load_brain()


def shown(table) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def results(ours: str, bare: str) -> show.Results:
    """The first run with digest a, a repeat with the digests given."""
    digests = {(show.ONCE, OURS): "a", (show.ONCE, BARE): "a", ("again", OURS): ours, ("again", BARE): bare}
    return {pair: {"digest": digest * 32, "dice_grey": 0.5, "dice_white": 0.5} for pair, digest in digests.items()}


class TestBrain:
    def test_is_split_in_two_parts_of_one_volume(self, brain):
        back, front = brain
        assert back["image"].shape == back["label"].shape == (1, 76, 52, 80)
        assert front["image"].shape == front["label"].shape == (1, 76, 40, 80)
        assert 0 <= back["image"].min() <= back["image"].max() <= 1

    def test_has_all_tissues_in_both_parts(self, brain):
        for part in brain:
            shares = [(part["label"] == tissue).float().mean().item() for tissue in range(len(TISSUES))]
            assert min(shares) > 0.05
            assert sum(shares) == pytest.approx(1)

    def test_white_matter_is_brighter_than_grey(self, brain):
        for part in brain:
            grey, white = (part["image"][part["label"] == tissue].mean() for tissue in (1, 2))
            assert white > grey + 0.1

    def test_left_half_is_the_mirror_image_of_the_right(self, brain):
        """Why the split is not one of left and right: the validation would have been trained on."""
        from nilearn import datasets

        data = torch.from_numpy(datasets.load_mni152_template(resolution=1).get_fdata())
        assert torch.equal(data, data.flip(0))

    def test_transforms_give_a_patch_and_a_one_hot_label(self, brain):
        sample = train_transforms(patch=16)(brain[0])
        assert sample["image"].shape == (1, 16, 16, 16)
        assert sample["label"].shape == (3, 16, 16, 16)
        assert torch.equal(sample["label"].sum(0), torch.ones(16, 16, 16))

    def test_prediction_is_one_hot(self):
        logits = torch.zeros(1, 3, 2, 1, 1)
        logits[0, 2, 0], logits[0, 1, 1] = 1, 1
        assert one_hot_prediction(logits).squeeze().tolist() == [[0, 0], [0, 1], [1, 0]]


class TestCircumstances:
    def test_differ_only_in_what_must_not_matter(self):
        base = Training("folder")
        for changed in show.circumstances(base).values():
            assert replace(changed, num_workers=2, validate_every=1, kill_at=None) == base

    @pytest.mark.parametrize(("epochs", "patches"), [(8, 64), (2, 8), (4, 30)])
    def test_kill_comes_past_a_checkpoint_and_inside_an_epoch(self, epochs, patches):
        training = Training("folder", epochs=epochs, patches=patches)
        kill_at = next(changed.kill_at for changed in show.circumstances(training).values() if changed.kill_at)
        assert training.steps_in_epoch // 4 + 1 < kill_at < training.epochs * training.steps_in_epoch
        assert kill_at % training.steps_in_epoch


class TestTable:
    def test_says_same_where_bits_are_the_same(self):
        assert shown(show.tabulate(results("a", "a"))).count("same") == 2

    def test_says_so_where_a_row_does_not_hold(self):
        table = shown(show.tabulate(results("b", "c")))
        assert "bbbbbbbb 0.500 does not hold yet" in table
        assert "cccccccc 0.500 differs" in table
        assert "same" not in table

    def test_words_count_what_held(self):
        lines = list(show.conclude(results("a", "c")))
        assert lines[0].startswith("Determinism: 1 of 1 repeats have the bits of the first run")
        assert lines[1].startswith("seed_everything: 0 of 1 repeats")


class TestCommand:
    def arguments(self, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        demo.add_arguments(parser)
        return parser.parse_args(words)

    def test_refuses_a_training_that_is_too_short(self, tmp_path):
        with pytest.raises(ValueError, match="an even number of epochs from 2 and of patches from 8, not 1 and 64"):
            demo.run(self.arguments("--epochs", "1", "--folder", str(tmp_path)))

    def test_names_what_is_not_installed(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(demo, "NEEDED", ("lightning", "no_such_package"))
        assert demo.run(self.arguments("--folder", str(tmp_path))) == 2
        assert "needs no_such_package: python -m pip install 'repro-callbacks[demo]'" in capsys.readouterr().out

    @pytest.mark.slow
    def test_a_training_that_was_not_killed_is_an_error(self, tmp_path):
        training = Training(str(tmp_path / "run"), epochs=2, patches=8, kill_at=10**6)
        with pytest.raises(RuntimeError, match=f"ended with exit code 0, not {-signal.SIGKILL}"):
            show.run_one(training)

    @pytest.mark.slow
    def test_keeps_the_folders_that_are_not_its_own(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "0-Determinism").mkdir()
        (tmp_path / "0-Determinism" / "old.txt").touch()
        show.run_one(Training(str(tmp_path / "0-Determinism"), epochs=2, patches=8))
        assert (tmp_path / "mine").exists()
        assert not (tmp_path / "0-Determinism" / "old.txt").exists()

    @pytest.mark.slow
    def test_every_row_holds_with_determinism_and_not_without(self, tmp_path, capfd):
        code = demo.run(self.arguments("--epochs", "2", "--patches", "8", "--folder", str(tmp_path)))
        output = capfd.readouterr().out

        rows = [line for line in output.splitlines() if line.startswith("│")]
        assert len(rows) == len(show.circumstances(Training("")))
        assert sum("same" in row.split("│")[2] for row in rows) == len(rows) - 1
        assert "does not hold yet" not in output
        assert code == 0
        # the control: the same circumstances, without the mechanism
        differing = {row.split("│")[1].strip() for row in rows if "differs" in row.split("│")[3]}
        assert {"without workers", "killed (kill -9), resumed"} <= differing

        assert matplotlib.image.imread(tmp_path / "0-Determinism" / "picture.png").std() > 0.1
        events = EventAccumulator(str(tmp_path / "0-Determinism" / "tensorboard")).Reload()
        assert {"dice_grey", "dice_white"} <= set(events.Tags()["scalars"])
        assert "front of the brain" in events.Tags()["images"]

    def test_stopped_by_hand_it_ends_without_a_traceback(self, tmp_path, monkeypatch, capsys):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(show, "run_all", stop)
        assert demo.run(self.arguments("--folder", str(tmp_path))) == 130
        assert f"Stopped. What was written is in {tmp_path}" in capsys.readouterr().out
