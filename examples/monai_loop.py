"""A plain MONAI loop without Lightning: any number of workers, and exact resume from any step.

``keyed(loader, seed)`` is all that it takes. It makes each sample's random transforms a function of seed, epoch and
index, and each step's dropout a function of seed, epoch and batch. The checkpoint holds no state of any generator.

    python examples/monai_loop.py                                  # some 15 s on two cores
    python examples/monai_loop.py --num-workers 0                  # the same digest
    python examples/monai_loop.py --stop-after 110                 # as if it had been killed
    python examples/monai_loop.py --resume                         # goes on at step 100; the same digest
"""

import argparse
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric

from repro_callbacks import keyed, set_determinism
from repro_callbacks.command.demo.brain import build_network, load_brain, one_hot_prediction, train_transforms
from repro_callbacks.fingerprint.digest import digest_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--patches", type=int, default=64, help="training patches in an epoch, two in a batch")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--stop-after", type=int, help="stop after this step, without another word")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--folder", type=Path, default=Path("outputs/monai_loop"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "checkpoint.pt"

    set_determinism(seed=3407, use_deterministic_algorithms=True)
    back, front = load_brain()
    dataset = Dataset([back] * arguments.patches, train_transforms())
    loader = keyed(DataLoader(dataset, arguments.num_workers, batch_size=2, shuffle=True), seed=3407)

    network = build_network()
    loss_function = DiceCELoss(softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    total = arguments.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=total)

    first_epoch, step = 0, 0
    if arguments.resume:
        checkpoint = torch.load(path, weights_only=True)
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        loader.load_state_dict(checkpoint["loader"])
        first_epoch, step = checkpoint["epoch"], checkpoint["step"]
        print(f"resumed at step {step}, in epoch {first_epoch}")

    for epoch in range(first_epoch, arguments.epochs):
        loader.set_epoch(epoch)
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_function(network(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % arguments.save_every == 0:
                checkpoint = {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "loader": loader.state_dict(),
                    "epoch": epoch,
                    "step": step,
                }
                torch.save(checkpoint, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)  # so that a kill never leaves half a checkpoint
            if step == arguments.stop_after:
                return
        print(f"epoch {epoch}: loss {loss.item():.3f}, Dice {validate(network, front):.3f}")

    print(f"digest of the final weights: {digest_state(network)}")


def validate(network: torch.nn.Module, front: dict[str, torch.Tensor]) -> float:
    """Mean Dice of grey and white matter on the front of the brain."""
    network.eval()
    with torch.no_grad():
        predicted = one_hot_prediction(network(front["image"][None]))
    dice = DiceMetric(include_background=False, num_classes=3)
    dice(predicted, front["label"][None])
    return float(dice.aggregate())


if __name__ == "__main__":
    main()
