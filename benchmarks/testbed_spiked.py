"""Spiked random features: after a burn-in, does the gradient's nuclear rank grow with dimension, st(A) staying bounded?

``python benchmarks/testbed_spiked.py`` (two minutes on one core) takes the nuclear rank before the first step, at both
ends of theorem 3.6's window, and long after it, fits growth with dimension as powers with 95 % t intervals, and judges
by the rules in `verdicts`. One constant, where the window begins, was halved after a first look at these seeds, because
at dimension 64 it began after its end; all verdicts were the same before. The control has the same bulk and no spike.
"""

from typing import Any

import numpy as np
from common import ROOT, print_table, write_results
from testbed_features import exponent

from stablerank.testbeds.figures import save_panels
from stablerank.testbeds.random_features import SPIKES, bulk_features, descend_on, spiked_features, window

WIDTHS, SEEDS = (64, 128, 256, 512), (500, 501, 502)
POINTS = ("first", "window_start", "window_end")
CURVE_WIDTH = 256
GROWS, BOUNDED = 0.5, 0.1
FIGURE = ROOT / "docs" / "spectral-spiked.png"


def arm(kind: str) -> dict[str, Any]:
    """By width and seed: nuclear rank at each point, and stable rank."""
    found: dict[str, Any] = {name: {} for name in (*POINTS, "stable_rank")}
    for width in WIDTHS:
        paths = [
            descend_on((spiked_features if kind == "spiked" else bulk_features)(width, seed), seed, [0, *window(width)])
            for seed in SEEDS
        ]
        for index, point in enumerate(POINTS):
            found[point][width] = [path.nuclear_rank[index] for path in paths]
        found["stable_rank"][width] = [path.stable_rank for path in paths]
    return {**found, "growth": {name: exponent(found[name]) for name in (*POINTS, "stable_rank")}}


def verdicts(arms: dict[str, Any]) -> dict[str, bool]:
    """Each claim by its rule."""
    growth = arms["spiked"]["growth"]
    return {
        f"exponent of nr(G) in the window above {GROWS}": all(growth[name]["low"] > GROWS for name in POINTS[1:]),
        f"exponent of nr(G) before the first step below {GROWS}": growth["first"]["high"] < GROWS,
        f"exponent of st(A) below {BOUNDED}": growth["stable_rank"]["high"] < BOUNDED,
        f"control, no spike: exponent of st(A) above {GROWS}": arms["control"]["growth"]["stable_rank"]["low"] > GROWS,
    }


def _figure() -> None:
    steps = sorted({round(2**power) for power in np.arange(0, 14, 0.5)})
    curves = {}
    for kind, draw in (("spiked", spiked_features), ("no spike", bulk_features)):
        path = descend_on(draw(CURVE_WIDTH, SEEDS[0]), SEEDS[0], steps)
        curves[f"nr of gradient, {kind}"] = steps, path.nuclear_rank
        curves[f"st of features, {kind}"] = steps, [path.stable_rank] * len(steps)
    save_panels({f"dimension {CURVE_WIDTH}": curves}, "steps", FIGURE, log_y=True)


def main() -> None:
    arms = {kind: arm(kind) for kind in ("spiked", "control")}
    rows = [
        [kind, name, *(f"{np.mean(found[name][width]):.1f}" for width in WIDTHS), f"{fit['exponent']:.2f}"]
        for kind, found in arms.items()
        for name, fit in found["growth"].items()
    ]
    print_table("Means over seeds", ["features", "side", *map(str, WIDTHS), "exponent"], rows)
    judged = verdicts(arms)
    print_table("Verdicts", ["claim", "held"], [[claim, str(held)] for claim, held in judged.items()])
    _figure()
    settings = {"widths": WIDTHS, "seeds": SEEDS, "spikes": SPIKES, "windows": {w: window(w) for w in WIDTHS}}
    write_results("testbed_spiked", settings, {"arms": arms, "verdicts": judged})


if __name__ == "__main__":
    main()
