"""One step: does the condition name the step that really decreases the loss more? ``python benchmarks/one_step.py``

Random-feature regression with the steps of the theory, and every block of real models alone, each direction with its
own best length (`stablerank.testbeds.one_step`). A seed of the first draws features and teacher, one of the second the
batch (and the weights of the untrained model). The score is the share of cases where the condition names the better
step; beside it stands what always answering "spectral", or always "Euclidean", scores, whichever is better. Intervals
are 95 % t intervals over seeds. Resumable: a world that is done is not measured again. About a quarter of an hour on
one core; the rules in `verdicts` were written before the seeds were drawn.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from common import print_table, with_kept, write_results
from scipy import stats
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stablerank.optimisers.routing import favoured_names
from stablerank.probes.spectral_condition import record_condition
from stablerank.tasks.arithmetic import problems
from stablerank.tasks.files import data_folder
from stablerank.testbeds.one_step import OneStep, on_features, on_model
from stablerank.zoo.resolve import resolve

SEEDS, STEPS, WIDTHS = (300, 301, 302), (0, 1, 2, 4, 8, 16, 32, 64, 128), (32, 64, 128)
TEXTS = 32
MODELS = {
    "untrained student, arithmetic": ("zoo:arith-student", False),
    "student, arithmetic": ("zoo:arith-student", True),
    "teacher, arithmetic": ("zoo:arith-teacher", True),
    "stories260K, GSM8K": ("stories260K", True),
}
GSM8K, LONGEST = "gsm8k_test.jsonl", 96
FEATURES = ("relu", "squared_relu", "swiglu")
WORLDS = (*(f"features, {name}" for name in FEATURES), *MODELS)
STRONG = 2.0


def of_features(activation: str) -> list[list[OneStep]]:
    return [[each for width in WIDTHS for each in on_features(activation, width, seed, STEPS)] for seed in SEEDS]


def of_model(path: str, trained: bool) -> list[list[OneStep]]:
    return [_of_batch(path, trained, seed) for seed in SEEDS]


def _of_batch(path: str, trained: bool, seed: int) -> list[OneStep]:
    place = resolve(path) if path.startswith("zoo:") else str(data_folder() / path)
    torch.manual_seed(seed)
    model: Any = (
        AutoModelForCausalLM.from_pretrained(place)
        if trained
        else AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place))
    )
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    ids_BT, mask_BT, labels_BT = _batch(tokenizer, _texts(path, tokenizer.eos_token, seed))

    def loss() -> Tensor:
        found: Tensor = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        return found

    with record_condition(model) as recorder:
        recorder.mask(mask_BT)
        loss().backward()
        by_place = {(block.layer, block.module): block for block in recorder.blocks(run="one", seed=seed, step=0)}
    blocks = {favoured_names(model, [place]).pop(): block for place, block in by_place.items()}
    weights = dict(model.named_parameters())
    return on_model({name: weights[name] for name in blocks}, blocks, lambda: loss().item())


def _texts(path: str, end: str, seed: int) -> list[str]:
    """Worked solutions for the embedded models, questions of GSM8K for the others."""
    if path.startswith("zoo:"):
        return [each.prompt + each.solution + end for each in problems("validation", TEXTS, seed=seed)]
    rows = (data_folder() / GSM8K).read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["question"] for row in random.Random(seed).sample(rows, TEXTS)]


def _batch(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded on the right, loss on all tokens."""
    rows = [torch.tensor(tokenizer(text).input_ids[:LONGEST]) for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    mask_BT = pad([torch.ones_like(row) for row in rows], batch_first=True)
    labels_BT = pad(rows, batch_first=True, padding_value=-100)
    return pad(rows, batch_first=True), mask_BT, labels_BT


def judged(cases: list[list[OneStep]]) -> dict[str, Any]:
    """Shares over seeds."""

    def over_seeds(share: Callable[[list[OneStep]], float]) -> dict[str, float]:
        values = np.array([share(of_seed) for of_seed in cases])
        values = values[np.isfinite(values)]
        if len(values) < 2:
            return {"value": float(values.mean()) if len(values) else float("nan"), "low": 0.0, "high": 1.0}
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        return {"value": float(values.mean()), "low": float(values.mean() - half), "high": float(values.mean() + half)}

    def share_of(of_seed: list[OneStep], test: Callable[[OneStep], bool]) -> float:
        return float(np.mean([test(case) for case in of_seed])) if of_seed else float("nan")

    def correlation(of_seed: list[OneStep]) -> float:
        realised = [case.spectral / max(case.euclidean, 1e-12) for case in of_seed]
        return float(stats.spearmanr([case.predicted for case in of_seed], realised).statistic)

    strong = [[case for case in of_seed if case.predicted >= STRONG] for of_seed in cases]
    better = over_seeds(lambda of_seed: share_of(of_seed, lambda case: case.spectral >= case.euclidean))
    return {
        "cases": sum(map(len, cases)),
        "named": over_seeds(lambda of_seed: share_of(of_seed, lambda case: case.is_named)),
        "spectral_better": better,
        "best_constant": max(better["value"], 1 - better["value"]),
        "condition_says_spectral": over_seeds(lambda of_seed: share_of(of_seed, lambda case: case.predicted >= 1)),
        "correlation": over_seeds(correlation),
        "strong_cases": sum(map(len, strong)),
        "strong_misses": sum(case.spectral < case.euclidean for of_seed in strong for case in of_seed),
    }


def cases_of(world: dict[str, Any]) -> list[list[OneStep]]:
    return [[OneStep(**case) for case in of_seed] for of_seed in world["cases"]]


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Each claim by its rule."""
    exact = [found[name] for name in WORLDS if name.startswith("features")]
    real = [found[name] for name in WORLDS if name in MODELS]
    return {
        "features: nr >= 2 st always realises the larger decrease": not any(each["strong_misses"] for each in exact),
        "features: the condition beats the better constant answer": all(
            each["named"]["low"] > each["best_constant"] for each in exact
        ),
        "models, each length its best: the condition beats the better constant answer": all(
            each["named"]["low"] > each["best_constant"] for each in real
        ),
        "models: predicted and realised ratios rise together": all(each["correlation"]["low"] > 0 for each in real),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=WORLDS)
    arguments = parser.parse_args()
    settings = {"seeds": SEEDS, "steps": STEPS, "widths": WIDTHS, "texts": TEXTS}
    for world in arguments.worlds:
        kept = with_kept("one_step", settings, "worlds", [], key="world", order=WORLDS)
        if world in {each["world"] for each in kept}:
            continue
        cases = of_model(*MODELS[world]) if world in MODELS else of_features(world.partition(", ")[2])
        new = {"world": world, "cases": [[asdict(case) for case in of_seed] for of_seed in cases]}
        worlds = with_kept("one_step", settings, "worlds", [new], key="world", order=WORLDS)
        found = {
            each["world"]: judged([[OneStep(**case) for case in seed] for seed in each["cases"]]) for each in worlds
        }
        whole = verdicts(found) if len(found) == len(WORLDS) else {}
        write_results("one_step", settings, {"worlds": worlds, "judged": found, "verdicts": whole})
        each = found[world]
        rows = [[key, str(value)] for key, value in each.items()]
        print_table(world, ["number", "value"], rows)


if __name__ == "__main__":
    main()
