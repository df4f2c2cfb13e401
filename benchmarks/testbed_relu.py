"""Two-layer (leaky) ReLU networks: do the claims of 2310.18935 come out, and do the controls break them?

``python benchmarks/testbed_relu.py`` runs every world and seed (about seven minutes on one core), judges each claim by
the rules below and writes ``results/testbed_relu.json`` and ``docs/spectral-relu.png``. The rules were written before
the seeds of the run were drawn; exploration used the seeds 0 and 100 to 102. ``--seeds 1 --steps 3000`` tries it in
small and writes nothing.
"""

import argparse
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, print_table, write_results

from stablerank.testbeds.figures import save_panels
from stablerank.testbeds.two_layer_relu import (
    History,
    World,
    data,
    last_decade,
    orthogonality,
    train,
    whole_limit,
    with_normalised_steps,
)

EXPLORATORY, FIRST_SEED = 0, 200
HALF, WHOLE, MARGIN = 1.01, 0.03, 0.99
FLAT = 0.05
"""The largest rise of a half of ReLU over the last decade that counts as none: five per cent of its value."""
LAZY, COMMON = 1.0, 0.9


def worlds(steps: int) -> dict[str, World]:
    """Every arm."""
    base = {f"slope {slope:g}": World(slope=slope, steps=steps) for slope in (0.1, 0.5, 0.0)}
    normalised = {f"{name}, normalised": with_normalised_steps(world) for name, world in base.items()}
    controls = {
        "control: large init": World(init=LAZY, steps=steps),
        "control: correlated data": World(common=COMMON, steps=steps),
    }
    return {**base, **normalised, **controls}


def numbers(history: History) -> dict[str, float]:
    """What is judged of one run."""
    ratios = [ratio for ratio in history.margin_ratio if ratio == ratio]
    falls = [before - after for before, after in pairwise(ratios)]
    return {
        "half": max(history.st_plus[-1], history.st_minus[-1]),
        "whole": history.st_whole[-1],
        "rise": max(last_decade(history, history.st_plus), last_decade(history, history.st_minus)),
        "margin_ratio": history.margin_ratio[-1],
        "margin_rise": last_decade(history, history.margin_ratio),
        "largest_fall": max(falls, default=0.0),
        "loss": history.loss[-1],
    }


def verdicts(runs: dict[str, list[dict[str, float]]]) -> dict[str, bool]:
    """Each claim by its rule, over all seeds."""
    leaky, relu = [*runs["slope 0.1"], *runs["slope 0.5"]], runs["slope 0"]
    normalised = [run for name, arm in runs.items() if name.endswith("normalised") for run in arm]
    near = [
        abs(run["whole"] / whole_limit(slope) - 1) <= WHOLE for slope in (0.1, 0.5) for run in runs[f"slope {slope:g}"]
    ]
    lazy, correlated = runs["control: large init"], runs["control: correlated data"]
    return {
        f"leaky ReLU: both halves below {HALF}": all(run["half"] < HALF for run in leaky),
        f"leaky ReLU: the whole within {WHOLE:.0%} of 2(1+s^2)/(1+s)^2": all(near),
        f"ReLU: no half rises by more than {FLAT:.0%} over the last decade": all(run["rise"] <= FLAT for run in relu),
        "GD: the margin ratio rises over the last decade": all(run["margin_rise"] > 0 for run in [*leaky, *relu]),
        "leaky ReLU, GD: the margin ratio falls at no record": all(run["largest_fall"] <= 0 for run in leaky),
        f"loss-normalised steps: margin ratio at least {MARGIN}": all(
            run["margin_ratio"] >= MARGIN for run in normalised
        ),
        "control, large init: halves stay above " + str(HALF): all(run["half"] > HALF for run in lazy),
        "control, correlated data: halves stay above " + str(HALF): all(run["half"] > HALF for run in correlated),
        f"control, correlated data: the whole off its limit by more than {WHOLE:.0%}": all(
            abs(run["whole"] / whole_limit(0.1) - 1) > WHOLE for run in correlated
        ),
    }


def figure(histories: dict[str, History], path: Path) -> None:
    """Stable rank of the halves and margin ratio against steps, first seed."""
    panels: dict[str, Any] = {"st(W+) - 1": {}, "margin ratio": {}}
    for name, history in histories.items():
        if "normalised" not in name:
            panels["st(W+) - 1"][name] = history.step[1:], [value - 1 for value in history.st_plus[1:]]
        if "control" not in name:
            panels["margin ratio"][name] = history.step[1:], history.margin_ratio[1:]
    save_panels(panels, "step", path, log_y=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=World().steps)
    arguments = parser.parse_args()
    is_whole = arguments.steps == World().steps
    first = FIRST_SEED if is_whole else EXPLORATORY
    seeds = range(first, first + arguments.seeds)
    arms = worlds(arguments.steps)
    histories = {name: [train(world, seed) for seed in seeds] for name, world in arms.items()}
    runs = {name: [numbers(history) for history in arm] for name, arm in histories.items()}
    judged = verdicts(runs)
    columns = list(runs["slope 0"][0])
    rows = [[name, *(f"{np.mean([run[key] for run in arm]):.4g}" for key in columns)] for name, arm in runs.items()]
    print_table("Means over seeds at the last step", ["world", *columns], rows)
    print_table("Verdicts", ["claim", "held"], [[claim, str(held)] for claim, held in judged.items()])
    if not is_whole:
        return
    figure({name: arm[0] for name, arm in histories.items()}, ROOT / "docs" / "spectral-relu.png")
    settings = {
        "worlds": {name: asdict(world) for name, world in arms.items()},
        "seeds": list(seeds),
        "orthogonality": {name: [orthogonality(data(world, s)[0]) for s in seeds] for name, world in arms.items()},
        "rules": {"half": HALF, "whole": WHOLE, "margin": MARGIN, "flat": FLAT},
    }
    write_results("testbed_relu", settings, {"runs": runs, "verdicts": judged})


if __name__ == "__main__":
    main()
