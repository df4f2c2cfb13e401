"""Our distillation beside TRL's `DistillationTrainer`: `python benchmarks/distillation_beside_trl.py [SEED ...]`.

Both post-train the embedded student towards the embedded teacher, in a fresh process a run: the same prompts in the
same order, twice each, the same LoRA and optimiser, and the same number of completions, tokens a completion and steps.
Ours is the reward `distillation` in our GRPO (the sampled token's reverse KL, through the policy gradient), TRL's the
reverse KL of the whole vocabulary, differentiated directly. Scored greedily on validation, before and after. A
finished run in the work folder is read, not repeated.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import DEMO, ROOT, bootstrap_interval, launch, print_table, tail, train, write_results
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from trl import DistillationConfig, DistillationTrainer

from stablerank.adapters.specs import LoraSpec
from stablerank.evaluation.held_out import evaluate_policy
from stablerank.rewards.specs import MathVerifySpec
from stablerank.runs.folder import RunFolder
from stablerank.tasks.specs import ArithmeticSpec
from stablerank.zoo.resolve import resolve

STUDENT, TEACHER = "zoo:arith-student", "zoo:arith-teacher"
TWICE = 2
"""Completions a prompt: GRPO's smallest group, though distillation without a baseline reads none."""
WARMUP = 5
METHODS = {"ours": "our GRPO, distillation reward", "trl": "TRL's DistillationTrainer"}


def ours(seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    overrides = [
        f"reward={{kind: distillation, teacher: {{path: '{TEACHER}'}}}}",
        "credit={centre: none, scale: none}",
        f"seed={seed}",
        f"optimiser.learning_rate={arguments.rate}",
        f"optimiser.warmup_steps={WARMUP}",
        f"trainer.max_steps={arguments.steps}",
        f"trainer.save_steps={arguments.steps}",
        f"trainer.per_device_train_batch_size={arguments.batch}",
        f"trainer.max_completion_length={arguments.tokens}",
        f"trainer.num_generations={TWICE}",
        "trainer.beta=0.0",
        "trainer.shuffle_dataset=false",
        f"data.problems={arguments.steps * arguments.batch // TWICE}",
        "geometry.every=0",
        "evaluation.every=0",
        "evaluation.split=validation",
        "evaluation.reward={kind: math_verify}",
        f"evaluation.problems={arguments.problems}",
    ]
    done = RunFolder(folder)
    summary = done.summary() if (folder / "summary.json").exists() else train(folder, DEMO, overrides)
    kept = ("pass_at_1_before", "pass_at_1_after", "train_seconds")
    lengths = [row["completions/mean_length"] for row in done.metrics.rows()]
    return {**{key: summary[key] for key in kept}, "mean_length": fmean(lengths)}


def trl(seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(seed), "--child", str(folder)]
        for name in ("steps", "batch", "tokens", "problems", "rate"):
            command += [f"--{name}", str(getattr(arguments, name))]
        log = folder / "log.txt"
        if launch(command, log).wait() != 0:
            raise SystemExit(f"trl {seed} failed:\n{tail(log)}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def child(seed: int, folder: Path, arguments: argparse.Namespace) -> None:
    """One run of TRL's trainer; writes summary.json last."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(STUDENT), padding_side="left")
    model, teacher = (AutoModelForCausalLM.from_pretrained(resolve(n), dtype=torch.float32) for n in (STUDENT, TEACHER))
    before = score(model, tokenizer, arguments)
    problems = ArithmeticSpec(kind="arithmetic", problems=arguments.steps * arguments.batch // TWICE).train_rows()
    set_seed(seed)
    trainer = DistillationTrainer(
        model=model,
        teacher_model=teacher,
        args=config(seed, folder, arguments),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in problems for _ in range(TWICE)]),
        processing_class=tokenizer,
        peft_config=LoraSpec(kind="lora").peft_config(),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    summary = {
        "pass_at_1_before": before,
        "pass_at_1_after": score(trainer.model, tokenizer, arguments),
        "train_seconds": seconds,
        "mean_length": fmean(lengths),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def config(seed: int, folder: Path, arguments: argparse.Namespace) -> DistillationConfig:
    """Reverse KL on the student's own samples; what else shapes a step is as in the demo recipe."""
    return DistillationConfig(
        output_dir=str(folder / "trainer"),
        beta=1.0,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        gradient_accumulation_steps=1,
        max_completion_length=arguments.tokens,
        temperature=1.0,
        learning_rate=arguments.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP,
        max_grad_norm=1.0,
        seed=seed,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def score(model: PreTrainedModel, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = ArithmeticSpec(kind="arithmetic").held_out_rows("validation", arguments.problems)
    judge = MathVerifySpec().build(tokenizer)
    found = evaluate_policy(model, tokenizer, rows, judge, max_new_tokens=arguments.tokens).interval
    return {"value": found.value, "low": found.low, "high": found.high, "problems": found.problems}


def run(method: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = f"{arguments.steps}x{arguments.batch}x{arguments.tokens}-{arguments.rate:g}-{arguments.problems}"
    folder = arguments.work.resolve() / f"{method}-{seed}-{sizes}"
    found = {"ours": ours, "trl": trl}[method](seed, folder, arguments)
    gain = found["pass_at_1_after"]["value"] - found["pass_at_1_before"]["value"]
    print(f"{METHODS[method]}, seed {seed}: {gain:+.3f} in {found['train_seconds']:.0f} s", flush=True)
    return {"method": method, "seed": seed, **found, "gain": gain}


def row(found: dict[str, Any]) -> tuple[str, ...]:
    intervals = (found[f"pass_at_1_{name}"] for name in ("before", "after"))
    return (
        f"{METHODS[found['method']]}, {found['seed']}",
        *(f"{i['value']:.3f} ({i['low']:.3f} to {i['high']:.3f})" for i in intervals),
        f"{found['gain']:+.3f}",
        f"{found['mean_length']:.1f}",
        f"{found['train_seconds']:.0f} s",
    )


def difference(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over seeds of our gain less TRL's, paired by seed, with the bootstrap interval where there are seeds."""
    gains = {method: [run["gain"] for run in runs if run["method"] == method] for method in METHODS}
    by_seed = [mine - theirs for mine, theirs in zip(gains["ours"], gains["trl"], strict=True)]
    if len(by_seed) < 2:
        return {"value": by_seed[0]}
    low, high = bootstrap_interval(lambda sample, axis=-1: sample.mean(axis=axis), by_seed)
    return {"value": fmean(by_seed), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=[301, 302, 303])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64, help="completions a step, two a prompt")
    parser.add_argument("--tokens", type=int, default=80, help="limit of a completion")
    parser.add_argument("--problems", type=int, default=600, help="held-out problems")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of both")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "distillation-beside-trl")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.seeds[0], arguments.child, arguments)

    runs = [run(method, seed, arguments) for seed in arguments.seeds for method in METHODS]
    columns = ("run", "before", "after", "gain", "mean length", "training")
    print_table("greedy pass@1 on validation, with 95 % intervals", columns, [row(found) for found in runs])
    gap = difference(runs)
    print(f"our gain less TRL's, over seeds: {', '.join(f'{key} {value:+.3f}' for key, value in gap.items())}")
    kept = ("seeds", "steps", "batch", "tokens", "problems", "rate")
    settings = {key: getattr(arguments, key) for key in kept}
    write_results("distillation_beside_trl", settings, {"runs": runs, "gain_less_trl": gap})


if __name__ == "__main__":
    main()
