"""GRPO on the real SmolLM2 with generated sums: `python benchmarks/smollm2_gym.py [SEED ...]`.

One run of `recipes/smollm2-gym.yaml` a seed, held-out problems of its test split before and after. A finished run in
the work folder is read, an interrupted one is taken up again: about an hour a seed on one core.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from common import ROOT, print_table, require_recipe, train, write_results

from stablerank.runs.folder import RunFolder

RECIPE = "recipes/smollm2-gym.yaml"
PART = 10
"""Steps over which the signals of training are averaged."""
SHOWN = ("reward", "completions/mean_length", "entropy")


def measured(seed: int, work: Path) -> dict[str, Any]:
    folder = RunFolder(work / f"smollm2-gym-{seed}")
    require_recipe(folder.path, RECIPE, [f"seed={seed}"])
    summary = folder.summary() if folder.is_complete() else train(folder.path, RECIPE, [f"seed={seed}"])
    rows = folder.metrics.rows()
    kept = ("pass_at_1_before", "pass_at_1_after", "pass_at_1_gain", "steps", "train_seconds", "verdict")
    parts = [rows[at : at + PART] for at in range(0, len(rows), PART)]
    means = {key: [fmean(row[key] for row in part) for part in parts] for key in SHOWN}
    return {"seed": seed, **{key: summary[key] for key in kept}, "by_ten_steps": means}


def interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="*", default=[1])
    parser.add_argument("--work", type=Path, default=ROOT / "runs")
    arguments = parser.parse_args()
    runs = [measured(seed, arguments.work.resolve()) for seed in arguments.seeds]
    rows = [
        [str(run["seed"]), *(interval(run[f"pass_at_1_{name}"]) for name in ("before", "after", "gain"))]
        for run in runs
    ]
    print_table("SmolLM2 on chain_sum, held-out pass@1", ("seed", "before", "after", "gain"), rows)
    for run in runs:
        for key, means in run["by_ten_steps"].items():
            print(f"seed {run['seed']}, {key} by ten steps:", ", ".join(f"{mean:.3g}" for mean in means))
    write_results("smollm2_gym", {"recipe": RECIPE, "seeds": arguments.seeds}, {"runs": runs})


if __name__ == "__main__":
    main()
