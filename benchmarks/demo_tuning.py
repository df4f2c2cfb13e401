"""Which settings of the demo were tried, and how each did on validation: `python benchmarks/demo_tuning.py`.

One exploratory seed a setting, never the test split. The recipe's own settings are the first row; a run that is
finished in the work folder is read, not repeated, so each row names the threads and the commit of its own run (null
where the sources were not a clean checkout).
"""

import argparse
from pathlib import Path
from typing import Any

from common import DEMO, ROOT, print_table, train, write_results

from stablerank.runs.folder import RunFolder

SETTINGS: dict[str, list[str]] = {
    "recipe as committed": [],
    "learning rate 1e-4": ["optimiser.learning_rate=1e-4"],
    "learning rate 1e-3": ["optimiser.learning_rate=1e-3"],
    "learning rate 3e-3": ["optimiser.learning_rate=3e-3"],
    "rank 1": ["adapter.r=1", "adapter.alpha=2"],
}


def run_setting(name: str, overrides: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    folder = RunFolder(arguments.work.resolve() / name.replace(" ", "-"))
    fixed = [f"seed={arguments.seed}", "evaluation.split=validation"]
    summary = folder.summary() if folder.is_complete() else train(folder.path, DEMO, [*fixed, *overrides])
    curve = {r["step"]: r["pass_at_1"] for r in folder.evaluations.rows() if r["phase"] == "curve"}
    geometry = [r for r in folder.geometry.rows() if r["metric"] == "stable_rank" and r["step"] == summary["steps"]]
    manifest = folder.manifest()
    return {
        "setting": name,
        "overrides": overrides,
        "threads": manifest["device"]["threads"],
        "commit": None if manifest["commit"]["dirty"] else manifest["commit"]["hash"],
        **{key: summary[key] for key in ("pass_at_1_before", "pass_at_1_after", "pass_at_1_gain", "train_seconds")},
        "curve": curve,
        "mean_stable_rank": sum(row["value"] for row in geometry) / len(geometry),
    }


def row(run: dict[str, Any]) -> tuple[str, ...]:
    after, gain = run["pass_at_1_after"], run["pass_at_1_gain"]
    return (
        run["setting"],
        *(f"{run['curve'][step]:.2f}" for step in (10, 20, 30)),
        f"{after['value']:.3f} ({after['low']:.3f} to {after['high']:.3f})",
        f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
        f"{run['mean_stable_rank']:.2f}",
        f"{run['train_seconds']:.0f} s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="an exploratory seed")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "demo-tuning", help="where the run folders go")
    arguments = parser.parse_args()

    runs = []
    for name, overrides in SETTINGS.items():
        runs.append(run_setting(name, overrides, arguments))
        print(f"{name}: {runs[-1]['pass_at_1_after']['value']:.3f}", flush=True)
    columns = ("setting", "step 10", "20", "30", "after", "gain", "stable rank", "training")
    print_table("greedy pass@1 on validation problems, with 95 % intervals", columns, [row(run) for run in runs])
    write_results("demo_tuning", {"seed": arguments.seed}, {"runs": runs})


if __name__ == "__main__":
    main()
