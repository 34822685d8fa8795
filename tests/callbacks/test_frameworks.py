"""The other ways to Lightning: the namespace ``pytorch_lightning``, LightningCLI with YAML, Hydra."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from repro_callbacks import Determinism, determinism, set_determinism
from repro_callbacks.callbacks.base import NAMESPACES
from repro_callbacks.fingerprint.digest import digest_state
from tests.callbacks import small


@pytest.fixture(autouse=True)
def unseeded(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    with determinism.preserved():
        set_determinism(None)
        yield


def trained(name: str, folder: Path, *, ckpt_path: Path | None = None, **kwargs: Any) -> tuple[str, Any]:
    module = small.net(name, late=True)
    saves = small.namespace(name).callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    small.trainer(Determinism(3407, log=False), saves, name=name, enable_checkpointing=True, **kwargs).fit(
        module, small.loader(num_workers=1 if ckpt_path else 0), small.loader(4, shuffle=False), ckpt_path=ckpt_path
    )
    return digest_state(module), module.seen


def test_both_namespaces_give_the_same_weights_and_resume(tmp_path: Path) -> None:
    found = {name: trained(name, tmp_path / name) for name in NAMESPACES}
    assert found[NAMESPACES[0]] == found[NAMESPACES[1]]
    for name in NAMESPACES:
        weights, seen = trained(name, tmp_path / "resumed" / name, ckpt_path=tmp_path / name / "step=3.ckpt")
        assert weights == found[name][0]
        assert seen == found[name][1][-len(seen) :]


class Net(L.LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.5), torch.nn.Linear(width, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Data(L.LightningDataModule):
    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self) -> Any:
        return small.loader(num_workers=self.num_workers)


CONFIG = """
seed_everything: {seed}
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: repro_callbacks.Determinism
      init_args:
        seed: {callbacks_seed}
        deterministic: warn
        seeds:
          order: 1
        log: false
model:
  width: 8
data:
  num_workers: {workers}
"""


def cli(folder: Path, *, seed: Any = 7, callbacks_seed: Any = "null", workers: int = 0) -> Any:
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(seed=seed, callbacks_seed=callbacks_seed, workers=workers))
    return LightningCLI(Net, Data, args=["fit", "--config", str(config)], save_config_callback=None)


@pytest.mark.slow
def test_lightning_cli_with_yaml(tmp_path: Path) -> None:
    made = cli(tmp_path)
    (callback,) = [callback for callback in made.trainer.callbacks if isinstance(callback, Determinism)]
    assert callback.seed == 7  # the CLI's seed_everything
    assert callback.seeds == {"order": 1, "augment": 7, "init": 7, "step": 7}
    assert callback.deterministic == "warn"

    L.seed_everything(7, verbose=False)
    module = Net(8)
    ours = Determinism(7, deterministic="warn", seeds={"order": 1}, log=False)
    small.trainer(ours).fit(module, Data())
    assert digest_state(made.model) == digest_state(module)

    assert digest_state(cli(tmp_path, workers=2).model) == digest_state(module)
    assert digest_state(cli(tmp_path, callbacks_seed=8).model) != digest_state(module)


def test_lightning_cli_refuses_a_bad_seed_by_its_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ValueError)) as caught:
        cli(tmp_path, callbacks_seed=-1)
    said = capsys.readouterr().err + str(caught.value)
    assert "seed must be an integer from 0 to 4294967295, not -1" in said


def test_hydra_instantiates_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hydra.utils import instantiate
        from omegaconf import OmegaConf

    config = OmegaConf.create(
        {"_target_": "repro_callbacks.Determinism", "seed": 5, "seeds": {"order": 1}, "log": False}
    )
    callback = instantiate(config)
    assert isinstance(callback, Determinism)
    small.trainer(callback, max_epochs=1).fit(small.net(late=True), small.loader())
    assert callback.seeds == {"order": 1, "augment": 5, "init": 5, "step": 5}
