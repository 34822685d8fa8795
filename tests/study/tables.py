"""Tables of runs and cases as a study writes them, with scores drawn from a fixed generator."""

import numpy as np
import pandas as pd


def runs(n=40, variants=("",), shift=0.0, seed=0):
    """Runs that all finished: ``val_dice`` with a standard deviation of 0.004; each further variant better by shift."""
    rng = np.random.default_rng(seed)
    talent = rng.normal(0, 0.003, n)
    rows = []
    for place, variant in enumerate(variants):
        for i in range(n):
            rows.append(
                {
                    "seed": i,
                    "variant": variant,
                    "status": "done",
                    "val_dice": 0.81 + shift * place + talent[i] + rng.normal(0, 0.0026),
                    "holdout_val_dice": 0.80 + talent[i] + rng.normal(0, 0.0026),
                    "weights": f"{rng.integers(2**60):015x}",
                    "seconds": 1.0 + i,
                }
            )
    table = pd.DataFrame(rows)
    return table if variants != ("",) else table.drop(columns="variant")


def cases(seeds=10, n=30, seed=0):
    """Right or wrong for each seed and case; the first five cases are tossed, the rest is always right."""
    rng = np.random.default_rng(seed)
    rows = [(s, f"p{c:02d}", int(c >= 5 or rng.random() < 0.5)) for s in range(seeds) for c in range(n)]
    return pd.DataFrame(rows, columns=["seed", "case", "right"])
