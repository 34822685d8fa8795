"""What seeds do to a small segmentation of brain tissue, as Åkesson et al. (2024) asked it of nnU-Net.

    python examples/seed_study/brain.py --seeds 0:50 --out brain_study
    python examples/seed_study/brain.py --seeds 0:20 --vary each --variants short --out brain_study_sources

Needs ``pip install 'repro-callbacks[demo,study]'``. The training is the demo's: the MNI152 template that nilearn
carries, random patches of its back, MONAI's random transforms, a small 3D UNet, Lightning with ``Determinism``. It is
measured on the front of the brain: the half nearer to the back is the validation set, the other half is held out. A
case is a coronal slice, for want of patients. ``--epochs`` and ``--patches`` make it as long as a GPU allows.
"""

from __future__ import annotations

import argparse
import functools
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from repro_callbacks import Determinism, SeedStudy, keys, set_determinism
from repro_callbacks.fingerprint.digest import digest_state

FAMOUS = 3407
METRIC = "val_dice"
SLICES = 17  # in each half; the six frontmost slices of the volume hold no white matter


def slice_dice(prediction: torch.Tensor, label: torch.Tensor) -> list[float]:
    """Return the Dice of each coronal slice, the mean of grey and white matter.

    Args:
        prediction: Tissue of each voxel, integers of shape (x, y, z).
        label: The same from the maps.
    """
    scores = []
    for tissue in (1, 2):
        ours, theirs = (volume == tissue for volume in (prediction, label))
        overlap, total = (ours & theirs).sum((0, 2)), ours.sum((0, 2)) + theirs.sum((0, 2))
        scores.append(2 * overlap.double() / total.double())
    return torch.stack(scores).mean(0).tolist()


def fit(
    seed: int, seeds: Mapping[str, int] | None = None, epochs: int = 8, patches: int = 64, accelerator: str = "cpu"
) -> dict[str, Any]:
    """Train once, and measure on the front of the brain.

    Args:
        seed: Of everything that ``seeds`` doesn't name.
        seeds: A seed for each purpose.
        epochs: How often ``patches`` random patches are seen.
        patches: Patches in an epoch, two in a batch.
        accelerator: As Lightning names it.
    """
    import lightning as L

    from repro_callbacks.command.demo.brain import BrainPatches, BrainSegmenter

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    seeds = keys.check_seeds(seed, seeds)
    set_determinism(seeds["init"])
    model = BrainSegmenter()
    data = BrainPatches(patches, num_workers=0)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        callbacks=[Determinism(seed, seeds=seeds, log=False)],
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    model.eval()
    with torch.no_grad():
        prediction = model(data.front["image"][None]).argmax(1)[0]
    scores = slice_dice(prediction, data.front["label"][0])
    halves = {METRIC: scores[:SLICES], f"holdout_{METRIC}": scores[SLICES : 2 * SLICES]}
    return {
        **{name: sum(half) / len(half) for name, half in halves.items()},
        "weights": digest_state(model),
        "cases": {f"slice {number:02d}": score for number, score in enumerate(scores[:SLICES])},
    }


def tests_between_seeds(cases: Any) -> str:
    """Åkesson's question: of how many other seeds does a test over cases say that the best seed's model is better?

    Every run is the same learning algorithm, so every such difference is a false alarm about the algorithm.
    """
    from scipy import stats

    lines = ["", "## What do tests over cases say of two seeds of one and the same training?", ""]
    for variant, table in cases.groupby("variant"):
        wide = table.pivot(index="case", columns="seed", values=METRIC)
        best = wide.mean().idxmax()
        others = [seed for seed in wide if seed != best]
        pairs = [(a, b) for number, a in enumerate(wide) for b in list(wide)[number + 1 :]]
        for name, test in (("paired t-test", stats.ttest_rel), ("Wilcoxon signed-rank test", stats.wilcoxon)):
            beaten = sum(float(test(wide[best], wide[seed]).pvalue) < 0.05 for seed in others)
            found = sum(float(test(wide[a], wide[b]).pvalue) < 0.05 for a, b in pairs)
            lines.append(
                f"- {variant}, {name}: the best seed ({best}) is significantly better (p < 0.05) than {beaten} of "
                f"{len(others)} others ({beaten / len(others):.0%}); of all {len(pairs)} pairs, "
                f"{found / len(pairs):.0%} differ significantly"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:50", help=f"first:last, last excluded; {FAMOUS} is run too")
    parser.add_argument("--out", type=Path, default=Path("brain_study"))
    parser.add_argument("--vary", default="all", help="all, each, or purposes: order, augment, init, step")
    parser.add_argument("--variants", nargs="+", choices=("short", "long"), default=["short", "long"])
    parser.add_argument("--epochs", type=int, default=4, help="of the short training; the long one has twice as many")
    parser.add_argument("--patches", type=int, default=64, help="in an epoch")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--engine", default="processes")
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()

    first, last = map(int, options.seeds.split(":"))
    famous = [FAMOUS] if options.vary == "all" else []
    lengths = {"short": options.epochs, "long": 2 * options.epochs}
    study = SeedStudy(
        {
            name: functools.partial(fit, epochs=lengths[name], patches=options.patches, accelerator=options.accelerator)
            for name in options.variants
        },
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
    path = write_report(runs, METRIC, options.out, cases, title="Seeds and brain tissue", highlight=famous)
    text = summary(runs, METRIC, cases, highlight=famous)
    if options.vary == "all" and len(runs) > 2:
        text += tests_between_seeds(cases)
    (options.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
