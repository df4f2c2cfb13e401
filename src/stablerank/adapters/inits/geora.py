"""GeoRA: the first product is the head of what is left of a weight where it, or its own head, is small.

Legend: O output features, I input features, R rank.

Formula (2601.09361, equations 1 to 7)::

    W_R = rank-R reconstruction of W             M_Spec = |W_R| <= its rho-quantile
                                                 M_Euc  = |W|   <= its rho-quantile
    W_Geo = W * (M_Spec or M_Euc) = U S V^T      B0 = U_R S_R^(1/2),  A0 = S_R^(1/2) V_R^T

The scale: as the paper writes it, ``s B0 A0`` is ``s`` times the rank-R part of ``W_Geo``, while PiSSA and MiLoRA
divide by ``s`` first. The default ``alpha = r`` makes both agree. Since the update is counted from ``s B0 A0``, the
function is preserved either way (difference.py).

Quantiles are exact, of each matrix by itself, at any size; entries tied with the threshold all belong, so that a mask
may keep more than ``rho`` (exact zeros tie by the thousand). The spectral mask takes the reconstruction in fp32.

Ablations of the paper: ``spectral_mask=False``, ``euclidean_mask=False``, ``component`` ``tail`` or ``random``: which
triplets of ``W_Geo`` are taken.

The masks shape the first factors only: nothing keeps the trained ones there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from stablerank.adapters.inits.components import component_factors, component_triplets
from stablerank.errors import ModelError
from stablerank.spectral.top_subspace import Triplets, leading_triplets
from stablerank.spectral.update_masks import low_magnitude_mask

_DEFAULTS = {"rho": 0.2, "spectral_mask": True, "euclidean_mask": True, "component": "head", "svd": "randomised"}


def geora_factors(module: Linear, adapter: str, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``B0`` and ``A0`` of the formula in fp32, without the scale.

    Raises:
        ModelError: as `component_factors`, or both masks are off.
    """
    chosen = {name: settings.get(name, default) for name, default in _DEFAULTS.items()}
    if not (chosen["spectral_mask"] or chosen["euclidean_mask"]):
        raise ModelError(
            "GeoRA with spectral_mask=false and euclidean_mask=false keeps no entry of a weight: leave one of them on, "
            "or use PiSSA."
        )
    return component_factors(
        module, adapter, {"method": "geora", **chosen}, lambda weight_OI, rank: _triplets(weight_OI, rank, chosen)
    )


@torch.no_grad()
def geora_masks(weight_OI: Tensor, rank: int, rho: float, svd: str = "randomised") -> tuple[Tensor, Tensor]:
    """``M_Spec`` and ``M_Euc``, boolean ``(O, I)``."""
    return _spectral_mask(weight_OI, rank, rho, svd), _kept(weight_OI, rho)


@torch.no_grad()
def union_mask(
    weight_OI: Tensor, rank: int, rho: float, spectral_mask: bool, euclidean_mask: bool, svd: str = "randomised"
) -> Tensor:
    """``M_Spec or M_Euc``, or the one that is asked for; boolean ``(O, I)``."""
    union_OI = torch.zeros_like(weight_OI, dtype=torch.bool)
    if spectral_mask:
        union_OI |= _spectral_mask(weight_OI, rank, rho, svd)
    if euclidean_mask:
        union_OI |= _kept(weight_OI, rho)
    return union_OI


@torch.no_grad()
def _triplets(weight_OI: Tensor, rank: int, chosen: Mapping[str, Any]) -> Triplets:
    masks = {name: chosen[name] for name in ("rho", "spectral_mask", "euclidean_mask", "svd")}
    union_OI = union_mask(weight_OI, rank, **masks)
    return component_triplets(weight_OI.float() * union_OI, rank, chosen["component"], chosen["svd"])


def _spectral_mask(weight_OI: Tensor, rank: int, rho: float, svd: str) -> Tensor:
    head = leading_triplets(weight_OI, rank, exact=svd == "exact")
    return _kept((head.u_OR * head.values_R).float() @ head.v_IR.float().mT, rho)


def _kept(matrix_OI: Tensor, rho: float) -> Tensor:
    """The ``rho`` smallest entries; none of a zero matrix."""
    mask_OI = low_magnitude_mask(matrix_OI, rho)
    assert mask_OI.count_nonzero() >= rho * matrix_OI.numel() - 1 or not matrix_OI.any(), "a mask lost entries"
    return mask_OI
