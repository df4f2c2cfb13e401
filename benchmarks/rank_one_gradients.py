"""Does the gradient's rank make an update's rank fall as a run overfits? `python benchmarks/rank_one_gradients.py`

The control of the overfitting study: full fine-tuning of every block's matrices by plain gradient descent. Each step's
gradient is as it comes (``whole``), or its leading singular pair alone, scaled to the gradient's own norm (``rank
one``), so that both arms take steps of like length. Under the second the update's rank is at most the number of steps
taken. Language modelling and DPO on the texts of studies/overfitting-signature, by TRL's own trainers.

Read: whether the held-out loss rises, and the update's stable rank where it was lowest, at the end, and as a trend
(Kendall's tau with the step) from there. Rates were set with seed 940; ``--seeds`` are fresh. Finished runs in the work
folder are read, not repeated.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from common import ROOT, print_table, write_results
from datasets import Dataset
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from stablerank.dynamics.overfitting import Course, ranks_at
from stablerank.runs.atomic import write_json
from stablerank.training.recipe import load_recipe
from stablerank.training.telemetry import GeometryCallback, initial_weights
from stablerank.zoo.resolve import resolve

OBJECTIVES = ("clm", "dpo")
ARMS = ("whole", "rank one")
RATES = {"clm": 0.5, "dpo": 0.002}
SEEDS = (941, 942, 943, 944, 945)
STEPS = {"clm": 300, "dpo": 144}
EVERY, HELD_OUT = 12, 24
MEASURES = ("held_out_rise", "rank_at_best", "rank_at_end", "trend_after")


class RankOneGradients(TrainerCallback):
    """Every trained matrix's gradient becomes its leading singular pair, of the whole gradient's norm."""

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in kwargs["model"].parameters():
            if parameter.grad is not None:
                left, values, right = torch.linalg.svd(parameter.grad, full_matrices=False)
                parameter.grad.copy_(torch.outer(left[:, 0], right[0]) * torch.linalg.vector_norm(values))


def trainer_of(objective: str, seed: int, rate: float, steps: int, folder: Path) -> Any:
    recipe = load_recipe(ROOT / f"studies/overfitting-signature/{objective}.yaml")
    place = resolve(recipe.model.path)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name and parameter.ndim == 2)
    columns = ("prompt", "completion") if objective == "clm" else ("prompt", "chosen", "rejected")
    train, held_out = (
        Dataset.from_list([{name: row[name] for name in columns} for row in rows])
        for rows in (recipe.data.train_rows(), recipe.data.held_out_rows("validation", HELD_OUT))
    )
    settings = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": recipe.loss_settings["per_device_train_batch_size"],
        "max_length": recipe.loss_settings["max_length"],
        "learning_rate": rate,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "eval_strategy": "steps",
        "eval_steps": EVERY,
        "eval_on_start": True,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    parts = {"model": model, "train_dataset": train, "eval_dataset": {"train": train, "held": held_out}}
    if objective == "clm":
        return SFTTrainer(args=SFTConfig(**settings), processing_class=tokenizer, **parts)
    return DPOTrainer(
        args=DPOConfig(beta=recipe.loss_settings["beta"], **settings), processing_class=tokenizer, **parts
    )


def run(objective: str, arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, float | None]:
    """What is read of one run; its course is kept in the work folder."""
    rate, steps = arguments.rate or RATES[objective], arguments.steps or STEPS[objective]
    place = arguments.work / f"{objective}-{arm.replace(' ', '-')}-{rate:g}-{steps}-{seed}.json"
    if not place.exists():
        set_seed(seed)
        trainer = trainer_of(objective, seed, rate, steps, arguments.work / "trainer")
        rows: list[dict[str, Any]] = []
        telemetry = GeometryCallback(
            lambda step, found: rows.extend(map(asdict, found)),
            every=EVERY,
            seed=seed,
            initial=initial_weights(trainer.model),
        )
        trainer.add_callback(telemetry)
        if arm == "rank one":
            trainer.add_callback(RankOneGradients())
        trainer.train()
        kept = [row for row in rows if row["kind"] == "update" and row["metric"] == "stable_rank"]
        write_json(place, {"evaluations": evaluations(trainer.state.log_history), "geometry": kept})
    found = json.loads(place.read_text())
    return reading(Course.of(found["evaluations"], found["geometry"]))


def evaluations(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL's evaluations as rows of a run: the losses of training and held-out texts by step, the first before it."""
    losses: dict[int, dict[str, float]] = {}
    for row in log:
        for part, name in (("train", "loss_train"), ("held", "loss")):
            if f"eval_{part}_loss" in row:
                losses.setdefault(int(row["step"]), {})[name] = row[f"eval_{part}_loss"]
    return [
        {"phase": "curve" if step else "before", "step": step, **found, "loss_low": found["loss"]}
        for step, found in losses.items()
    ]


def reading(course: Course) -> dict[str, float | None]:
    best, last = course.best, course.moments[-1]
    assert best is not None
    trend = [tau for tau in course.trend(course.updates, first=best.step).values() if tau is not None]
    return {
        "best_step": best.step,
        "train_end": last.train / course.train_before,
        "held_out_rise": last.held_out - best.held_out,
        "rank_at_best": _mean(list(ranks_at(course.updates, best.step).values())),
        "rank_at_end": _mean(list(ranks_at(course.updates, last.step).values())),
        "trend_after": _mean(trend),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def interval(values: Sequence[float | None]) -> dict[str, float] | None:
    """Student's, over seeds; None where a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < max(2, len(values)):
        return None
    half = stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5
    return {"value": fmean(known), "low": fmean(known) - float(half), "high": fmean(known) + float(half)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="of both objectives, instead of those of the script")
    parser.add_argument("--rate", type=float, help="of both objectives, instead of those of the script")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "rank-one-gradients")
    parser.add_argument("--dry", action="store_true", help="print, and write no file; so do --steps and --rate")
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)

    rows = []
    for objective in arguments.objectives:
        for arm in ARMS:
            runs = [run(objective, arm, seed, arguments) for seed in arguments.seeds]
            print(objective, arm, runs, flush=True)
            measures = {name: interval([one[name] for one in runs]) for name in MEASURES}
            rows.append({"objective": objective, "arm": arm, "runs": runs, "measures": measures})
    shown = [
        (f"{row['objective']}, {row['arm']}", *(f"{m['value']:+.2f}" if m else "" for m in row["measures"].values()))
        for row in rows
    ]
    print_table("gradients as they come, and of rank one", ("arm", *MEASURES), shown)
    if not (arguments.dry or arguments.steps or arguments.rate):
        settings = {"seeds": arguments.seeds, "steps": STEPS, "rates": RATES, "every": EVERY}
        write_results("rank_one_gradients", settings, {"rows": rows})


if __name__ == "__main__":
    main()
