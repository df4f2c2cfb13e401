"""What a finished run leaves for others: a model folder that stock PEFT or transformers loads, and the summary."""

import shutil
from math import isnan
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.adapters.export import export_lora, method_name
from stablerank.evaluation.losses import preference_loss_change, text_loss_change
from stablerank.evaluation.statistics import paired_difference
from stablerank.runs.atomic import write_json, write_text
from stablerank.runs.folder import RunFolder
from stablerank.training.callbacks import peak_memory_bytes
from stablerank.training.language_model.recipe import LanguageModelRecipe
from stablerank.training.preference.recipe import PreferenceRecipe
from stablerank.training.recipe import Recipe
from stablerank.training.sections import RunRecipe

_LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained("{place}")
"""
_LOAD_OURS = f"import stablerank.peft  # teaches PEFT this adapter\n{_LOAD_ADAPTER}"
_LOAD_FULL = """from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("{place}")
"""
METHODS = {"grpo": "GRPO", "clm": "language modelling", "dpo": "DPO"}
_CARD = """---
library_name: {library}
base_model: {base}
tags: [stablerank, {objective}]
---

# {name}

Trained by `stablerank` with {method} from `{base}` ({adapter}, seed {seed}, {steps} steps). `manifest.json` and
`summary.json` beside this folder hold the resolved recipe and what was measured.

```python
{snippet}```
"""


def save_model(
    folder: RunFolder, recipe: RunRecipe, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write ``model/``: the adapter as stock PEFT loads it where it can (or all weights), the tokenizer and a card."""
    # What a killed run left here may be half of it.
    shutil.rmtree(folder.model_path, ignore_errors=True)
    snippet = _save_policy(folder, recipe, policy)
    tokenizer.save_pretrained(folder.model_path)
    card = _CARD.format(
        library="transformers" if recipe.adapter.in_place else "peft",
        base=recipe.model.path,
        objective=recipe.objective,
        method=METHODS[recipe.objective],
        name=folder.path.name,
        adapter=_described(recipe),
        seed=recipe.seed,
        steps=steps_done(folder),
        snippet=snippet.format(place=folder.model_path),
    )
    write_text(folder.model_path / "README.md", card)


def _save_policy(folder: RunFolder, recipe: RunRecipe, policy: PreTrainedModel) -> str:
    """Write the weights; the code that loads them."""
    if recipe.adapter.in_place:
        policy.save_pretrained(folder.model_path)
        return _LOAD_FULL
    if method_name(policy.peft_config["default"]) == "sinelora":  # no product of factors, so no LoRA
        policy.save_pretrained(folder.model_path, selected_adapters=["default"])
        return _LOAD_OURS
    export_lora(policy, folder.model_path)
    return _LOAD_ADAPTER


def _described(recipe: RunRecipe) -> str:
    settings = recipe.adapter.model_dump(exclude={"kind"}, exclude_none=True)
    return " ".join([recipe.adapter.kind, *(f"{name}={value}" for name, value in settings.items())])


def write_summary(folder: RunFolder, recipe: Recipe) -> None:
    """Write ``summary.json``, the mark of a finished run, from the run's own tables."""
    phases = {row["phase"]: row for row in folder.evaluations.rows()}
    gain = _gain(folder, recipe.evaluation.pass_reward)
    summary = {
        "pass_at_1_before": _interval_of(phases["before"]),
        "pass_at_1_after": _interval_of(phases["after"]),
        "pass_at_1_gain": gain,
        **_peak(phases.get("peak")),
        **_common(folder, recipe),
        "split": recipe.evaluation.split,
        "verdict": "improved" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "no clear change",
    }
    write_json(folder.summary_path, summary)


def write_loss_summary(folder: RunFolder, recipe: LanguageModelRecipe | PreferenceRecipe) -> None:
    """The same for a run with a held-out loss; ``loss_change`` is negative where it fell."""
    evaluations = folder.evaluations.rows()
    phases = {row["phase"]: row for row in evaluations}
    curve = [row for row in evaluations if row["phase"] == "curve"]
    change = _loss_change(folder, recipe)
    summary = {
        **{f"loss_{phase}": _loss_of(phases[phase], "loss") for phase in ("before", "after")},
        **{f"loss_train_{phase}": _loss_of(phases[phase], "loss_train") for phase in ("before", "after")},
        "loss_change": change,
        "best_step": min(curve, key=lambda row: row["loss"])["step"] if curve else None,
        **_common(folder, recipe),
        "split": recipe.evaluation.split,
        "verdict": "improved" if change["high"] < 0 else "worse" if change["low"] > 0 else "no clear change",
    }
    write_json(folder.summary_path, summary)


def _common(folder: RunFolder, recipe: RunRecipe) -> dict[str, Any]:
    timings = folder.timings.rows()
    return {
        "train_seconds": sum(row["step_seconds"] for row in timings),
        "telemetry_seconds": sum(row["telemetry_seconds"] for row in timings),
        "evaluation_seconds": sum(row["evaluation_seconds"] for row in timings),
        "peak_memory_bytes": max([peak_memory_bytes(), *(row["peak_memory_bytes"] for row in timings)]),
        "steps": steps_done(folder),
        "stopped_by": sorted({row["alarm"] for row in folder.alarms.rows() if row["action"] == "stop"}),
        "model": recipe.model.path,
        "adapter": recipe.adapter.kind,
        "objective": recipe.objective,
        "seed": recipe.seed,
    }


def steps_done(folder: RunFolder) -> int:
    """Optimiser steps that the run took: fewer than its recipe says where an alarm ended it."""
    return max((int(row["step"]) for row in folder.timings.rows()), default=0)


def _loss_of(row: dict[str, Any], name: str) -> dict[str, float]:
    return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}


def _loss_change(folder: RunFolder, recipe: LanguageModelRecipe | PreferenceRecipe) -> dict[str, Any]:
    """After minus before over the same held-out examples, from their own rows."""
    split = recipe.evaluation.split
    rows = [row for row in folder.examples.rows() if row["part"] == split]
    before, after = (
        sorted((row for row in rows if row["phase"] == phase), key=lambda row: row["row"])
        for phase in ("before", "after")
    )
    if isinstance(recipe, LanguageModelRecipe):
        change = text_loss_change(before, after)
    else:
        change = preference_loss_change(before, after, recipe.loss_settings["beta"])
    return {"value": change.value, "low": change.low, "high": change.high, "examples": change.problems}


def _interval_of(row: dict[str, Any]) -> dict[str, Any]:
    return {"value": row["pass_at_1"], "low": row["low"], "high": row["high"], "problems": row["problems"]}


def _peak(row: dict[str, Any] | None) -> dict[str, Any]:
    """Of the step at which the validation curve was highest, where it was scored."""
    return {} if row is None else {"pass_at_1_peak": _interval_of(row), "peak_step": row["step"]}


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
