"""Stable rank as the reward of GRPO, beside rewards that a claim about it must beat. `python benchmarks/sr_grpo.py`

The embedded student, one recipe (recipes/sr-grpo.yaml), one budget, the same seeds and the same weight of the KL term;
only the reward differs, each standardised in its group. No arm but `outcome` sees an answer:

    outcome               right or wrong, as a ceiling
    stable_rank           of the frozen reference's states, prompt and response
    stable_rank_response  of the response's alone
    reward_model          a classifier trained on pairs (train_pair_model.py; left out while its folder is absent)
    self_judge            the frozen reference's mean log-probability
    mean_logprob          the policy's own mean log-probability
    shorter, longer       length alone, in either direction
    random                noise
    right_length          how near the length comes to that of a usual solution; no arm of the first round

A judge that is asked for its opinion is no arm here: the student knows chains of arithmetic and no other text.

The rule: an arm *helps* only if its pass@1 on the test problems exceeds that of `random`, of `shorter` and of `longer`,
with the lower end of the paired 95 % interval (mean over seeds, resampled by problem) above 0, and in every seed. To
beat the untouched student is not enough, because on this task the longer answer is mostly the right one.

`shorter` and `longer` run past the right length, so a second round holds stable rank against `right_length`, with fresh
seeds: `python benchmarks/sr_grpo.py 404 405 406 --arms stable_rank right_length --results sr_grpo_right_length`.

A finished run in the work folder is read, an interrupted one is taken up again. Tune with `--split validation` and
other seeds. A run takes two minutes on one core.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from common import ROOT, print_table, require_recipe, train, write_results
from sr_readings import SCOPES, stable_ranks
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.diagnosing import diagnose_run
from stablerank.evaluation.statistics import mean_interval, paired_difference
from stablerank.runs.folder import RunFolder
from stablerank.zoo.resolve import resolve

RECIPE, MODEL = "recipes/sr-grpo.yaml", "zoo:arith-student"
CONTROLS = ("random", "shorter", "longer")
RIGHT_LENGTH = "right_length"
CONTROL_FILE = "benchmarks/control_rewards.py"
CREDIT = "credit={scale: group, epsilon: 1.0e-4}"
LAST = 5
"""Logged steps over which a run's last KL is averaged."""


def rewards(reward_model: Path) -> dict[str, str]:
    """The reward section of each arm."""
    arms = {
        "outcome": "{kind: math_verify}",
        "stable_rank": "{kind: stable_rank, scope: all}",
        "stable_rank_response": "{kind: stable_rank, scope: response}",
        "reward_model": f"{{kind: scorer, name: 'reward_model:path={reward_model}'}}",
        "self_judge": "{kind: intrinsic, measure: likelihood, of: frozen}",
        "mean_logprob": "{kind: intrinsic, measure: likelihood, of: policy}",
        "shorter": "{kind: length, limit: 80, buffer: 80}",
        "longer": f"{{kind: python, ref: '{CONTROL_FILE}:longer'}}",
        "random": f"{{kind: python, ref: '{CONTROL_FILE}:chance'}}",
        RIGHT_LENGTH: f"{{kind: python, ref: '{CONTROL_FILE}:right_length'}}",
    }
    if not reward_model.exists():
        print(f"no reward model at {reward_model}: that arm is left out (benchmarks/train_pair_model.py makes it)")
        del arms["reward_model"]
    return arms


def overrides_of(reward: str, seed: int, arguments: argparse.Namespace) -> list[str]:
    return [
        f"reward={reward}",
        CREDIT,
        f"seed={seed}",
        f"trainer.max_steps={arguments.steps}",
        f"trainer.save_steps={arguments.steps}",
        f"evaluation.split={arguments.split}",
        f"evaluation.problems={arguments.problems}",
        "evaluation.every=0",
        "geometry.every=0",
    ]


def measured(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    folder = RunFolder(arguments.work.resolve() / f"{arm}-{arguments.split}-{seed}-{arguments.steps}")
    overrides = overrides_of(arguments.arms[arm], seed, arguments)
    require_recipe(folder.path, RECIPE, overrides)
    summary = folder.summary() if folder.is_complete() else train(folder.path, RECIPE, overrides)
    logged = folder.metrics.rows()
    phases = {phase: phase_of(folder, phase) for phase in ("before", "after")}
    return {
        "seed": seed,
        **{key: summary[key] for key in ("pass_at_1_before", "pass_at_1_after", "pass_at_1_gain", "train_seconds")},
        "kl": fmean(row["kl"] for row in logged[-LAST:]),
        "reward_length": [_mean(logged[:LAST]), _mean(logged[-LAST:])],
        "named": [found.cause for found in diagnose_run(folder.path).found],
        **phases,
    }


def _mean(rows: list[dict[str, Any]]) -> float | None:
    found = [row["reward_length_correlation"] for row in rows if "reward_length_correlation" in row]
    return fmean(found) if found else None


def phase_of(folder: RunFolder, phase: str) -> dict[str, Any]:
    """Whether each test problem passed, the length of its completion, and its stable rank under the reference."""
    rows = sorted((row for row in folder.rollouts.rows() if row["phase"] == phase), key=lambda row: row["row"])
    place = resolve(MODEL)
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place).eval()
    ranks = stable_ranks(model, [text_of(tokenizer, row) for row in rows])
    return {
        "passes": [float(row["reward"] >= 1) for row in rows],
        "length": fmean(row["tokens"] for row in rows),
        "truncated": fmean(row["truncated"] for row in rows),
        "stable_rank": {scope: float(np.nanmean(ranks[scope])) for scope in SCOPES},
    }


def text_of(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens behind a recorded text: of this tokenizer a text has one spelling."""
    prompt, completion = (tokenizer(row[key], add_special_tokens=False).input_ids for key in ("prompt", "completion"))
    completion += [] if row["truncated"] else [tokenizer.eos_token_id]
    if len(completion) != row["tokens"]:
        raise SystemExit(f"row {row['row']} has {row['tokens']} tokens, but its text gives {len(completion)}")
    return prompt, completion


def contrasts(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Each arm less each control, and whether it helps by the rule of the module header."""
    passes = {
        arm: {run["seed"]: np.array(run["after"]["passes"]) for run in runs} for arm, runs in found.items() if runs
    }
    judged = {}
    for arm in passes:
        asked = (*CONTROLS, RIGHT_LENGTH)
        against = {control: _less(passes[arm], passes[control]) for control in asked if control in passes}
        is_whole = set(CONTROLS) <= set(against)
        clear = {name: found["low"] > 0 and min(found["by_seed"]) > 0 for name, found in against.items()}
        helps = all(clear.get(control, False) for control in CONTROLS)
        judged[arm] = {"against": against, "helps": (helps and arm not in CONTROLS) if is_whole else None}
    return judged


def _less(arm: dict[int, Any], control: dict[int, Any]) -> dict[str, Any]:
    seeds = sorted(set(arm) & set(control))
    ours, theirs = (np.mean([one[seed] for seed in seeds], axis=0) for one in (arm, control))
    found = paired_difference(theirs.tolist(), ours.tolist())
    by_seed = [float(arm[seed].mean() - control[seed].mean()) for seed in seeds]
    return {"value": found.value, "low": found.low, "high": found.high, "by_seed": by_seed}


def rows(found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [
            arm,
            str(run["seed"]),
            f"{run['pass_at_1_before']['value']:.3f}",
            "{value:.3f} ({low:.3f} to {high:.3f})".format(**run["pass_at_1_after"]),
            f"{run['before']['length']:.1f} > {run['after']['length']:.1f}",
            f"{run['kl']:.3f}",
            f"{run['before']['stable_rank']['all']:.2f} > {run['after']['stable_rank']['all']:.2f}",
            ", ".join(run["named"]) or "nothing",
        ]
        for arm, runs in found.items()
        for run in runs
    ]


def pooled(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the table of an arm says: means over seeds, pass@1 with its interval by problem."""
    passed = np.mean([run["after"]["passes"] for run in runs], axis=0)
    found = mean_interval(passed.tolist())
    return {
        "pass_at_1": {"value": found.value, "low": found.low, "high": found.high},
        "by_seed": [run["pass_at_1_after"]["value"] for run in runs],
        "length": fmean(run["after"]["length"] for run in runs),
        "truncated": fmean(run["after"]["truncated"] for run in runs),
        "kl": fmean(run["kl"] for run in runs),
        "stable_rank": {scope: fmean(run["after"]["stable_rank"][scope] for run in runs) for scope in SCOPES},
    }


def without_passes(run: dict[str, Any]) -> dict[str, Any]:
    """A run as it is kept: its verdicts of single problems are in the run folder."""
    phases = {phase: {key: run[phase][key] for key in run[phase] if key != "passes"} for phase in ("before", "after")}
    return {**run, **phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[401, 402, 403])
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--arms", nargs="+", help="some of the arms; all if left out")
    parser.add_argument("--results", default="sr_grpo", help="name of the results file")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--problems", type=int, default=600)
    parser.add_argument("--reward-model", type=Path, default=ROOT / "runs" / "pair-model")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sr-grpo", help="where the run folders go")
    arguments = parser.parse_args()
    known = rewards(arguments.reward_model.resolve())
    if unknown := set(arguments.arms or ()) - set(known):
        raise SystemExit(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    arguments.arms = {arm: known[arm] for arm in arguments.arms or [arm for arm in known if arm != RIGHT_LENGTH]}
    settings = {key: getattr(arguments, key) for key in ("seeds", "split", "steps", "problems")}
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arguments.arms}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            found[arm].append(measured(arm, seed, arguments))
            print(*rows({arm: found[arm][-1:]})[0], flush=True)
            done = {name: runs for name, runs in found.items() if runs}
            results = {
                "arms": {name: pooled(runs) for name, runs in done.items()},
                "base": pooled_base(done),
                "contrasts": contrasts(done),
                "runs": {name: [without_passes(run) for run in runs] for name, runs in done.items()},
            }
            write_results(arguments.results if arguments.split == "test" else "sr_grpo_validation", settings, results)
    columns = ("arm", "seed", "before", "after", "tokens", "KL", "stable rank", "diagnosis")
    print_table("held-out pass@1 with 95 % intervals", columns, rows(found))


def pooled_base(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The untouched student, the same in every run."""
    run = next(iter(found.values()))[0]
    kept = {key: run["before"][key] for key in ("length", "truncated", "stable_rank")}
    return {"pass_at_1": {key: run["pass_at_1_before"][key] for key in ("value", "low", "high")}, **kept}


if __name__ == "__main__":
    main()
