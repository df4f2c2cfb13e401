"""Does the demo learn, and at what price? `python benchmarks/demo_seeds.py [SEED ...]`

One run of the demo recipe a seed, each in a fresh process. A finished run in the work folder is read, not repeated, if
it has the very recipe that is asked for; an interrupted one is taken up again. Tune with `--split validation`; look at
test once, with seeds that no tuning has seen.
"""

import argparse
from pathlib import Path
from typing import Any

from common import DEMO, ROOT, print_table, train, write_results

from stablerank.runs.folder import RunFolder
from stablerank.training.recipe import load_recipe

GOALS = {"gain": 0.20, "train_seconds": 300.0, "telemetry_share": 0.02, "peak_memory_bytes": 2.5e9}


def run_seed(seed: int, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    folder = RunFolder(work / f"{arguments.split}-{seed}")
    overrides = [f"seed={seed}", f"evaluation.split={arguments.split}", *arguments.set]
    if folder.manifest_path.exists():
        wanted = load_recipe(ROOT / arguments.recipe, [*overrides, f"output={folder.path}"]).resolved()
        if folder.manifest()["recipe"] != wanted:
            raise SystemExit(f"{folder.path} holds a run of another recipe: delete it or choose another --work.")
    summary = folder.summary() if folder.is_complete() else train(folder.path, arguments.recipe, overrides)
    kept = ("pass_at_1_before", "pass_at_1_after", "pass_at_1_gain", "train_seconds", "peak_memory_bytes", "verdict")
    share = summary["telemetry_seconds"] / summary["train_seconds"]
    return {"seed": seed, **{key: summary[key] for key in kept}, "telemetry_share": share}


def met(run: dict[str, Any]) -> dict[str, bool]:
    """Which goals a run meets; a gain must reach its goal, a cost must not exceed it."""
    costs = {key: run[key] <= GOALS[key] for key in ("train_seconds", "telemetry_share", "peak_memory_bytes")}
    return {"gain": run["pass_at_1_gain"]["value"] >= GOALS["gain"], **costs}


def row(run: dict[str, Any]) -> tuple[str, ...]:
    intervals = (run[f"pass_at_1_{name}"] for name in ("before", "after", "gain"))
    return (
        str(run["seed"]),
        *(f"{i['value']:.3f} ({i['low']:.3f} to {i['high']:.3f})" for i in intervals),
        f"{run['train_seconds']:.0f} s",
        f"{run['telemetry_share']:.2%}",
        f"{run['peak_memory_bytes'] / 1e9:.2f} GB",
        "all" if all(run["met"].values()) else "not " + ", ".join(goal for goal, ok in run["met"].items() if not ok),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[101, 102, 103])
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--recipe", default=DEMO)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides of every run")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo-seeds", help="where the run folders go")
    arguments = parser.parse_args()

    runs = []
    for seed in arguments.seeds:
        run = run_seed(seed, arguments.work.resolve(), arguments)
        runs.append({**run, "met": met(run)})
        print(f"seed {seed}: {run['verdict']}, gain {run['pass_at_1_gain']['value']:+.3f}", flush=True)
    problems = runs[0]["pass_at_1_before"]["problems"]
    title = f"greedy pass@1 on {problems} {arguments.split} problems, with 95 % intervals"
    columns = ("seed", "before", "after", "gain", "training", "telemetry", "peak memory", "goals met")
    print_table(title, columns, [row(run) for run in runs])
    print(f"goals: {', '.join(f'{name} {goal:g}' for name, goal in GOALS.items())}")
    settings = {key: value for key, value in vars(arguments).items() if key != "work"}
    name = "demo_seeds" if arguments.split == "test" else "demo_seeds_validation"
    write_results(name, settings, {"goals": GOALS, "runs": runs})


if __name__ == "__main__":
    main()
