"""The landing field: keep matrices near the Stiefel manifold with any optimiser, without a retraction.

Legend: P a point, n-by-p with n >= p (a wide matrix is read as its transpose); g the gradient of the loss at P.

Contract: `attach_landing` replaces the gradient of the given parameters, right before the optimiser reads it and so
after any clipping, by::

    landing_field(P) = (g P^T - P g^T) P + penalty P (P^T P - I)

The first term leaves ``P^T P`` unchanged to first order; the second is the descent of ``|P^T P - I|_F^2 / 4``. They are
orthogonal, on the manifold and off it. An adaptive optimiser rescales the entries of the field, so that its step leaves
the tangent space and only the penalty keeps P near the manifold: watch `drift`. The norm that clipping and logs see
is that of the raw gradient.

Numerics: fp32 at least, as ``g (P^T P) - P (g^T P)``: O(n p^2) work and O(n p) memory, never an n-by-n matrix.

Source: Ablin & Peyre (2102.07432); PoLAR (2506.03133) and its code, kcc-lion/polar. The skew part here is the code's,
twice that of the papers (``half_skew`` is theirs), so that penalties are not comparable across implementations.

Left out on purpose: parameters sharded by DeepSpeed or FSDP 1, which the optimiser does not hold as matrices (refused),
and a safe step size, which needs plain gradient descent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stablerank.errors import ModelError


@dataclass(frozen=True)
class Landing:
    """The switches of the field."""

    penalty: float = 5e-3
    """Factor of the pull to the manifold; the authors' is 5e-3 for language models and 1 on GLUE."""
    half_skew: bool = False
    gradient: Literal["landing", "euclidean"] = "landing"
    """``euclidean``: the raw gradient plus the pull, the authors' ablation."""


@torch.no_grad()
def landing_field(point: Tensor, gradient: Tensor, settings: Landing) -> Tensor:
    """What the optimiser is to follow at ``point`` instead of the gradient; same shape, fp32 at least."""
    if point.shape[0] < point.shape[1]:
        return landing_field(point.T, gradient.T, settings).T
    point, gradient = _wide(point), _wide(gradient)
    return _along(point, gradient, settings) + settings.penalty * _pull(point)


@torch.no_grad()
def drift(point: Tensor) -> Tensor:
    """``|P^T P - I|_F``, a scalar: 0 on the manifold."""
    point = _wide(point if point.shape[0] >= point.shape[1] else point.T)
    return torch.linalg.matrix_norm(_excess(point))


def attach_landing(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], settings: Landing | None = None
) -> RemovableHandle:
    """Let the optimiser follow the landing field for these parameters until the handle is removed.

    Args:
        optimizer: Any optimiser, or accelerate's wrapper of one. A closure that computes gradients inside ``step`` is
            not seen.
        parameters: Matrices, tall or wide, in fp32 at least.
        settings: The field's switches.

    Raises:
        ModelError: a parameter is not in the optimiser, has weight decay there, or is kept in less than fp32.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    chosen, settings = list(parameters), settings or Landing()
    _check(optimizer, chosen)

    def follow(*_: Any) -> None:
        for parameter in chosen:
            if parameter.grad is not None:
                parameter.grad.copy_(landing_field(parameter, parameter.grad, settings))

    return optimizer.register_step_pre_hook(follow)


def _along(point: Tensor, gradient: Tensor, settings: Landing) -> Tensor:
    """The part that follows the loss."""
    if settings.gradient == "euclidean":
        return gradient
    skew = gradient @ (point.T @ point) - point @ (gradient.T @ point)
    return skew / 2 if settings.half_skew else skew


def _pull(point: Tensor) -> Tensor:
    return point @ _excess(point)


def _excess(point: Tensor) -> Tensor:
    return point.T @ point - torch.eye(point.shape[1], dtype=point.dtype, device=point.device)


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _check(optimizer: Optimizer, chosen: list[nn.Parameter]) -> None:
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in chosen:
        shape = tuple(parameter.shape)
        if id(parameter) not in groups:
            raise ModelError(
                f"An orthonormal factor {shape} is not among the parameters of {type(optimizer).__name__}, so nothing "
                "would keep it orthonormal; train it unsharded (neither DeepSpeed nor FSDP 1), or freeze it."
            )
        if decay := groups[id(parameter)].get("weight_decay"):
            raise ModelError(
                f"weight_decay={decay} would pull an orthonormal factor {shape} off its manifold; set weight_decay=0, "
                "or put these factors into a parameter group with 0."
            )
        if parameter.dtype.itemsize < torch.float32.itemsize:
            raise ModelError(
                f"An orthonormal factor {shape} is kept in {parameter.dtype}, too coarse to stay orthonormal; give it "
                "`parameter.data.float()` before training."
            )
