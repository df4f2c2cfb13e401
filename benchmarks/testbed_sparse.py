"""Sparse regression: which blocks should take the spectral step, and does the condition know?

``python benchmarks/testbed_sparse.py`` chooses each rule's multipliers, one a kind of step, on an exploratory seed by
the training loss, then runs fresh seeds once (about ten minutes on one core at the default size; ``--inputs 128`` is
the paper's, and takes a day). Losses are compared as logarithms, paired by seed, with 95 % t intervals; the rules in
`verdicts` were written before the fresh seeds were drawn. Resumable: an arm that is done is not run again.
"""

import argparse
from itertools import product
from typing import Any

import numpy as np
from common import ROOT, print_table, with_kept, write_results
from scipy import stats

from stablerank.testbeds.figures import save_panels
from stablerank.testbeds.sparse_regression import RULES, Course, train

MULTIPLIERS, EXPLORATORY, FRESH = (0.005, 0.015, 0.05, 0.15, 0.5), 0, (600, 601, 602)
STEPS, RECORD = 400, (0, 10, 50, 100, 200, 399)
WORLDS = {"squared ReLU": False, "SwiGLU": True}
ARMS = tuple(f"{world} | {rule}" for world in WORLDS for rule in RULES)
FIGURE = ROOT / "docs" / "spectral-sparse.png"


Pair = tuple[float, float]


def grid(rule: str) -> list[Pair]:
    """Multipliers of Euclidean and spectral steps; of a kind that the rule never takes, one is enough."""
    first = MULTIPLIERS[:1] if rule == "spectral" else MULTIPLIERS
    second = MULTIPLIERS[:1] if rule == "euclidean" else MULTIPLIERS
    return list(product(first, second))


def course(arm: str, multipliers: Pair, seed: int, size: dict[str, int]) -> Course:
    world, rule = arm.split(" | ")
    return train(rule, gated=WORLDS[world], multipliers=multipliers, seed=seed, steps=STEPS, record=set(RECORD), **size)


def run_arm(arm: str, size: dict[str, int]) -> dict[str, Any]:
    tried = {pair: _last(course(arm, pair, EXPLORATORY, size)) for pair in grid(arm.split(" | ")[1])}
    best = min(tried, key=tried.__getitem__)
    fresh = [course(arm, best, seed, size) for seed in FRESH]
    return {
        "arm": arm,
        "tried": [[*pair, _finite(loss)] for pair, loss in tried.items()],
        "multipliers": best,
        "train": [_finite(_last(each)) for each in fresh],
        "test": [_finite(each.test) for each in fresh],
        "spectral_share": [each.spectral_share for each in fresh],
        "curve": [_finite(loss) for loss in fresh[0].train],
        "table": fresh[0].table,
    }


def _last(found: Course) -> float:
    return found.train[-1] if len(found.train) == STEPS + 1 and np.isfinite(found.train[-1]) else float("inf")


def _finite(loss: float) -> float | None:
    return float(loss) if np.isfinite(loss) else None


def ahead(arms: dict[str, Any], better: str, worse: str) -> dict[str, float] | None:
    """Logarithm of the training loss of ``worse`` over ``better``, a mean over seeds; None where one exploded."""
    pairs = list(zip(arms[better]["train"], arms[worse]["train"], strict=True))
    if any(loss is None for pair in pairs for loss in pair):
        return None
    logs = [float(np.log(behind / first)) for first, behind in pairs]
    half = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
    return {"value": float(np.mean(logs)), "low": float(np.mean(logs) - half), "high": float(np.mean(logs) + half)}


def verdicts(arms: dict[str, Any]) -> dict[str, str]:
    """Each claim by its rule."""

    def outcome(world: str, better: str, worse: str) -> str:
        found = ahead(arms, f"{world} | {better}", f"{world} | {worse}")
        if found is None:
            return "inconclusive"
        return "confirmed" if found["low"] > 0 else "falsified" if found["high"] < 0 else "inconclusive"

    return {
        "squared ReLU: spectral steps in the middle beat Euclidean ones": outcome(
            "squared ReLU", "middle", "euclidean"
        ),
        "squared ReLU: in the middle they beat those at the ends": outcome("squared ReLU", "middle", "ends"),
        "SwiGLU: Euclidean beats spectral in the middle": outcome("SwiGLU", "euclidean", "middle"),
        **{f"{world}: the condition beats its opposite": outcome(world, "condition", "against") for world in WORLDS},
        **{
            f"{world}: the condition beats the spectral step everywhere": outcome(world, "condition", "spectral")
            for world in WORLDS
        },
    }


def _figure(arms: dict[str, Any]) -> None:
    """Of the arms that are done."""
    panels: dict[str, Any] = {}
    for arm, found in arms.items():
        world, rule = arm.split(" | ")
        curve = [np.nan if loss is None else loss for loss in found["curve"]]
        panels.setdefault(world, {})[rule] = range(1, len(curve) + 1), curve
    save_panels(panels, "step", FIGURE, log_y=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=24)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--results", default="testbed_sparse", help="name of the results file")
    arguments = parser.parse_args()
    size = {"inputs": arguments.inputs, "samples": arguments.samples}
    settings = {**size, "steps": STEPS, "multipliers": MULTIPLIERS, "exploratory": EXPLORATORY, "fresh": FRESH}
    for arm in ARMS:
        kept = with_kept(arguments.results, settings, "arms", [], key="arm", order=ARMS)
        if arm in {each["arm"] for each in kept}:
            continue
        done = with_kept(arguments.results, settings, "arms", [run_arm(arm, size)], key="arm", order=ARMS)
        by_name = {each["arm"]: each for each in done}
        judged = verdicts(by_name) if len(done) == len(ARMS) else {}
        write_results(arguments.results, settings, {"arms": done, "verdicts": judged})
        found = by_name[arm]
        print(arm, found["multipliers"], found["train"], found["test"], flush=True)
        _figure(by_name)
        if judged:
            print_table("Verdicts", ["claim", "verdict"], [[claim, outcome] for claim, outcome in judged.items()])


if __name__ == "__main__":
    main()
