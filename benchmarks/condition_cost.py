"""What the spectral condition costs: `python benchmarks/condition_cost.py` (about ten minutes on one core).

A recipe trained with and without `ConditionCallback` every 50 steps, each run in a fresh process, in pairs whose order
alternates (ABBA), so that a drift of the machine cancels. Both arms do the very same training (the script checks their
losses). Time is the processor's, of training alone. Beside the ratio stands the share clocked inside the runs: what the
measured steps took beyond the median of the others. The ratio carries the noise of the machine; the share does not.
The goal, at most 5 % of training time, is judged by the upper end of the share's interval.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from common import ROOT, bootstrap_interval, print_table, write_results
from telemetry_cost import ratio

GOAL, EVERY = 0.05, 50
ARMS = ("with", "without")


def run_here(recipe: str, overrides: list[str], folder: Path, with_condition: bool) -> dict[str, Any]:
    """One run in this process: CPU seconds a step, losses, and what the spectra took."""
    from transformers import TrainerCallback

    from stablerank.training.condition import ConditionCallback
    from stablerank.training.language_model.session import LanguageModelSession
    from stablerank.training.recipe import load_recipe
    from stablerank.training.session_base import Silence

    class Clock(TrainerCallback):
        marks: ClassVar[list[float]] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append(time.process_time())

        on_step_end = on_train_begin

    condition = ConditionCallback(lambda step, blocks: None, every=EVERY)

    class Session(LanguageModelSession):
        def _watchers(self, folder: Any) -> list[Any]:
            return [*super()._watchers(folder), *([condition] if with_condition else []), Clock()]

    made = Session(load_recipe(ROOT / recipe, [*overrides, f"output={folder}"]), Silence()).start([])
    seconds = [after - before for before, after in zip(Clock.marks, Clock.marks[1:], strict=False)]
    losses = [row["loss"] for row in made.metrics.rows()]
    return {"steps": seconds, "losses": losses, "spectra_wall": condition.seconds}


def run_arm(work: Path, pair: int, arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    out = work / f"{pair}-{arm}.json"
    command = [sys.executable, __file__, "--child", str(out), "--arm", arm, "--recipe", arguments.recipe]
    subprocess.run([*command, "--steps", str(arguments.steps), "--set", *arguments.set], check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(out.read_text())
    print(f"pair {pair} {arm:<8} {sum(found['steps']):.2f} s", flush=True)
    return found


def clocked(run: dict[str, Any]) -> list[float]:
    """CPU seconds of each measurement: of the measured steps beyond the median of the others."""
    plain = statistics.median(seconds for step, seconds in enumerate(run["steps"]) if step % EVERY)
    return [seconds - plain for step, seconds in enumerate(run["steps"]) if step % EVERY == 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of a run, a multiple of 50")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs, at least 2")
    parser.add_argument("--recipe", default="recipes/clm.yaml")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides of both arms")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        short = ["evaluation.every=0", "evaluation.examples=8", "geometry.every=0", f"trainer.save_steps={10**6}"]
        overrides = [f"trainer.max_steps={arguments.steps}", *short, *arguments.set]
        folder = Path(arguments.child).with_suffix("")
        Path(arguments.child).write_text(
            json.dumps(run_here(arguments.recipe, overrides, folder, arguments.arm == "with"))
        )
        return
    with tempfile.TemporaryDirectory() as work:
        pairs = [
            {arm: run_arm(Path(work), pair, arm, arguments) for arm in (ARMS if pair % 2 else reversed(ARMS))}
            for pair in range(1, arguments.repeats + 1)
        ]
    report(pairs, arguments)


def report(pairs: list[dict[str, dict[str, Any]]], arguments: argparse.Namespace) -> None:
    """Judge, print, write."""
    if len({str(run["losses"]) for pair in pairs for run in pair.values()}) != 1:
        raise SystemExit("the runs differ in their losses: the probe must not change training, nor may two runs differ")
    with_s, without_s = ([sum(pair[arm]["steps"]) for pair in pairs] for arm in ARMS)
    extra = [sum(clocked(pair["with"])) for pair in pairs]
    per_step = [statistics.median(pair["without"]["steps"]) for pair in pairs]
    one = [statistics.mean(clocked(pair["with"])[1:]) / step for pair, step in zip(pairs, per_step, strict=True)]
    results = {
        "cpu_seconds_with": with_s,
        "cpu_seconds_without": without_s,
        "cpu_seconds_clocked": extra,
        "ratio_with_to_without": ratio(with_s, without_s),
        "share_inside": ratio(extra, with_s),
        "steps_a_measurement_costs": {
            "value": statistics.mean(one),
            **dict(zip(("low", "high"), bootstrap_interval(_mean, one), strict=True)),
        },
        "goal_share": GOAL,
    }
    results["within_goal"] = results["share_inside"]["high"] <= GOAL
    names = ("ratio_with_to_without", "share_inside", "steps_a_measurement_costs")
    rows = [(name, *(f"{results[name][part]:.4f}" for part in ("value", "low", "high"))) for name in names]
    print_table(f"the condition every {EVERY} steps", ("measure", "value", "low", "high"), rows)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("child", "arm")}
    write_results("condition_cost", settings, results)


def _mean(values: Any, axis: int = -1) -> Any:
    return values.mean(axis=axis)


if __name__ == "__main__":
    main()
