"""Which matrices take a spectral step: one optimiser that routes each parameter to Muon (or SpecGD) or to AdamW.

::

    names = spectral_names(model, "hidden")
    trainer = Trainer(model, arguments, optimizers=(routed(model, names, muon_lr=0.02, adamw_lr=3e-4), None))

Contract: every parameter that requires grad is stepped by exactly one optimiser. ``param_groups`` are those of the
inner optimisers themselves, so that schedules, also accelerate's, reach them; each keeps its own base learning rate.
The state dictionary holds the route and a plain state dictionary an inner optimiser; loading it takes over the saved
route and goes on to the bit. Rules::

    hidden   every linear weight inside the numbered blocks (no adapter's factor)
    lora_A, lora_B, lora    the factors of LoRA: A alone, B alone, both
    none     AdamW alone

or a collection of parameter names: those of a list, those that patterns find (`matching_names`), or those of the
blocks that a condition favours (`favoured_names`); as the last are known after the first backward pass, `take` gives
another route until the first step.

Source: torch.optim.Muon; METHODS.md 5.5: embeddings, heads, gains and biases stay with AdamW. Left out on purpose:
changing the route after the first step, which would throw away moments.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers.pytorch_utils import Conv1D

from stablerank.errors import ModelError
from stablerank.optimisers.spectral_descent import SpecGD

Rule = Literal["hidden", "lora_A", "lora_B", "lora", "none"]
RULES: dict[str, str] = {
    "hidden": r"^(?!.*\.lora_)(.*\.)?\d+\.",
    "lora_A": r"\.lora_A\.",
    "lora_B": r"\.lora_B\.",
    "lora": r"\.lora_[AB]\.",
    "none": r"(?!)",
}


class RoutedOptimiser(Optimizer):
    """Two optimisers in the place of one: AdamW, and a spectral one that takes some of the matrices."""

    def __init__(self, parts: dict[str, Optimizer], matrices: dict[str, nn.Parameter], method: str) -> None:
        """``parts``: ``adamw``, whose first group holds matrices, and ``method``; ``matrices``: all that can move."""
        self.parts, self.matrices, self.method = parts, matrices, method
        super().__init__([group for part in parts.values() for group in part.param_groups], {})
        self._link()

    @property
    def spectral(self) -> list[str]:
        """Names of the matrices that the spectral part steps, in the model's order."""
        taken = {id(weight) for weight in self._group(self.method)["params"]}
        return [name for name, weight in self.matrices.items() if id(weight) in taken]

    def take(self, names: Iterable[str]) -> None:
        """Give exactly these matrices to the spectral part.

        Raises:
            ModelError: a step was taken, or a name is none of the matrices.
        """
        if any(part.state for part in self.parts.values()):
            raise ModelError(
                "The route was asked to change after the first step, which would throw away moments: choose it before."
            )
        self._take(set(names))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every part."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The route, and by part."""
        return {"route": self.spectral, **{name: part.state_dict() for name, part in self.parts.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ModelError: the state is of other parts."""
        if set(state_dict) != {"route", *self.parts}:
            raise ModelError(
                f"The saved optimiser has the parts {sorted(set(state_dict) - {'route'})}, but this one has "
                f"{sorted(self.parts)}: route as the saved run did."
            )
        self._take(set(state_dict["route"]))
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._link()

    def _group(self, part: str) -> dict[str, Any]:
        """Where a part keeps its matrices."""
        return self.parts[part].param_groups[0]

    def _take(self, names: set[str]) -> None:
        if unknown := names - self.matrices.keys():
            raise ModelError(
                f"{min(unknown)} is no trained matrix of a linear layer of this model: give names of "
                "`model.named_parameters()` that are."
            )
        held = {id(weight) for weight in self.matrices.values()}
        others = [weight for weight in self._group("adamw")["params"] if id(weight) not in held]
        left = [weight for name, weight in self.matrices.items() if name not in names]
        self._group("adamw")["params"] = [*others, *left]
        self._group(self.method)["params"] = [self.matrices[name] for name in self.matrices if name in names]

    def _link(self) -> None:
        """The groups are the parts' own: what a schedule writes here is what they read."""
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


def spectral_names(model: nn.Module, rule: Rule) -> set[str]:
    """Names of the trained matrices of linear layers that a rule chooses.

    Raises:
        ModelError: a rule other than ``none`` chooses nothing.
    """
    chosen = {name for name in _matrices(model) if re.search(RULES[rule], name)}
    if not chosen and rule != "none":
        raise ModelError(
            f"The rule {rule!r} finds no trained matrix in {type(model).__name__}: choose one of {', '.join(RULES)}."
        )
    return chosen


def matching_names(model: nn.Module, patterns: Iterable[str]) -> set[str]:
    """Names of the trained matrices of linear layers in which one of the regular expressions is found.

    Raises:
        ModelError: a pattern is no regular expression, or finds nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        try:
            matched = {name for name in _matrices(model) if re.search(pattern, name)}
        except re.error as error:
            raise ModelError(f"The pattern {pattern!r} is no regular expression ({error}): mend it.") from error
        if not matched:
            example = next(iter(_matrices(model)), "none")
            raise ModelError(
                f"The pattern {pattern!r} finds no trained matrix of a linear layer in {type(model).__name__}, whose "
                f"first is {example}: mend the pattern."
            )
        found |= matched
    return found


def favoured_names(model: nn.Module, places: Collection[tuple[int | None, str]]) -> set[str]:
    """Names of the trained matrices at ``(layer, module)``, as the rows of probes name them."""
    wanted = {f".{module}" if layer is None else f".{layer}.{module}" for layer, module in places}
    plain = {name: f".{name.removesuffix('.weight').replace('.base_layer', '')}" for name in _matrices(model)}
    return {name for name, place in plain.items() if place.removesuffix(".default").endswith(tuple(wanted))}


def routed(
    model: nn.Module,
    spectral: Iterable[str],
    *,
    muon_lr: float,
    adamw_lr: float,
    method: Literal["muon", "specgd"] = "muon",
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    match_rms_adamw: bool = False,
) -> RoutedOptimiser:
    """The optimiser of a model's trained parameters; ``spectral`` names those that Muon, or SpecGD, takes.

    Weight decay is decoupled and falls on matrices alone. ``match_rms_adamw`` scales Muon's steps to the size of
    AdamW's, so that one learning rate serves both; without it they are scaled by ``sqrt(max(1, rows / columns))``.

    Raises:
        ModelError: a name is no trained matrix of a linear layer.
    """
    matrices = _matrices(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    held = {id(weight) for weight in matrices.values()}
    decayed = [weight for weight in trained if weight.ndim >= 2 and id(weight) not in held]
    vectors = [weight for weight in trained if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    parts: dict[str, Optimizer] = {"adamw": AdamW(groups, lr=adamw_lr, betas=betas, eps=epsilon)}
    if method == "muon":
        adjust = "match_rms_adamw" if match_rms_adamw else "original"
        empty: list[dict[str, Any]] = [{"params": []}]
        parts["muon"] = Muon(empty, lr=muon_lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn=adjust)
    else:
        parts["specgd"] = SpecGD([{"params": []}], lr=muon_lr, weight_decay=weight_decay)
    optimiser = RoutedOptimiser(parts, matrices, method)
    optimiser.take(spectral)
    return optimiser


def _matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained weights of linear layers, by name; embeddings are none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return {
        f"{name}.weight": cast(nn.Parameter, layer.weight)
        for name, layer in layers.items()
        if layer.weight.requires_grad and layer.weight.ndim == 2
    }
