"""What each member costs on SmolLM2 beside full fine-tuning and LoRA: `python benchmarks/adapters_cost.py`.

One child process a member and objective, all in fp32 on the same batches: TRL's own trainers, GRPO on eight sampled
completions and CLM on eight rows of text. The first step is left out; the others give medians, split into sampling,
forward (with TRL's bookkeeping), backward and optimiser. Peak memory is the child's own (VmHWM). The published ratios
stand beside the measured ones: they are of 8 GPUs and another model, and no more than a comparison of direction.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapters_members import MEMBERS
from common import ROOT, print_table, write_results

PROMPTS, GENERATIONS, NEW_TOKENS, TEXT_TOKENS = 2, 4, 24, 96
CALIBRATION = 3
"""Rows that EVA and CorDA start from: the start is not what is timed."""
PUBLISHED = {
    "GeoRA : full, time of an iteration": 185 / 231,
    "GeoRA : full, GPU memory": 68.43 / 95.73,
    "GeoRA : full, trainable parameters": 0.005,
    "SparseFT : full, time of a step": 1.108,
    "SparseFT : full, trainable parameters": 0.32,
}
"""GeoRA (2601.09361) on Qwen3-8B, as METHODS.md 2.3 and 2.5 quote it."""


class Clock:
    """Seconds by part, one entry a step."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)
        self._now: dict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, part: str) -> Any:
        started = time.perf_counter()
        yield
        self._now[part] += time.perf_counter() - started

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.of(part):
                return function(*args, **kwargs)

        return call

    def end_of_step(self) -> None:
        for part in ("step", "sampling", "backward", "optimiser"):
            self.parts[part].append(self._now[part])
        self._now.clear()


def child(member: str, objective: str, steps: int) -> None:
    """Train a few steps and print one JSON line."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from stablerank.adapters.prepare import NEEDS_DATA, prepare_adapter
    from stablerank.adapters.variants.polar import stiefel_parameters
    from stablerank.training.landing_callback import LandingCallback
    from stablerank.zoo.resolve import resolve

    place = resolve("zoo:smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = text_rows(tokenizer)
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    spec = MEMBERS[member].spec
    calibration = [{"input_ids": torch.tensor([row])} for row in texts[:CALIBRATION]] if spec.kind in NEEDS_DATA else []
    started = time.perf_counter()
    model = prepare_adapter(model, spec, calibration=calibration)
    start_seconds = time.perf_counter() - started
    clock = Clock()

    class EndOfStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end_of_step()

    common = {
        "max_steps": steps,
        "per_device_train_batch_size": PROMPTS * GENERATIONS,
        "learning_rate": 1e-5,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    with TemporaryDirectory() as out:
        if objective == "grpo":
            trainer = GRPOTrainer(
                model=model,
                reward_funcs=lambda completions, **_: [float(len(text) % 7) for text in completions],
                args=GRPOConfig(
                    out,
                    num_generations=GENERATIONS,
                    max_completion_length=NEW_TOKENS,
                    generation_kwargs={"min_new_tokens": NEW_TOKENS},
                    beta=0.0,
                    **common,
                ),
                train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(row[:32]) for row in texts]}),
                processing_class=tokenizer,
            )
            trainer._generate = clock.timed("sampling", trainer._generate)
        else:
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(out, max_length=TEXT_TOKENS, **common),
                train_dataset=Dataset.from_dict({"input_ids": texts}),
                processing_class=tokenizer,
            )
        trainer.add_callback(EndOfStep())
        if stiefel_parameters(model):
            trainer.add_callback(LandingCallback())
        trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)
        trainer.training_step = clock.timed("step", trainer.training_step)
        trainer.create_optimizer()
        trainer.optimizer.step = clock.timed("optimiser", trainer.optimizer.step)
        trainer.train()
        folder = Path(out) / "checkpoint"
        trainer.save_model(str(folder))
        checkpoint = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    state = [value for values in trainer.optimizer.state.values() for value in values.values()]
    found = {
        "trainable": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "kept_share": kept_share(model) if spec.kind == "sparse" else None,
        "total": sum(value.numel() for name, value in model.named_parameters() if ".lora_" not in name),
        "start_seconds": start_seconds,
        "optimiser_bytes": sum(value.nbytes for value in state if torch.is_tensor(value)),
        "checkpoint_bytes": checkpoint,
        "peak_bytes": peak_bytes(),
        "seconds": {part: statistics.median(values[1:]) for part, values in clock.parts.items()},
    }
    print(json.dumps(found))


def text_rows(tokenizer: Any) -> list[list[int]]:
    """Rows of equal length from the project's own documents: real text, whatever the machine holds."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    ids = tokenizer(text)["input_ids"]
    return [ids[start : start + TEXT_TOKENS] for start in range(0, 64 * TEXT_TOKENS, TEXT_TOKENS)]


def kept_share(model: Any) -> float:
    from stablerank.adapters.selective.sparse import kept_shares

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    shares = kept_shares(model)
    return sum(share * sizes[name] for name, share in shares.items()) / sum(sizes[name] for name in shares)


def peak_bytes() -> int:
    """The child's own peak: `ru_maxrss` of a child starts at what its parent held."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=2, metavar=("MEMBER", "OBJECTIVE"))
    parser.add_argument("--steps", type=int, default=4, help="the first is left out")
    parser.add_argument("--repeats", type=int, default=1, help="rounds over all members; medians are kept")
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.steps)
        return
    found: dict[str, dict[str, Any]] = {objective: {} for objective in ("grpo", "clm")}
    for objective, results in found.items():
        rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _ in range(arguments.repeats):
            for name in MEMBERS:
                rounds[name].append(measured(name, objective, arguments.steps))
                print(objective, name, rounds[name][-1]["seconds"], flush=True)
        results |= {name: median_of(runs) for name, runs in rounds.items()}
        write_results("adapters_cost", vars(arguments) | sizes(), {"members": found, "published": PUBLISHED})
    for objective, results in found.items():
        print_table(f"{objective}, SmolLM2-135M, ratios to full / to LoRA", COLUMNS, list(rows(results)))


def measured(name: str, objective: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, objective, "--steps", str(steps)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if process.returncode:
        raise SystemExit(f"{name} {objective} failed:\n{process.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = {part: statistics.median(run["seconds"][part] for run in runs) for part in runs[0]["seconds"]}
    return {**runs[0], "seconds": seconds, "peak_bytes": statistics.median(run["peak_bytes"] for run in runs)}


def sizes() -> dict[str, int]:
    return {"prompts": PROMPTS, "generations": GENERATIONS, "new_tokens": NEW_TOKENS, "text_tokens": TEXT_TOKENS}


COLUMNS = ("member", "trainable", "step", "sampling", "forward", "backward", "optimiser", "peak", "state", "checkpoint")


def rows(results: dict[str, dict[str, Any]]) -> Any:
    full, lora = results["full"], results["LoRA"]
    for name, found in results.items():
        seconds = found["seconds"]
        forward = seconds["step"] - seconds["sampling"] - seconds["backward"]

        def beside(key: str, found: dict[str, Any] = found) -> str:
            return f"{found[key] / full[key]:.3f} / {found[key] / lora[key]:.2f}"

        whole = whole_step(found)
        yield (
            name,
            f"{found['trainable'] / found['total']:.2%}",
            f"{whole:.2f} s ({whole / whole_step(full):.2f} / {whole / whole_step(lora):.2f})",
            *(f"{part:.2f}" for part in (seconds["sampling"], forward, seconds["backward"], seconds["optimiser"])),
            *(beside(key) for key in ("peak_bytes", "optimiser_bytes", "checkpoint_bytes")),
        )


def whole_step(found: dict[str, Any]) -> float:
    return float(found["seconds"]["step"] + found["seconds"]["optimiser"])


if __name__ == "__main__":
    main()
