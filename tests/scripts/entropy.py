"""A training whose dataset makes a generator at every read, seeded by the system: it can't repeat."""

import lightning as L
import numpy as np
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng().normal(size=32).astype("float32"))


if __name__ == "__main__":
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(BoringModel(), DataLoader(Noisy(), batch_size=2))
