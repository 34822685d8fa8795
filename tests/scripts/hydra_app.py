"""A training configured by Hydra, with a folder of its own for each run. Knows nothing of us."""

import hydra
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path=None)
def main(config: DictConfig) -> None:
    trainer = L.Trainer(
        max_steps=config.get("steps", 4),
        accelerator="cpu",
        devices=config.get("devices", 1),
        strategy=config.get("strategy", "auto"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(BoringModel())


if __name__ == "__main__":
    main()
