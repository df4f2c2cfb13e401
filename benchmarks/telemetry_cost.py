"""What the update geometry costs: `python benchmarks/telemetry_cost.py`.

The demo recipe trained with and without telemetry, each in a fresh process, in pairs whose order alternates (ABBA), so
that a drift of the machine cancels. Both arms do the very same training (the script checks their losses), and only
training time counts. Beside the A/B ratio stands the share that the run itself clocked inside its telemetry: the
ratio carries the noise of the machine, the share misses what telemetry does to caches.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import DEMO, ROOT, bootstrap_interval, print_table, train, write_results

from stablerank.runs.tables import JsonlTable
from stablerank.training.recipe import load_recipe

GOAL = 0.02
ARMS = {"with": "geometry.every=10", "without": "geometry.every=0"}


def run_arm(work: Path, pair: int, arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    folder = work / f"{pair}-{arm}"
    # Two evaluations are part of every run; they are short here and outside the clock of training anyway.
    held_out = "problems" if load_recipe(ROOT / arguments.recipe).objective == "grpo" else "examples"
    short = [f"trainer.max_steps={arguments.steps}", "evaluation.every=0", f"evaluation.{held_out}=8"]
    summary = train(folder, arguments.recipe, [*short, *arguments.set, ARMS[arm]])
    losses = [row["loss"] for row in JsonlTable(folder / "metrics.jsonl").rows()]
    print(f"pair {pair} {arm:<8} {summary['train_seconds']:.2f} s", flush=True)
    return {"train": summary["train_seconds"], "telemetry": summary["telemetry_seconds"], "losses": losses}


def measure(arguments: argparse.Namespace) -> list[dict[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as work:
        return [
            {arm: run_arm(Path(work), pair, arm, arguments) for arm in (ARMS if pair % 2 else reversed(ARMS))}
            for pair in range(1, arguments.repeats + 1)
        ]


def ratio_of_totals(over: Any, under: Any, axis: int = -1) -> Any:
    return np.sum(over, axis=axis) / np.sum(under, axis=axis)


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    low, high = bootstrap_interval(ratio_of_totals, over, under)
    return {"value": float(ratio_of_totals(over, under)), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of a run")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs, at least 2")
    parser.add_argument("--recipe", default=DEMO)
    parser.add_argument("--results", default="telemetry_cost", help="name of the results file")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides of both arms")
    arguments = parser.parse_args()

    pairs = measure(arguments)
    if len({str(run["losses"]) for pair in pairs for run in pair.values()}) != 1:
        raise SystemExit("the runs differ in their losses: telemetry must not change training, nor may two runs differ")
    with_s, without_s = ([pair[arm]["train"] for pair in pairs] for arm in ARMS)
    telemetry_s = [pair["with"]["telemetry"] for pair in pairs]
    cost, share = ratio(with_s, without_s), ratio(telemetry_s, with_s)
    measures = (
        ("A/B wall time, with : without", cost, 1 + GOAL),
        ("share clocked inside the run", share, GOAL),
    )
    rows = [
        (name, f"{found['value']:.4f}", f"{found['low']:.4f} to {found['high']:.4f}", f"at most {goal:g}")
        for name, found, goal in measures
    ]
    title = f"cost of update geometry every 10 steps, {arguments.repeats} pairs of {arguments.steps} steps"
    print_table(title, ("measure", "value", "95 % interval", "goal"), rows)
    results = {
        "train_seconds_with": with_s,
        "train_seconds_without": without_s,
        "telemetry_seconds": telemetry_s,
        "ratio_with_to_without": cost,
        "share_inside": share,
        "goal_share": GOAL,
    }
    write_results(arguments.results, vars(arguments), results)


if __name__ == "__main__":
    main()
