"""Spectral descent with the exact polar factor: ``W <- W - lr |G|_* polar(G)``.

Contract: `polar_factor` is ``U V^T`` of the thin SVD; directions whose singular value is zero stay zero. With
``lr = 1 / L_op`` on a loss of curvature ``L_op`` in the operator norm, a step decreases the loss by at least
``|G|_*^2 / (2 L_op)``. For a linear layer with squared loss over n tokens ``L_op = |A|_F^2 / n``. Weight decay is
decoupled, as in AdamW. Matrices only.

Numerics: SVD in fp64; a singular value below ``max(shape) eps s_1`` of the gradient's own type counts as zero.
Cost: one SVD a matrix and step, which is the price of exactness; Muon (torch.optim.Muon) is the cheap kin.

Source: Davis, Drusvyatskiy (2512.04299), section 1; METHODS.md 5.1. Left out on purpose: momentum; closures.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stablerank.errors import ModelError


def polar_factor(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """``(U V^T, |G|_*)`` of a matrix, in its own type."""
    left, values, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    floor = max(gradient.shape) * torch.finfo(gradient.dtype).eps * values[0]
    kept = (values > floor).double()
    return ((left * kept) @ right).to(gradient.dtype), values.sum().to(gradient.dtype)


class SpecGD(Optimizer):
    """Spectral gradient descent."""

    def __init__(
        self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, weight_decay: float = 0.0
    ) -> None:
        """Raises ModelError: a parameter is not a matrix."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim != 2:
                    raise ModelError(
                        f"Spectral descent steps along the polar factor of a matrix, but a parameter of shape "
                        f"{tuple(weight.shape)} was given: leave it to AdamW."
                    )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    direction, nuclear = polar_factor(weight.grad)
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(direction * (-group["lr"] * nuclear))
