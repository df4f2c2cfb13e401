"""What PoLAR and SineLoRA cost beside LoRA: `OMP_NUM_THREADS=1 python benchmarks/adapters_step.py`.

One forward and backward of the language-model loss on SmolLM2-135M, rank 16 on every linear layer, on batches of real
worked solutions (GSM8K). Time: processor time of all arms in one process, interleaved, so that a slow minute of the
machine hits all of them. Memory: a fresh process an arm and the largest resident set of its steps, the kernel's mark
being reset before them, for loading peaks as well (Linux only). This process loads no torch: a child's mark starts at
its parent's.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, bootstrap_interval, print_table, write_results

SMOLLM2 = "zoo:smollm2-135m-instruct"
PLAIN = "LoRA"
ARMS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "PoLAR": {"method": "polar", "theta": "free"},
    "PoLAR, diagonal": {"method": "polar", "theta": "diagonal"},
    "PoLAR, identity": {"method": "polar", "theta": "identity"},
    "SineLoRA": {"method": "sinelora", "omega": 200.0},
}
GOALS = {("seconds", "PoLAR"): 1.3, ("peak_bytes", "SineLoRA"): 1.5}


def adapted(spectral: dict[str, Any] | None, rank: int) -> Any:
    """SmolLM2 with an adapter that looks trained: no factor is zero."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from stablerank.peft import SpectralLoraConfig
    from stablerank.zoo.resolve import resolve

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve(SMOLLM2), dtype=torch.float32)
    model = get_peft_model(base, SpectralLoraConfig(r=rank, target_modules="all-linear", spectral=spectral))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_S" in name or "lora_B" in name):
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model.train()


def batches(count: int, sequences: int) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    from stablerank.tasks.files import data_folder
    from stablerank.zoo.resolve import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve(SMOLLM2))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = map(json.loads, (data_folder() / "gsm8k_test.jsonl").read_text().splitlines()[: count * sequences])
    texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    parts = (texts[start : start + sequences] for start in range(0, len(texts), sequences))
    return [dict(tokenizer(part, padding=True, return_tensors="pt")) for part in parts]


def step(model: Any, batch: dict[str, Any]) -> float:
    """Processor seconds of one forward and backward; with one thread that is wall time without the neighbours."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    start = time.process_time()
    model(**batch, labels=labels).loss.backward()
    taken = time.process_time() - start
    model.zero_grad()
    return taken


def time_arms(arguments: argparse.Namespace) -> dict[str, list[float]]:
    models = {name: adapted(spectral, arguments.rank) for name, spectral in ARMS.items()}
    data = batches(arguments.repeats + 1, arguments.sequences)
    rounds = []
    for index, batch in enumerate(data):
        # Every second round runs backwards, so that a drift of the machine favours no arm; the first one warms up.
        order = list(models) if index % 2 else list(reversed(models))
        rounds.append({name: step(models[name], batch) for name in order})
    return {name: [one[name] for one in rounds[1:]] for name in ARMS}


def peak_of_arm(name: str, arguments: argparse.Namespace) -> dict[str, int]:
    model = adapted(ARMS[name], arguments.rank)
    data = batches(2, arguments.sequences)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for batch in data:
        step(model, batch)
    peak = resident("VmHWM")
    return {"peak_bytes": peak, "grown_bytes": peak - before}


def resident(mark: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(mark))
    return int(line.split()[1]) * 1024


def child(task: str, arguments: argparse.Namespace) -> Any:
    """The answer of a fresh process of this script."""
    settings = (f"--{name}={getattr(arguments, name)}" for name in ("rank", "repeats", "sequences"))
    command = [sys.executable, __file__, *settings, f"--child={task}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def median_ratio(over: Any, under: Any, axis: int = -1) -> Any:
    return np.median(np.asarray(over) / np.asarray(under), axis=axis)


def against_lora(seconds: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap_interval(median_ratio, seconds, plain)
    return {"value": float(median_ratio(seconds, plain)), "low": low, "high": high}


def compare(seconds: dict[str, list[float]], memory: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "seconds": float(np.median(seconds[name])),
            "seconds_ratio": against_lora(seconds[name], seconds[PLAIN]),
            **memory[name],
            **{f"{key}_ratio": memory[name][key] / memory[PLAIN][key] for key in memory[PLAIN]},
            "goals": {measure: goal for (measure, arm), goal in GOALS.items() if arm == name},
        }
        for name in ARMS
    }


def show(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    rows = [
        (
            name,
            f"{found['seconds']:.2f} s",
            "{value:.2f} ({low:.2f} to {high:.2f})".format(**found["seconds_ratio"]),
            f"{found['peak_bytes'] / 1e6:.0f} MB",
            f"{found['peak_bytes_ratio']:.2f}",
            f"{found['grown_bytes_ratio']:.2f}",
            ", ".join(f"{measure} at most {goal:g}" for measure, goal in found["goals"].items()),
        )
        for name, found in results.items()
    ]
    columns = ("adapter", "step", "to LoRA (95 %)", "peak", "to LoRA", "grown, to LoRA", "goal, to LoRA")
    print_table(f"forward and backward, {arguments.repeats} steps of {arguments.sequences} texts", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9, help="counted steps of each arm")
    parser.add_argument("--sequences", type=int, default=4, help="texts of a batch")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.child:
        answer = time_arms(arguments) if arguments.child == "time" else peak_of_arm(arguments.child, arguments)
        print(json.dumps(answer))
        return
    del arguments.child
    seconds = child("time", arguments)
    results = compare(seconds, {name: child(name, arguments) for name in ARMS})
    show(results, arguments)
    write_results("adapters_step", vars(arguments), results)


if __name__ == "__main__":
    main()
