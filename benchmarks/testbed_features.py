"""Random features: does the gradient's nuclear rank grow with dimension while the features' stable rank stays bounded?

``python benchmarks/testbed_features.py`` (a minute on one core) takes the largest nuclear rank after the burn-in of
`BURN_IN` steps at each width, fits both sides' growth as powers of the width with 95 % t intervals, and judges by the
rules in `verdicts`, written before the seeds were drawn.
"""

from typing import Any

import numpy as np
from common import print_table, write_results
from scipy import stats

from stablerank.testbeds.random_features import ACTIVATIONS, descend

WIDTHS, SEEDS = (64, 128, 256, 512), (100, 101, 102)
BURN_IN, STEPS = 4, (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GROWS, BOUNDED = 0.5, 0.1


def exponent(values: dict[int, list[float]]) -> dict[str, float]:
    """p of ``value ~ width^p`` with its interval."""
    pairs = [(width, value) for width, column in values.items() for value in column]
    fit = stats.linregress(*np.log(np.asarray(pairs)).T)
    half = stats.t.ppf(0.975, len(pairs) - 2) * fit.stderr
    return {"exponent": float(fit.slope), "low": float(fit.slope - half), "high": float(fit.slope + half)}


def arm(activation: str) -> dict[str, Any]:
    """Both sides at every width and seed, and their growth."""
    paths = {width: [descend(activation, width, seed, STEPS) for seed in SEEDS] for width in WIDTHS}
    late = [index for index, step in enumerate(STEPS) if step >= BURN_IN]
    peaks = {width: [max(path.nuclear_rank[i] for i in late) for path in column] for width, column in paths.items()}
    stable = {width: [path.stable_rank for path in column] for width, column in paths.items()}
    first = {width: [path.nuclear_rank[0] for path in column] for width, column in paths.items()}
    growth = {"nuclear_rank": exponent(peaks), "stable_rank": exponent(stable)}
    return {"nuclear_rank_first": first, "nuclear_rank": peaks, "stable_rank": stable, "growth": growth}


def verdicts(arms: dict[str, Any]) -> dict[str, bool]:
    """Each claim by its rule."""
    growth = {name: found["growth"] for name, found in arms.items()}
    plain = ("relu", "squared_relu")
    return {
        f"exponent of nr(G) above {GROWS}": all(growth[name]["nuclear_rank"]["low"] > GROWS for name in plain),
        f"exponent of st(A) below {BOUNDED}": all(growth[name]["stable_rank"]["high"] < BOUNDED for name in plain),
        f"SwiGLU: exponent of st(A) above {GROWS}": growth["swiglu"]["stable_rank"]["low"] > GROWS,
    }


def _readable(fit: dict[str, float]) -> str:
    return f"{fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"


def main() -> None:
    arms = {name: arm(name) for name in ACTIVATIONS}
    rows = [
        [name, side, *(f"{np.mean(found[side][width]):.1f}" for width in WIDTHS), _readable(found["growth"][side])]
        for name, found in arms.items()
        for side in ("nuclear_rank", "stable_rank")
    ]
    print_table("Means over seeds", ["features", "side", *map(str, WIDTHS), "exponent"], rows)
    judged = verdicts(arms)
    print_table("Verdicts", ["claim", "held"], [[claim, str(held)] for claim, held in judged.items()])
    settings = {"widths": WIDTHS, "seeds": SEEDS, "steps": STEPS, "burn_in": BURN_IN}
    write_results("testbed_features", settings, {"arms": arms, "verdicts": judged})


if __name__ == "__main__":
    main()
