"""Which directions an update takes: beside another update, in the basis of its weight, and from layer to layer.

Legend: O output features, I input features, K leading directions, N ambient dimensions (O or I).

Contract: an update is reduced once to its K leading singular vectors on both sides (`leading`). Then

- `overlap` of two subspaces: mean ``cos^2`` of their principal angles. Two Haar-random ones have K / N.
- `bonus`: the overlap of an update's right directions with those of its weight, over K / I; 1 is a random update. The
  source's ``bonus_R(k)`` (METHODS.md 8.4).
- `profile`: the share of the update's energy on each right singular direction of its weight, all of them, so that it
  sums to 1 where the weight has full column rank; `distance` of two profiles is their total variation, 0 to 1.
- `adjacent`: the overlap of each update with that of the same module one layer on, by side.

Traps, which are the caller's to mind: two LoRA runs of one seed begin with the same A, and their right directions agree
for that alone; where singular values nearly coincide the K-th direction is arbitrary, so read overlaps beside the same
between two seeds of one method.

Numerics: fp64. A factored update costs O((O + I) R^2), a profile one whole SVD of the weight. An update of zero has
NaN everywhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.rows import layer_and_module
from stablerank.probes.updates import NamedUpdate, Update
from stablerank.spectral.alignment import alignment
from stablerank.spectral.operators import Factored
from stablerank.spectral.subspaces import principal_angles, singular_subspaces

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")


@dataclass(frozen=True, eq=False)
class Directions:
    """The K leading singular vectors of an update."""

    name: str
    u_OK: Tensor
    v_IK: Tensor

    def side(self, side: Side) -> Tensor:
        """``left``: what the update writes; ``right``: what it reads."""
        return self.u_OK if side == "left" else self.v_IK


def leading(updates: Iterable[NamedUpdate], k: int) -> list[Directions]:
    """The ``k`` leading directions of each update, in their order.

    Raises:
        ModelError: an update has fewer than ``k`` directions.
    """
    return [_leading(update.name, update.operator, k) for update in updates]


def overlap(x_NK: Tensor, y_NK: Tensor) -> float:
    """``||X^T Y||_F^2 / K`` of two orthonormal bases; NaN where one is."""
    return float(torch.deg2rad(principal_angles(x_NK, y_NK)).cos().square().mean())


def bonus(update: Directions, weight_OI: Tensor) -> float:
    """The overlap with the weight's leading right directions, over that of a random subspace."""
    size, k = update.v_IK.shape
    return overlap(update.v_IK, singular_subspaces(weight_OI, k).v_IK) * size / k


def profile(update: Update, weight_OI: Tensor) -> Tensor:
    """``||dW v_k||^2 / ||dW||_F^2`` over the right singular directions ``v_k`` of the weight, largest value first."""
    basis = singular_subspaces(weight_OI, min(weight_OI.shape))
    return alignment(update, basis.u_OK, basis.v_IK).squares_K


def distance(one_K: Tensor, other_K: Tensor) -> float:
    """Total variation of two profiles over one basis; what lies outside the basis counts as one more direction."""
    outside = (one_K.sum() - other_K.sum()).abs()
    return float(((one_K - other_K).abs().sum() + outside) / 2)


def adjacent(directions: Sequence[Directions], side: Side) -> dict[str, float]:
    """By name of the first of two layers: the overlap with the same module one layer on, where shapes agree."""
    by_place = {layer_and_module(one.name): one for one in directions}
    found = {}
    for (layer, module), one in by_place.items():
        after = None if layer is None else by_place.get((layer + 1, module))
        if after is not None and after.side(side).shape == one.side(side).shape:
            found[one.name] = overlap(one.side(side), after.side(side))
    return found


def _leading(name: str, operator: Update, k: int) -> Directions:
    most = min(*operator.shape, operator.b_OR.shape[1]) if isinstance(operator, Factored) else min(operator.shape)
    if k > most:
        raise ModelError(f"The update of {name} has {most} directions, but {k} are asked for; ask for {most} or fewer.")
    if not isinstance(operator, Factored):
        found = singular_subspaces(operator.materialised(), k)
        return Directions(name, found.u_OK, found.v_IK)
    left, right = torch.linalg.qr(operator.b_OR.detach().double()), torch.linalg.qr(operator.a_RI.detach().double().mT)
    core = singular_subspaces(operator.scale * left.R @ right.R.mT, k)
    return Directions(name, left.Q @ core.u_OK, right.Q @ core.v_IK)
