"""An autoencoder on small pictures, as somebody writes it who follows Lightning's introduction. Knows nothing of us."""

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split


class Strokes(Dataset):
    """Pictures of 14x14 with a bar somewhere, shifted at random whenever they are read."""

    def __init__(self, size: int = 96) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.zeros(size, 1, 14, 14)
        for image in self.images:
            row = int(torch.randint(2, 11, (1,), generator=generator))
            image[0, row : row + 2] = 1.0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        shift = int(torch.randint(-2, 3, (1,)))
        return torch.roll(self.images[index], shift, dims=-2) + 0.05 * torch.randn(1, 14, 14)


class LitAutoEncoder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(196, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 196))

    def training_step(self, batch, batch_idx):
        x = batch.flatten(1)
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x = batch.flatten(1)
        self.log("val_loss", F.mse_loss(self.decoder(self.encoder(x)), x))

    def test_step(self, batch, batch_idx):
        x = batch.flatten(1)
        self.log("test_loss", F.mse_loss(self.decoder(self.encoder(x)), x))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--start-method", choices=("fork", "spawn"))
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    arguments = parser.parse_args()

    if arguments.seed is not None:
        L.seed_everything(arguments.seed)
    train, val = random_split(Strokes(), [64, 32])
    context = arguments.start_method if arguments.workers else None
    options = {"batch_size": 8, "num_workers": arguments.workers, "multiprocessing_context": context}
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        devices=arguments.devices,
        strategy=arguments.strategy,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
    )
    model = LitAutoEncoder()
    trainer.fit(model, DataLoader(train, shuffle=True, **options), DataLoader(val, **options))
    trainer.test(model, DataLoader(val, **options), verbose=False)


if __name__ == "__main__":
    main()
