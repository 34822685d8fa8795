"""``sample``: one sample drawn alone is the very sample that a training saw."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro_callbacks.command import picture, sample
from tests.command.processes import SCRIPTS, call, environment, write

DATA = '''
"""A datamodule whose data, split and transforms are random, and a training that writes down what it saw."""
import json, sys
import lightning as L
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from monai.transforms import Compose, RandFlip, RandGaussianNoise
from torch.utils.data import DataLoader, Dataset, random_split

class Data(Dataset):
    def __init__(self):
        self.images = torch.randn(6, 1, 8, 8)
        self.transform = Compose([RandFlip(prob=0.5, spatial_axis=0), RandGaussianNoise(prob=0.9)])
    def __len__(self): return 6
    def __getitem__(self, index):
        return {"image": self.transform(self.images[index]) + torch.randn(1), "index": index}

class Images(L.LightningDataModule):
    def setup(self, stage):
        self.train, self.val = random_split(Data(), [4, 2])
    def train_dataloader(self):
        order = torch.randperm(4).tolist()  # drawn by the loader's method
        self.shown = torch.utils.data.Subset(self.train, order)
        return DataLoader(self.shown, batch_size=2, shuffle=True, num_workers=1)
    def val_dataloader(self):
        return [DataLoader(self.val, batch_size=1), DataLoader(self.val, batch_size=1)]

class Sees(BoringModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 2)
    def training_step(self, batch, batch_idx):
        for image in batch["image"]:
            seen["train"].append([self.current_epoch, float(image.double().sum())])
        return self.layer(batch["image"].flatten(1)).sum()
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        seen["validate"].append([dataloader_idx, float(batch["image"].double().sum())])
    def val_dataloader(self): ...

def make_loader():
    return DataLoader(Data(), batch_size=2, num_workers=2)

def make_stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(range(3))
    return DataLoader(Stream())

nothing = 3

if __name__ == "__main__":
    seen = {"train": [], "validate": []}
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                        num_sanity_val_steps=0, enable_progress_bar=False, limit_val_batches=2)
    trainer.fit(Sees(), datamodule=Images())
    json.dump(seen, open("seen.json", "w"))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script above."""
    made = tmp_path_factory.mktemp("sample")
    write(made, "data.py", DATA)
    return made


def drawn(folder: Path, *words: str) -> Any:
    """Draw a sample as a user does, and return it."""
    done = call("sample", *words, "--save", "one.pt", cwd=folder)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "one.pt", weights_only=False)


@pytest.mark.slow
def test_it_is_the_sample_that_a_training_saw(folder: Path) -> None:
    done = call("run", "--seed", "11", "--seeds", "augment=12", "--", "python", "data.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    seen = json.loads((folder / "seen.json").read_text())

    def total(*words: str) -> float:
        return float(drawn(folder, "data.py:Images", *words)["image"].double().sum())

    seeds = ["--seed", "11", "--seeds", "augment=12"]
    of_epoch_2 = {value for epoch, value in seen["train"] if epoch == 2}
    assert total(*seeds, "--epoch", "2", "--index", "3") in of_epoch_2
    validated = [value for loader, value in seen["validate"] if loader == 1]
    assert total(*seeds, "--stage", "validate", "--loader", "1", "--index", "1") in validated
    # controls: another seed, another epoch
    assert total("--seed", "11", "--epoch", "2", "--index", "3") not in of_epoch_2
    assert total(*seeds, "--epoch", "1", "--index", "3") not in of_epoch_2


@pytest.mark.slow
def test_a_function_and_what_is_printed(folder: Path) -> None:
    words = ["data:make_loader", "--seed", "3", "--index", "5", "--epoch", "1"]
    first, second = (call("sample", *words, cwd=folder) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    lines = first.stdout.splitlines()
    assert lines[0].startswith("image  MetaTensor 1x8x8 float32  ")
    assert lines[1].split() == ["index", "int", "5"]
    assert lines[2].startswith("digest ")
    # control
    assert call("sample", *words[:-1], "2", cwd=folder).stdout.splitlines()[2] != lines[2]


REFUSED = {
    "data:make_loader --index 6": "index must be from 0 to 5, since the dataset holds 6 samples, not 6",
    "data.py:make_stream --index 0": "is an iterable dataset: it has no sample 0 to draw",
    "data.py:nothing --index 0": "expected a DataLoader, not int: 3",
    "data.py:absent --index 0": "data.py has no absent",
    "absent.py:make_loader --index 0": "there is no file absent.py",
    "absent:make_loader --index 0": "there is no module absent; for a file, write absent.py:make_loader",
    "data.py --index 0": "write where the loader comes from as module:name or script.py:name, not 'data.py'",
    "data.py:Images --stage test --index 0": "Images has no test_dataloader of its own",
    "data.py:make_loader --loader 1 --index 0": "has 1 loaders for train, so that there is no loader 1",
    "data:make_loader --index 0 --out none.png": None,
}


@pytest.mark.slow
def test_what_cannot_be_drawn_is_said(folder: Path) -> None:
    # one process for all: it says that it is below `run` already
    code = (
        "import contextlib, io, json, sys; from repro_callbacks.command.main import main; told = {}\n"
        "for words in sys.argv[1:]:\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as stream:\n"
        "        code = main(['sample', '--seed', '1', *words.split()])\n"
        "    told[words] = [code, stream.getvalue()]\n"
        "print(json.dumps(told))"
    )
    env = environment(REPRO_CALLBACKS_RUN="1", REPRO_CALLBACKS_START_SEED="1")
    words = [sys.executable, "-c", code, *REFUSED]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    for named, message in REFUSED.items():
        code, said = told[named]
        if message is None:
            assert code == 0, said
        else:
            assert code == 2
            assert message in said
    assert (folder / "none.png").exists()


@pytest.mark.slow
def test_a_picture_of_a_volume(tmp_path: Path) -> None:
    from matplotlib.image import imread

    words = [f"{SCRIPTS / 'spheres.py'}:Segmenter", "--seed", "0", "--index", "1", "--out", "volume.png"]
    done = call("sample", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = imread(tmp_path / "volume.png")
    assert shown.shape[0] > shown.shape[1] > 500  # four rows of three slices
    assert shown.std() > 0.1


def test_the_command_line_is_handed_on_in_full() -> None:
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    words = ["a.py:b", "--seed=1", "--index=-2", "--epoch=3", "--occurrence=4", "--stage=test", "--loader=1"]
    words += ["--out=a b.png", "--save=x.pt", "--seeds=order=5,augment=6"]
    parsed = parser.parse_args(words)
    assert parser.parse_args(sample._words(parsed)) == parsed


@pytest.mark.parametrize(
    ("shape", "titles"),
    [
        ((16, 24), [""]),
        ((1, 16, 24), [""]),
        ((3, 16, 24), [""]),
        ((16, 24, 32), ["slice 8 of axis 0", "slice 12 of axis 1", "slice 16 of axis 2"]),
        ((2, 16, 24, 32), ["slice 8 of axis 0", "slice 12 of axis 1", "slice 16 of axis 2"]),
        ((16,), []),
        ((16, 2), []),
        ((2, 2, 16, 16, 16), []),
    ],
)
def test_what_is_an_image(shape: tuple[int, ...], titles: list[str]) -> None:
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    found = picture.planes(values)
    assert [title for title, _ in found] == titles
    assert len(picture.planes(values.to(torch.bfloat16))) == len(titles)
    assert len(picture.planes(values.numpy())) == len(titles)
    for title, plane in found:
        axis = int(title[-1]) if title else 0
        whole = values.numpy() if values.ndim == 2 or (len(shape) == 3 and shape[0] > 4) else values.numpy()[0]
        if title:
            assert np.array_equal(plane, whole.take(whole.shape[axis] // 2, axis))
        else:
            assert plane.shape == ((16, 24, 3) if shape[0] == 3 else (16, 24))


def test_no_picture_of_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="there is no image in this sample"):
        picture.write({"label": 3, "name": "x"}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
