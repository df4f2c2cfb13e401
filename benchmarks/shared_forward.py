"""What one frozen forward saves: our GRPO step beside plain TRL: `python benchmarks/shared_forward.py`.

Arms on one model, prompts and seeds, a stable-rank reward and a KL term: ours (the reward reads the pass that the KL
term makes), TRL with a reward function that runs the policy once more with the adapter off, TRL with a frozen copy of
its own; and an outcome reward in TRL and in ours, where nothing is saved and nothing may be lost. Steps of all arms
alternate in one process; the scoring phase is `_generate_and_score_completions` less the sampling. Ratios are medians
of paired steps with 95 % bootstrap intervals.

Memory (SmolLM2): peak of the tensor bytes that torch allocates in a step, above the level after the policy was loaded,
a fresh process an arm; the frozen copy counts, for it is what that arm keeps.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import ROOT, bootstrap_interval, print_table, write_results

SIZES: dict[str, dict[str, Any]] = {
    "zoo:arith-student": {"batch": 32, "generations": 8, "tokens": 64},
    "zoo:smollm2-135m-instruct": {"batch": 8, "generations": 4, "tokens": 16},
}
SHARED, SECOND, COPY, PLAIN, OURS = "ours, SR", "TRL, adapter off", "TRL, own copy", "TRL, outcome", "ours, outcome"
GOALS = {(SHARED, SECOND, "scoring"): 0.75, (OURS, PLAIN, "step"): 1.05}


class Clock:
    """Adds up the seconds of a function while a step runs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started

        return call


class Arm:
    """A trainer whose steps are taken by hand."""

    def __init__(self, name: str, model: str, folder: str) -> None:
        self.trainer = build(name, model, folder)
        self.sampling, self.whole = Clock(), Clock()
        self.trainer._generate = self.sampling.timed(self.trainer._generate)
        score = self.whole.timed(self.trainer._generate_and_score_completions)
        self.trainer._generate_and_score_completions = score
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.rows = list(self.trainer.train_dataset)

    def step(self, index: int) -> dict[str, float]:
        from transformers import set_seed

        set_seed(index)
        self.sampling.seconds = self.whole.seconds = 0.0
        generations, size = self.trainer.num_generations, self.trainer.args.per_device_train_batch_size
        prompts = size // generations
        rows = [self.rows[(index * prompts + at) % len(self.rows)] for at in range(prompts) for _ in range(generations)]
        started = time.perf_counter()
        self.trainer.model.train()
        self.trainer.training_step(self.trainer.model, rows, None)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        taken = time.perf_counter() - started
        return {"step": taken, "scoring": self.whole.seconds - self.sampling.seconds, "sampling": self.sampling.seconds}


def build(name: str, place: str, folder: str) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from stablerank.rewards.geometric import SpectrumReward
    from stablerank.rewards.outcome import MathVerifyReward
    from stablerank.rewards.plain_trl import as_trl_reward
    from stablerank.tasks.arithmetic import problems
    from stablerank.training.grpo import CreditGRPOTrainer
    from stablerank.training.scoring import WeightedReward
    from stablerank.zoo.resolve import resolve

    size = SIZES[place]
    tokenizer = AutoTokenizer.from_pretrained(resolve(place), padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(resolve(place), dtype=torch.float32)
    arguments: dict[str, Any] = {
        "args": GRPOConfig(
            folder,
            per_device_train_batch_size=size["batch"],
            num_generations=size["generations"],
            max_completion_length=size["tokens"],
            generation_kwargs={"min_new_tokens": size["tokens"]} if "smollm2" in place else None,
            beta=0.0 if name in (PLAIN, OURS) else 0.04,
            learning_rate=0.0,
            max_steps=1000,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        "train_dataset": Dataset.from_list(
            [{"prompt": p.prompt, "answer": str(p.answer)} for p in problems("train", 256)]
        ),
        "processing_class": tokenizer,
        "peft_config": LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    }
    if name in (SHARED, OURS):
        reward = SpectrumReward() if name == SHARED else MathVerifyReward()
        return CreditGRPOTrainer(model=model, rewards=[WeightedReward(reward)], **arguments)
    if name == PLAIN:
        return GRPOTrainer(model, reward_funcs=[as_trl_reward(MathVerifyReward())], **arguments)
    scorer = SecondForward(tokenizer, copy.deepcopy(model).eval().requires_grad_(False) if name == COPY else None)
    trainer = GRPOTrainer(model, reward_funcs=[scorer], **arguments)
    scorer.policy = trainer.model
    return trainer


class SecondForward:
    """Stable rank as a plain TRL reward function: one more forward a batch, of the policy without adapter or a copy."""

    __name__ = "stable_rank"

    def __init__(self, tokenizer: Any, frozen: Any) -> None:
        self.tokenizer, self.frozen, self.policy = tokenizer, frozen, None

    def __call__(self, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        import torch
        from trl.trainer.utils import use_adapter

        from stablerank.spectral.batched import stable_rank_batched
        from stablerank.training.passes import padded_batch

        prompt_ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        ids_NL, mask_NL, _ = padded_batch(prompt_ids, completion_ids, self.tokenizer.pad_token_id, torch.device("cpu"))
        with torch.no_grad():
            if self.frozen is not None:
                hidden_NLD = self.frozen.base_model(ids_NL, attention_mask=mask_NL).last_hidden_state
            else:
                with use_adapter(self.policy, adapter_name=None):
                    backbone = self.policy.get_base_model().base_model
                    hidden_NLD = backbone(ids_NL, attention_mask=mask_NL).last_hidden_state
            return stable_rank_batched(hidden_NLD, mask_NL.bool()).tolist()


def times(place: str, steps: int) -> dict[str, list[dict[str, float]]]:
    with tempfile.TemporaryDirectory() as folder:
        arms = {name: Arm(name, place, folder) for name in (SHARED, SECOND, COPY, PLAIN, OURS)}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for index in range(steps + 1):
            # Every second round runs backwards, so that a drift of the machine favours no arm; the first warms up.
            for name in list(arms) if index % 2 else reversed(arms):
                found[name].append(arms[name].step(index))
            print(place, "step", index, flush=True)
    return {name: rows[1:] for name, rows in found.items()}


def peak_of(name: str, place: str) -> int:
    """Peak tensor bytes of one step above the level after load, frozen copies included."""
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        arm = Arm(name, place, folder)
        kept = 0
        scorer = arm.trainer.reward_funcs[0]
        if isinstance(scorer, SecondForward) and scorer.frozen is not None:
            kept = sum(parameter.nbytes for parameter in scorer.frozen.parameters())
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            arm.step(0)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return kept + int(np.cumsum(changes).max())


def median_ratio(over: Any, under: Any, axis: int = -1) -> Any:
    return np.median(np.asarray(over) / np.asarray(under), axis=axis)


def compared(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    pairs = [(SHARED, SECOND), (SHARED, COPY), (OURS, PLAIN)]
    results: dict[str, Any] = {
        name: {part: float(np.median([row[part] for row in rows])) for part in rows[0]} for name, rows in found.items()
    }
    results["ratios"] = []
    for over, under in pairs:
        for part in ("scoring", "step"):
            ours, theirs = ([row[part] for row in found[name]] for name in (over, under))
            low, high = bootstrap_interval(median_ratio, ours, theirs)
            results["ratios"].append(
                {
                    "arms": f"{over} : {under}",
                    "part": part,
                    "value": float(median_ratio(ours, theirs)),
                    "low": low,
                    "high": high,
                    "goal": GOALS.get((over, under, part)),
                }
            )
    return results


def show(place: str, results: dict[str, Any]) -> None:
    rows = [
        [
            row["arms"],
            row["part"],
            f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
            str(row["goal"] or ""),
        ]
        for row in results["ratios"]
    ]
    print_table(place, ["arms", "part", "ratio (95 %)", "at most"], rows)
    for name, peak in results.get("peak_bytes", {}).items():
        print(f"{name}: {peak / 1e6:.0f} MB above the loaded policy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="counted steps of each arm")
    parser.add_argument("--models", nargs="+", default=list(SIZES))
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak_of(*arguments.peak)))
        return
    results: dict[str, Any] = {}
    for place in arguments.models:
        results[place] = compared(times(place, arguments.steps))
        if "smollm2" in place:
            results[place]["peak_bytes"] = {name: peak_in_child(name, place) for name in (SHARED, SECOND, COPY)}
        show(place, results[place])
        write_results("shared_forward", {"steps": arguments.steps, "sizes": SIZES}, results)


def peak_in_child(name: str, place: str) -> int:
    done = subprocess.run(
        [sys.executable, __file__, "--peak", name, place], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    main()
