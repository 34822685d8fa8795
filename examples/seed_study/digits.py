"""What seeds do to a small image classifier, as Picard (2021) asked it: short or long training, pre-trained or not.

    python examples/seed_study/digits.py --seeds 0:500 --out seed_study
    python examples/seed_study/digits.py --seeds 0:60 --vary each --variants short --out seed_study_sources

Needs ``pip install 'repro-callbacks[study]' scikit-learn``. The images are scikit-learn's handwritten digits (8x8
pixels, 1797 of them, bundled with the package). One training takes a fraction of a second on one core.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from repro_callbacks import SeedStudy, keys
from repro_callbacks.fingerprint.digest import digest_state

FAMOUS = 3407
SHORT, LONG = 15, 30  # epochs
VARIANTS = ("short", "long", "short-pretrained", "long-pretrained")
METRIC = "val_accuracy"


def load() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the images, split the same way for every seed: what is studied is the training, not the split."""
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    images = torch.tensor(digits.images[order], dtype=torch.float32).unsqueeze(1) / 16 - 0.3
    labels = torch.tensor(digits.target[order])
    bounds = {"train": (0, 400), "unlabelled": (400, 797), "val": (797, 1297), "holdout": (1297, 1797)}
    return {name: (images[a:b], labels[a:b]) for name, (a, b) in bounds.items()}


def make_model(classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        ),
        nn.Dropout(0.25),
        nn.Linear(128, classes),
    )


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that each can be varied alone."""
    return torch.Generator().manual_seed(keys.words64(keys.derive(seed, purpose))[0] % 2**63)


def shift(images: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Move each image by up to one pixel in each direction."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=-0.3)[:, 0]
    start = torch.randint(0, 3, (2, len(images), 1), generator=draw)
    rows, columns = start + torch.arange(8)
    return padded[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, seeds: Mapping[str, int]) -> None:
    order, augment = generator(seeds["order"], "order"), generator(seeds["augment"], "augment")
    torch.manual_seed(keys.words64(keys.derive(seeds["step"], "step"))[0] % 2**63)  # dropout
    batch, rate = 40, 0.1
    steps = len(images) // batch
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.25)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=order)[: steps * batch].split(batch):
            loss = nn.functional.cross_entropy(model(shift(images[chosen], augment)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def pretrain(path: Path, epochs: int = 10) -> None:
    """Learn, without labels and with one fixed seed, by how much an image is turned (Gidaris et al. 2018)."""
    data = load()
    images = torch.cat([data["train"][0], data["unlabelled"][0]])
    turned = torch.cat([torch.rot90(images, quarter, (2, 3)) for quarter in range(4)])
    torch.manual_seed(0)
    model = make_model(classes=4)
    train(model, turned, torch.arange(4).repeat_interleave(len(images)), epochs, keys.check_seeds(0, None))
    torch.save(model[0].state_dict(), path)


def fit(
    seed: int, seeds: Mapping[str, int] | None = None, epochs: int = SHORT, start: str | None = None
) -> dict[str, Any]:
    """Train once.

    Args:
        seed: Of everything that ``seeds`` doesn't name.
        seeds: A seed for each purpose.
        epochs: How often each of the 400 images is seen.
        start: A file of pre-trained features; only the last layer is drawn then.
    """
    seeds = keys.check_seeds(seed, seeds)
    data = load()
    torch.manual_seed(keys.words64(keys.derive(seeds["init"], "init"))[0] % 2**63)
    model = make_model(classes=10)
    if start is not None:
        model[0].load_state_dict(torch.load(start, weights_only=True))
    train(model, *data["train"], epochs, seeds)
    model.eval()
    with torch.no_grad():
        right = {name: model(data[name][0]).argmax(1) == data[name][1] for name in ("val", "holdout")}
    return {
        METRIC: right["val"].double().mean().item(),
        f"holdout_{METRIC}": right["holdout"].double().mean().item(),
        "weights": digest_state(model),
        "cases": {f"image {i:02d}": float(one) for i, one in enumerate(right["val"][:100].tolist())},
    }


def variants(names: list[str], pretrained: Path) -> dict[str, Any]:
    found = {}
    for name in names:
        bound: dict[str, Any] = {"epochs": LONG if name.startswith("long") else SHORT}
        if name.endswith("pretrained"):
            bound["start"] = str(pretrained)
        found[name] = functools.partial(fit, **bound)
    return found


def answers(runs: Any) -> str:
    """What the report doesn't ask: does a seed that is good for one training do well in another?"""
    from scipy import stats

    if "vary" in runs or runs["variant"].nunique() < 2:
        return ""
    wide = runs[runs["status"] == "done"].pivot(index="seed", columns="variant", values=METRIC).dropna()
    lines = ["", "## Is a good seed good for another training?", ""]
    names = [name for name in VARIANTS if name in wide]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            rank = stats.spearmanr(wide[a], wide[b])
            lines.append(f"- {a}, {b}: rank correlation {rank.statistic:+.2f} (p = {rank.pvalue:.2g}, n = {len(wide)})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:500", help=f"first:last, last excluded; {FAMOUS} is run too")
    parser.add_argument("--out", type=Path, default=Path("seed_study"))
    parser.add_argument("--vary", default="all", help="all, each, or purposes: order, augment, init, step")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--engine", default="processes")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()

    first, last = map(int, options.seeds.split(":"))
    famous = [FAMOUS] if options.vary == "all" else []  # where single purposes vary, it is the seed of the others
    options.out.mkdir(parents=True, exist_ok=True)
    pretrained = options.out / "pretrained.pt"
    if not pretrained.exists() and any(name.endswith("pretrained") for name in options.variants):
        torch.set_num_threads(1)
        pretrain(pretrained)

    study = SeedStudy(
        variants(options.variants, pretrained),
        seeds=[*range(first, last), *(seed for seed in famous if not first <= seed < last)],
        metric=METRIC,
        out=options.out,
        vary=options.vary,
        fixed=FAMOUS,
    )
    result = study.run(engine=options.engine, workers=options.workers, report=False)

    from repro_callbacks.study import tables
    from repro_callbacks.study.report import summary, write_report

    runs, cases = result.table(), tables.read(options.out / tables.CASES_TABLE)
    path = write_report(runs, METRIC, options.out, cases, title="Seeds and handwritten digits", highlight=famous)
    text = summary(runs, METRIC, cases, highlight=famous) + answers(runs)
    (options.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
