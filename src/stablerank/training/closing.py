"""What a finished run leaves for others: a model folder that stock PEFT or transformers loads, and the summary."""

from math import isnan
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.evaluation.statistics import paired_difference
from stablerank.runs.atomic import write_json, write_text
from stablerank.runs.folder import RunFolder
from stablerank.training.callbacks import peak_memory_bytes
from stablerank.training.recipe import Recipe

_LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("{place}")
"""
_LOAD_FULL = """from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("{place}")
"""
_CARD = """---
library_name: {library}
base_model: {base}
tags: [stablerank, grpo]
---

# {name}

Trained by `stablerank` with GRPO from `{base}` ({adapter}, seed {seed}, {steps} steps). `manifest.json` and
`summary.json` beside this folder hold the resolved recipe and what was measured.

```python
{snippet}```
"""


def save_model(folder: RunFolder, recipe: Recipe, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``model/``: the adapter (or all weights), the tokenizer and a card."""
    policy.save_pretrained(folder.model_path)
    tokenizer.save_pretrained(folder.model_path)
    adapter = recipe.adapter
    is_full = adapter.kind == "full"
    card = _CARD.format(
        library="transformers" if is_full else "peft",
        base=recipe.model.path,
        name=folder.path.name,
        adapter="all weights" if adapter.kind == "full" else f"LoRA r={adapter.r}, alpha={adapter.alpha:g}",
        seed=recipe.seed,
        steps=recipe.max_steps,
        snippet=(_LOAD_FULL if is_full else _LOAD_ADAPTER).format(place=folder.model_path),
    )
    write_text(folder.model_path / "README.md", card)


def write_summary(folder: RunFolder, recipe: Recipe) -> None:
    """Write ``summary.json``, the mark of a finished run, from the run's own tables."""
    phases = {row["phase"]: row for row in folder.evaluations.rows()}
    gain = _gain(folder, recipe.evaluation.pass_reward)
    timings = folder.timings.rows()
    summary = {
        "pass_at_1_before": _interval_of(phases["before"]),
        "pass_at_1_after": _interval_of(phases["after"]),
        "pass_at_1_gain": gain,
        "train_seconds": sum(row["step_seconds"] for row in timings),
        "telemetry_seconds": sum(row["telemetry_seconds"] for row in timings),
        "peak_memory_bytes": max([peak_memory_bytes(), *(row["peak_memory_bytes"] for row in timings)]),
        "steps": recipe.max_steps,
        "split": recipe.evaluation.split,
        "model": recipe.model.path,
        "adapter": recipe.adapter.kind,
        "seed": recipe.seed,
        "verdict": "improved" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "no clear change",
    }
    write_json(folder.summary_path, summary)


def _interval_of(row: dict[str, Any]) -> dict[str, Any]:
    return {"value": row["pass_at_1"], "low": row["low"], "high": row["high"], "problems": row["problems"]}


def _gain(folder: RunFolder, pass_reward: float) -> dict[str, Any]:
    """After minus before on the same problems, from the rollouts themselves."""
    rows = folder.rollouts.rows()
    passed = {
        phase: [_passed(row["reward"], pass_reward) for row in _in_order(rows) if row["phase"] == phase]
        for phase in ("before", "after")
    }
    gain = paired_difference(passed["before"], passed["after"])
    return {"value": gain.value, "low": gain.low, "high": gain.high, "problems": gain.problems}


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["row"])


def _passed(reward: float, pass_reward: float) -> float:
    """1.0 or 0.0, and NaN for a problem that could not be scored."""
    return float("nan") if isnan(reward) else float(reward >= pass_reward)
