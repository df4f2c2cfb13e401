"""Do step, token and mixed rewards teach? `python benchmarks/densities.py [SEED ...]`

One run a recipe and seed on the embedded student, each in a fresh process: the process reward, distillation, and the
mixture of both with the answer. A finished run in the work folder is read, not repeated; an interrupted one is taken up
again. Tune with `--split validation`; look at test once, with seeds that no tuning has seen.
"""

import argparse
from pathlib import Path
from typing import Any

from common import ROOT, print_table, require_recipe, train, write_results

from stablerank.runs.folder import RunFolder

RECIPES = ("process", "distillation", "mixture")


def measured(recipe: str, seed: int, work: Path, split: str, steps: int | None) -> dict[str, Any]:
    folder = RunFolder(work / f"{recipe}-{split}-{seed}{'' if steps is None else f'-{steps}'}")
    place, overrides = f"recipes/{recipe}.yaml", [f"seed={seed}", f"evaluation.split={split}"]
    overrides += [] if steps is None else [f"trainer.max_steps={steps}"]
    require_recipe(folder.path, place, overrides)
    summary = folder.summary() if folder.is_complete() else train(folder.path, place, overrides)
    kept = ("pass_at_1_before", "pass_at_1_after", "pass_at_1_gain", "steps", "verdict")
    means = {row["step"]: row["reward"] for row in folder.metrics.rows()}
    curve = [
        {**{key: row[key] for key in ("step", "pass_at_1", "mean_length")}, "reward": means[row["step"]]}
        for row in folder.evaluations.rows()
        if row["phase"] == "curve" and row["step"]
    ]
    return {"seed": seed, **{key: summary[key] for key in kept}, "curve": curve}


def rows(found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [recipe, str(run["seed"]), str(run["steps"]), *(interval(run[f"pass_at_1_{n}"]) for n in ("after", "gain"))]
        for recipe, runs in found.items()
        for run in runs
    ]


def interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[201, 202, 203])
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "densities", help="where the run folders go")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in arguments.recipes}
    name = "densities" if arguments.split == "test" else "densities_validation"
    settings = {key: value for key, value in vars(arguments).items() if key != "work"}
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            run = measured(recipe, seed, arguments.work.resolve(), arguments.split, arguments.steps)
            found[recipe].append(run)
            print(recipe, seed, interval(run["pass_at_1_gain"]), flush=True)
            write_results(name, settings, found)
    print_table("held-out pass@1 with 95 % intervals", ("recipe", "seed", "steps", "after", "gain"), rows(found))


if __name__ == "__main__":
    main()
