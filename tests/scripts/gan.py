"""A generative adversarial network with two optimizers, stepped by hand. Knows nothing of us."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class GAN(L.LightningModule):
    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.generator = nn.Sequential(nn.Linear(latent, 16), nn.LeakyReLU(), nn.Linear(16, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(), nn.Dropout(0.3), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        generator, discriminator = self.optimizers()
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)

        self.toggle_optimizer(generator)
        fake = self.generator(torch.randn(len(real), self.latent))
        loss = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        self.manual_backward(loss)
        generator.step()
        generator.zero_grad()
        self.untoggle_optimizer(generator)

        self.toggle_optimizer(discriminator)
        guesses = torch.cat([self.discriminator(real), self.discriminator(fake.detach())])
        loss = F.binary_cross_entropy_with_logits(guesses, torch.cat([ones, zeros]))
        self.log("d_loss", loss)
        self.manual_backward(loss)
        discriminator.step()
        discriminator.zero_grad()
        self.untoggle_optimizer(discriminator)

    def on_train_epoch_end(self):
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self):
        optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.generator, self.discriminator)]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in optimizers]


def main() -> None:
    angle = torch.linspace(0, 6.28, 64)
    points = TensorDataset(torch.stack([angle.cos(), angle.sin()], dim=1))
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(GAN(), DataLoader(points, batch_size=8, shuffle=True))


if __name__ == "__main__":
    main()
