"""The recipe's spectral optimisers: which trained matrices go to Muon or SpecGD, in any objective's trainer.

Contract: `route_trainer` gives a built trainer its optimiser (optimisers/routing.py) before it trains; schedule,
clipping, accelerate and checkpoints then treat it as they treat AdamW, and a checkpoint holds the route. The route
lands in ``route.json`` of the run folder: one entry a trained matrix. Rules by name are known before the run, and
`planned` says them without weights. Two rules ask the spectral condition on the first batch, right before the first
step is taken: ``condition`` routes the matrices that it favours, ``against_condition``, its control, those where it
favours the Euclidean step. A matrix that it leaves undecided stays with AdamW: LoRA's A, whose gradient is zero while B
is.

``learning_rate`` of a log row is AdamW's. Weight decay and schedule are common to both parts.

Left out on purpose: the condition over several processes, whose gradients would have to be averaged (refused); sharded
parameters, which no optimiser holds as matrices.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig, Trainer

from stablerank.adapters.counts import weightless_policy
from stablerank.errors import ModelError, RecipeError
from stablerank.optimisers.routing import RoutedOptimiser, Rule, favoured_names, matching_names, routed, spectral_names
from stablerank.probes.spectral_condition import BlockCondition
from stablerank.runs.atomic import write_json
from stablerank.runs.folder import RunFolder
from stablerank.runs.strict_json import strict
from stablerank.training.condition import ConditionCallback
from stablerank.training.sections import OptimiserSpec, RunRecipe

BY_CONDITION = {"condition": "spectral", "against_condition": "euclidean"}
"""The rules that a measurement decides, and the verdict that each routes."""
FIRST_STEP_ONLY = sys.maxsize
SIDES = ("nuclear_rank", "stable_rank", "favours")


def route_trainer(trainer: Trainer, spec: OptimiserSpec, folder: RunFolder) -> None:
    """Give the trainer the optimiser of the recipe; AdamW alone is left to it.

    Raises:
        ModelError: a rule or pattern finds no trained matrix; while it trains, the condition decides none.
        RecipeError: the condition is asked for by several processes.
    """
    if spec.kind == "adamw":
        return
    assert trainer.model is not None
    optimiser = _optimiser(trainer.model, spec, _by_name(trainer.model, spec))
    trainer.optimizer = optimiser
    verdict = _verdict(spec)
    if verdict is None:
        if trainer.is_world_process_zero():
            write_json(folder.route_path, _written(optimiser, {}))
        return
    if trainer.args.world_size > 1:
        raise RecipeError(
            f"optimiser.route={spec.route} measures the gradient of one process, but {trainer.args.world_size} train; "
            "name the matrices, or train with one process."
        )

    def sink(step: int, blocks: list[BlockCondition]) -> None:
        _take_by_verdict(optimiser, trainer.model, blocks, verdict, folder)

    trainer.add_callback(ConditionCallback(sink, every=FIRST_STEP_ONLY, run=folder.path.name))


def planned(recipe: RunRecipe, config: PretrainedConfig) -> list[str]:
    """Which matrices will take spectral steps, one line a kind of matrix; empty for AdamW alone.

    Raises:
        ModelError: a rule or pattern finds no trained matrix.
    """
    spec = recipe.optimiser
    if spec.kind == "adamw":
        return []
    if verdict := _verdict(spec):
        return [f"{spec.kind:<22}those that the first batch favours {verdict} steps for"]
    names = _by_name(weightless_policy(recipe.adapter, config), spec)
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in sorted(names))
    return [f"{spec.kind:<22}{kind} ({count})" for kind, count in kinds.items()] + [f"{'adamw':<22}the rest"]


def _verdict(spec: OptimiserSpec) -> str | None:
    """What the condition must say of a matrix that takes spectral steps; None for rules by name."""
    return BY_CONDITION.get(spec.route) if isinstance(spec.route, str) else None


def _by_name(model: nn.Module, spec: OptimiserSpec) -> set[str]:
    if isinstance(spec.route, list):
        return matching_names(model, spec.route)
    return set() if _verdict(spec) else spectral_names(model, cast(Rule, spec.route))


def _optimiser(model: nn.Module, spec: OptimiserSpec, names: Iterable[str]) -> RoutedOptimiser:
    assert spec.kind != "adamw" and spec.spectral_learning_rate is not None
    return routed(
        model,
        names,
        muon_lr=spec.spectral_learning_rate,
        adamw_lr=spec.learning_rate,
        method=spec.kind,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        betas=spec.betas,
        epsilon=spec.epsilon,
        match_rms_adamw=spec.match_rms_adamw,
    )


def _take_by_verdict(
    optimiser: RoutedOptimiser, model: Any, blocks: list[BlockCondition], verdict: str, folder: RunFolder
) -> None:
    by_name = {name: block for block in blocks for name in favoured_names(model, [(block.layer, block.module)])}
    if all(block.favours == "undecided" for block in by_name.values()):
        raise ModelError(
            f"The first batch decides the spectral condition for none of {len(optimiser.matrices)} trained matrices "
            "(their gradients are zero or not finite); give a larger batch, or name the matrices in optimiser.route."
        )
    optimiser.take(name for name, block in by_name.items() if block.favours == verdict)
    write_json(folder.route_path, _written(optimiser, by_name))


def _written(optimiser: RoutedOptimiser, measured: dict[str, BlockCondition]) -> list[dict[str, Any]]:
    taken = set(optimiser.spectral)
    return [
        {
            "name": name,
            "optimiser": optimiser.method if name in taken else "adamw",
            **({key: strict(asdict(measured[name])[key]) for key in SIDES} if name in measured else {}),
        }
        for name in optimiser.matrices
    ]
