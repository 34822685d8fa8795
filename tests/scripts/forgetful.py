"""A training that keeps a number outside of the checkpoint, so that a resumed run can't go on as it was."""

import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel


class Forgetful(BoringModel):
    seen = 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        loss = super().training_step(batch, batch_idx)["loss"]
        return loss * self.seen


if __name__ == "__main__":
    trainer = L.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Forgetful())
