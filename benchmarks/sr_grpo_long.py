"""What becomes of stable rank as a reward over 500 steps. `python benchmarks/sr_grpo_long.py`

The embedded student under SR-GRPO (recipes/sr-grpo.yaml), in three arms by whose states are read; the KL reference is
always the student that training began with:

    frozen     that same student, as published
    snapshot   the policy of the last multiple of 50 steps
    policy     the policy itself

Every 50 steps, on fresh rollouts of held-out prompts (eight each, common random numbers): the KL of training, accuracy,
length, the distribution of the stable rank, its correlation with length inside groups, and how often it is higher for a
right completion than for a wrong one of the same prompt (AUC inside groups, ties as half, intervals by prompt), over
all pairs and over those of equal length. Once under the original student and once under the arm's reader, which for
`snapshot` is the copy that paid for the fifty steps before.

A finished run and a finished measurement in the work folder are read; an interrupted run is taken up again. A run takes
four minutes on one core, its measurements another two.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from common import ROOT, print_table, require_recipe, train, write_results
from peft import PeftModel
from sr_readings import SCOPES, Floats, stable_ranks, within_group_auc
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.dynamics.batch import reward_length_correlation
from stablerank.errors import DataError
from stablerank.evaluation.generate import completions_of, fitting_ids
from stablerank.evaluation.held_out import rollout_of
from stablerank.evaluation.sampling import Sampling
from stablerank.evaluation.statistics import mean_interval
from stablerank.rewards.outcome import MathVerifyReward
from stablerank.runs.atomic import write_json
from stablerank.runs.folder import RunFolder
from stablerank.tasks.specs import ArithmeticSpec
from stablerank.zoo.resolve import resolve

RECIPE, MODEL = "recipes/sr-grpo.yaml", "zoo:arith-student"
ARMS = {
    "frozen": "{{kind: stable_rank, of: frozen}}",
    "snapshot": "{{kind: stable_rank, of: snapshot, refresh: {every}}}",
    "policy": "{{kind: stable_rank, of: policy}}",
}
BATCH, LONGEST = 16, 80
SAMPLES = 8
SEED_OF_SAMPLES = 7
LAST = 10
"""Logged steps over which the KL is averaged."""


def trained(arm: str, seed: int, arguments: argparse.Namespace) -> RunFolder:
    folder = RunFolder(arguments.work.resolve() / f"{arm}-{seed}-{arguments.steps}")
    overrides = [
        f"reward={ARMS[arm].format(every=arguments.every)}",
        f"seed={seed}",
        f"trainer.max_steps={arguments.steps}",
        f"trainer.save_steps={arguments.every}",
        f"trainer.save_total_limit={arguments.steps // arguments.every + 1}",
        f"trainer.per_device_train_batch_size={BATCH}",
        "evaluation.split=validation",
        "evaluation.problems=100",
        "evaluation.every=0",
        "geometry.every=0",
    ]
    require_recipe(folder.path, RECIPE, overrides)
    if not folder.is_complete():
        train(folder.path, RECIPE, overrides)
    return folder


def policy_at(folder: RunFolder, step: int) -> Any:
    """The policy of before training, or of a checkpoint."""
    student = AutoModelForCausalLM.from_pretrained(resolve(MODEL))
    if step:
        student = PeftModel.from_pretrained(student, folder.checkpoints_path / f"checkpoint-{step}").merge_and_unload()
    return student.eval()


def reader_at(arm: str, folder: RunFolder, step: int, every: int) -> Any:
    """The model whose states the arm was paid by in the steps before this one."""
    read = {"frozen": 0, "policy": step, "snapshot": max(step - every, 0)}[arm]
    return policy_at(folder, read)


def measured(arm: str, folder: RunFolder, step: int, arguments: argparse.Namespace) -> dict[str, Any]:
    place = folder.path / f"measured-{step}-{arguments.prompts}.json"
    if not place.exists():
        write_json(place, _measure(arm, folder, step, arguments))
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def _measure(arm: str, folder: RunFolder, step: int, arguments: argparse.Namespace) -> dict[str, Any]:
    problems = ArithmeticSpec(kind="arithmetic").held_out_rows("validation", arguments.prompts)
    tokenizer = AutoTokenizer.from_pretrained(resolve(MODEL), padding_side="left")
    prompts = fitting_ids(tokenizer, [row["prompt"] for row in problems], LONGEST, None)
    sampling = Sampling(SAMPLES, seed=SEED_OF_SAMPLES)
    drawn = completions_of(
        policy_at(folder, step), tokenizer, prompts, sampling, numbers=range(len(prompts)), max_new_tokens=LONGEST
    )
    right_GK = np.array([_verdicts(row, group) for row, group in zip(problems, drawn, strict=True)])
    tokens_GK = np.array([[one.tokens for one in group] for group in drawn], np.float64)
    texts = [(prompt, list(one.ids)) for prompt, group in zip(prompts, drawn, strict=True) for one in group]
    readers = {"reference": policy_at(folder, 0), "reader": reader_at(arm, folder, step, arguments.every)}
    return {
        "step": step,
        "accuracy": _interval(right_GK.mean(1)),
        "length": float(tokens_GK.mean()),
        "mixed_groups": int(((right_GK.mean(1) > 0) & (right_GK.mean(1) < 1)).sum()),
        "longer_auc": _interval(within_group_auc(tokens_GK, right_GK, tokens_GK)),
        **{
            name: {
                scope: _described(ranks.reshape(right_GK.shape), right_GK, tokens_GK)
                for scope, ranks in stable_ranks(model, texts).items()
            }
            for name, model in readers.items()
        },
    }


def _verdicts(row: dict[str, Any], completions: list[Any]) -> list[float]:
    rollout = rollout_of([row] * len(completions), completions)
    return MathVerifyReward("answer")(rollout).trajectory_rewards_N.tolist()


def _described(rank_GK: Floats, right_GK: Floats, tokens_GK: Floats) -> dict[str, Any]:
    group_GK = np.arange(len(rank_GK))[:, None] + np.zeros_like(rank_GK)
    correlation = reward_length_correlation(rank_GK.ravel(), tokens_GK.ravel(), group_GK.ravel())
    return {
        "mean": float(np.nanmean(rank_GK)),
        "deviation": float(np.nanstd(rank_GK)),
        "quantiles": [float(value) for value in np.nanquantile(rank_GK, (0.1, 0.5, 0.9))],
        "length_correlation": None if np.isnan(correlation) else correlation,
        "auc": _interval(within_group_auc(rank_GK, right_GK, tokens_GK)),
        "matched_auc": _interval(within_group_auc(rank_GK, right_GK, tokens_GK, matched=True)),
    }


def _interval(values_G: Floats) -> dict[str, Any] | None:
    """The mean over prompts; None where no prompt has a value."""
    try:
        found = mean_interval(values_G.tolist())
    except DataError:
        return None
    return {"value": found.value, "low": found.low, "high": found.high, "prompts": found.problems}


def course(arm: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    folder = trained(arm, seed, arguments)
    logged = folder.metrics.rows()
    points = []
    for step in range(0, arguments.steps + 1, arguments.every):
        last = [row["kl"] for row in logged if step - LAST < row["step"] <= step]
        points.append({**measured(arm, folder, step, arguments), "kl": fmean(last) if last else 0.0})
    return points


def shown(interval: dict[str, Any] | None) -> str:
    return "" if interval is None else "{value:.2f} ({low:.2f} to {high:.2f})".format(**interval)


def rows(found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [
            arm,
            str(point["step"]),
            f"{point['kl']:.3f}",
            shown(point["accuracy"]),
            f"{point['length']:.1f}",
            *(f"{point[name]['all']['mean']:.2f}" for name in ("reference", "reader")),
            *(shown(point[name]["all"]["auc"]) for name in ("reference", "reader")),
            shown(point["reference"]["all"]["matched_auc"]),
        ]
        for arm, points in found.items()
        for point in points
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=411)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sr-grpo-long", help="where the run folders go")
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key != "work"}
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in arguments.arms:
        found[arm] = course(arm, arguments.seed, arguments)
        write_results("sr_grpo_long", {**settings, "samples": SAMPLES, "scopes": SCOPES}, found)
    columns = ("arm", "step", "KL", "accuracy", "tokens", "SR ref", "SR reader", "AUC ref", "AUC reader", "same length")
    print_table("stable rank over the course", columns, rows(found))


if __name__ == "__main__":
    main()
