"""Singular components of a weight as first factors: what PiSSA, MiLoRA and GeoRA share.

Legend: O output features, I input features, R rank.

Contract: from R triplets of a matrix come ``B = U S^(1/2)`` and ``A = S^(1/2) V^T`` in fp32, contiguous, at scale 1;
they are cached by the content of the weight (cache.py). ``component`` names the triplets: ``head`` the R largest,
``tail`` the R smallest, ``random`` R drawn without replacement, by a generator seeded with the matrix itself: equal
weights give equal factors in any order of layers. ``svd`` is ``randomised`` or ``exact`` and matters to the head alone.

Decided here: a matrix whose chosen values are all zero is refused, for both factors would start at zero and no gradient
would ever move them; a component whose value is zero beside others that are not is kept as it is, and does not train.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from stablerank.adapters.cache import cached_factors, content_hash
from stablerank.adapters.variants.base import base_weight
from stablerank.errors import ModelError
from stablerank.spectral.top_subspace import Triplets, exact_triplets, leading_triplets

Choose = Callable[[Tensor, int], Triplets]


def component_factors(module: Linear, adapter: str, recipe: Mapping[str, Any], choose: Choose) -> tuple[Tensor, Tensor]:
    """``B (O, R)`` and ``A (R, I)`` at scale 1 of the triplets that ``choose(weight, rank)`` gives.

    Raises:
        ModelError: the rank exceeds a side of the weight; the weight is not finite; the chosen components are zero.
    """
    weight_OI, rank = base_weight(module), int(module.r[adapter])
    if rank > min(weight_OI.shape):
        raise ModelError(
            f"Rank {rank} exceeds the smaller side of a weight of shape {tuple(weight_OI.shape)}: lower `r`, or leave "
            "this layer out with `exclude_modules` or `rank_pattern`."
        )

    def compute() -> tuple[Tensor, Tensor]:
        largest = _largest_entry(weight_OI)
        return _roots(choose(weight_OI, rank), weight_OI.shape, largest)

    return cached_factors(weight_OI, {**recipe, "rank": rank}, compute)


def component_triplets(matrix_OI: Tensor, rank: int, component: str, svd: str) -> Triplets:
    """The R triplets that ``component`` names, descending.

    Raises:
        ModelError: another component or svd than those of the module header.
    """
    shorter = min(matrix_OI.shape)
    match component, svd:
        case "head", "randomised" | "exact":
            return leading_triplets(matrix_OI, rank, exact=svd == "exact")
        case "tail", "randomised" | "exact":
            return exact_triplets(matrix_OI, range(shorter - rank, shorter))
        case "random", "randomised" | "exact":
            generator = torch.Generator().manual_seed(int(content_hash(matrix_OI)[:15], 16))
            return exact_triplets(matrix_OI, torch.randperm(shorter, generator=generator)[:rank].sort().values)
    raise ModelError(
        f"component={component!r} with svd={svd!r} names no triplets: component is head, tail or random, and svd is "
        "randomised or exact."
    )


def _roots(triplets: Triplets, shape: torch.Size, largest: float) -> tuple[Tensor, Tensor]:
    # What rounding in fp64 leaves of a zero: sigma_1 is at most the second factor.
    if triplets.values_R[0] <= 1e-12 * largest * math.sqrt(shape.numel()):
        raise ModelError(
            f"The components to start from are zero in a weight of shape {tuple(shape)}, so that both factors would "
            "start at zero and never train: leave this layer out with `exclude_modules`, or use LoRA."
        )
    root_R = triplets.values_R.double().sqrt()
    b_OR, a_RI = triplets.u_OR.double() * root_R, root_R[:, None] * triplets.v_IR.double().mT
    return b_OR.float().contiguous(), a_RI.float().contiguous()


def _largest_entry(weight_OI: Tensor) -> float:
    low, high = weight_OI.aminmax()
    largest = max(-low.item(), high.item())
    if not math.isfinite(largest):
        raise ModelError(
            f"A weight of shape {tuple(weight_OI.shape)} has entries that are not finite and cannot be factorised: "
            "check the checkpoint, or leave this layer out with `exclude_modules`."
        )
    return largest
