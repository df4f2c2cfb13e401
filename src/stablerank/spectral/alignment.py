"""How an update is spread over the leading singular directions of its base, one direction at a time.

Legend: O output features, I input features, K directions.

Contract: ``s_k^2 = ||dW v_k||^2 / ||dW||_F^2`` for the K right directions of the base; their sum is the one-sided head
energy of subspaces.py, and over all I directions it is 1. Zero or not finite gives NaN. Where two singular values of
the base nearly coincide, their two directions are arbitrary and so are their two numbers; the sum over both is not.

Numerics: fp64. Both shares come from one product with the operator, O((O + I) R K) for factors of rank R.

Source: GeoRA (2601.09361) eq. 10, the alignment score; METHODS.md 2.4.

Left out on purpose: the profile over left directions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.spectral.operators import Operator


@dataclass(frozen=True, eq=False)
class Alignment:
    """Shares of the energy of one update."""

    squares_K: Tensor
    """``s_k^2`` in fp64."""
    two_sided: float
    """``||U^T dW V||_F^2 / ||dW||_F^2``."""

    @property
    def one_sided(self) -> float:
        """``||dW V||_F^2 / ||dW||_F^2``."""
        return self.squares_K.sum().item()


@torch.no_grad()
def alignment(operator: Operator, u_OK: Tensor, v_IK: Tensor) -> Alignment:
    """The alignment of an update with K left and K right singular vectors of its base, on the operator's device.

    Raises:
        ValueError: the vectors do not fit the operator.
    """
    if (len(u_OK), len(v_IK)) != operator.shape or u_OK.shape[1] != v_IK.shape[1]:
        raise ValueError(
            f"The alignment of an update {operator.shape} needs as many left vectors (O, K) as right ones (I, K), but "
            f"they are {tuple(u_OK.shape)} and {tuple(v_IK.shape)}: take both from the base weight of the same matrix."
        )
    image_OK = operator.matmat(v_IK.double()).double()
    total = operator.frobenius_sq()
    if not (math.isfinite(total) and total > 0):
        return Alignment(v_IK.new_full((v_IK.shape[1],), torch.nan, dtype=torch.float64), math.nan)
    within_KK = u_OK.double().mT @ image_OK
    return Alignment(image_OK.square().sum(0) / total, within_KK.square().sum().item() / total)
