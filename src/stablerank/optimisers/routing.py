"""Which matrices take a spectral step: one optimiser that routes each parameter to Muon (or SpecGD) or to AdamW.

::

    names = spectral_names(model, "hidden")
    trainer = Trainer(model, arguments, optimizers=(routed(model, names, muon_lr=0.02, adamw_lr=3e-4), None))

Contract: every parameter that requires grad is stepped by exactly one optimiser. ``param_groups`` are those of the
inner optimisers themselves, so that schedules, also accelerate's, reach them; each keeps its own base learning rate.
The state dictionary holds a plain state dictionary an inner optimiser, and loading it goes on to the bit. Rules::

    hidden   every linear weight inside the numbered blocks (no adapter's factor)
    lora_A, lora_B, lora    the factors of LoRA: A alone, B alone, both
    none     AdamW alone

or a collection of parameter names: those of a list, or of the blocks that a condition favours (`favoured_names`).

Source: torch.optim.Muon; METHODS.md 5.5: embeddings, heads, gains and biases stay with AdamW. Left out on purpose:
changing the route while a run goes on, which would throw away moments.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
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
    """Several optimisers in the place of one."""

    def __init__(self, parts: dict[str, Optimizer]) -> None:
        """``parts``: by name, without a parameter in two of them."""
        self.parts = parts
        super().__init__([group for part in parts.values() for group in part.param_groups], {})
        self._link()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every part."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """By part."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ModelError: the state is of other parts."""
        if set(state_dict) != set(self.parts):
            raise ModelError(
                f"The saved optimiser has the parts {sorted(state_dict)}, but this one has {sorted(self.parts)}: "
                "route as the saved run did."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._link()

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
    match_rms_adamw: bool = False,
) -> RoutedOptimiser:
    """The optimiser of a model's trained parameters; ``spectral`` names those that Muon, or SpecGD, takes.

    Weight decay is decoupled and falls on matrices alone. ``match_rms_adamw`` scales Muon's steps to the size of
    AdamW's, so that one learning rate serves both; without it they are scaled by ``sqrt(max(1, rows / columns))``.

    Raises:
        ModelError: a name is no trained matrix of a linear layer.
    """
    names = set(spectral)
    if unknown := names - _matrices(model).keys():
        raise ModelError(
            f"{min(unknown)} is no trained matrix of a linear layer of {type(model).__name__}: give names of "
            "`model.named_parameters()` that are."
        )
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = [weight for name, weight in trained.items() if name in names]
    rest = [weight for name, weight in trained.items() if name not in names]
    parts: dict[str, Optimizer] = {}
    if matrices and method == "muon":
        adjust = "match_rms_adamw" if match_rms_adamw else "original"
        parts["muon"] = Muon(matrices, lr=muon_lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn=adjust)
    elif matrices:
        parts["specgd"] = SpecGD(matrices, lr=muon_lr, weight_decay=weight_decay)
    decayed = [weight for weight in rest if weight.ndim >= 2], [weight for weight in rest if weight.ndim < 2]
    groups = [
        {"params": weights, "weight_decay": decay}
        for weights, decay in zip(decayed, (weight_decay, 0.0), strict=True)
        if weights
    ]
    if groups:
        parts["adamw"] = AdamW(groups, lr=adamw_lr, betas=betas)
    return RoutedOptimiser(parts)


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """Trained weights of linear layers, by name; embeddings are none."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad and module.weight.ndim == 2
    }
