"""Where an update lies relative to its base: leading singular subspaces, head energy, principal angles.

Legend: O output features (rows), I input features (columns), K dimensions of a subspace, N ambient dimensions,
S = min(O, I).

Contract: a subspace is given by a matrix with orthonormal columns. Whatever is zero or not finite gives NaN. Head
energy is a share of ``||dW||_F^2``, so its value for a random direction is the share of dimensions, K / I one-sided and
K^2 / (O I) two-sided: never read it without that floor (subspace_nulls.py). "94 % off-principal" is what a random
update shows too.

Numerics: fp64 throughout; no gradient. The K leading right vectors come from ``eigh`` of the smaller Gram matrix, fp64
and accumulated in blocks (no fp64 copy of the weight), then from one SVD of ``W V`` (Rayleigh-Ritz), which returns
orthonormal factors and values to full accuracy. Rounding turns the subspace by about ``u sigma_1^2 / (sigma_K^2 -
sigma_{K+1}^2)``, u = 2^-53; an update turns it by at most ``||dW||_2 / (sigma_K - sigma_{K+1})`` (Wedin 1972). So the
relative gap comes with it: at gap 0 the K-th direction is arbitrary, and every number built on it is too. All K = S
vectors come from a direct SVD. Cost O(O I S + S^3), and O((O + I) K R) for the energy of a rank-R factored update.

Angles use sines below 45 degrees and cosines above, through ``atan2`` of both: an ``acos`` alone cannot see angles
under 1e-8 rad = 6e-7 degrees (Bjorck & Golub 1973; Knyazev & Argentati 2002). Cost O(N K^2).

Source: METHODS.md 2.4 (alignment ``s_k``, whose squares sum to the one-sided energy), 8.4, 9.10. The subspace overlap
of 8.4 is the mean of ``cos^2`` over the principal angles; divided by its floor K / N it is the "bonus".

Left out on purpose: angles between single singular vectors (meaningless where singular values nearly coincide),
subspaces of unlike dimensions, randomised SVD (no certificate for the K-th vector).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.spectral.blocks import BLOCK_ENTRIES, flat_blocks
from stablerank.spectral.operators import Operator
from stablerank.spectral.precision import at_least_fp32


@dataclass(frozen=True, eq=False)
class Subspaces:
    """The K leading singular triplets of a matrix, in fp64, and how well the K-th is separated from the next."""

    u_OK: Tensor
    values_K: Tensor
    v_IK: Tensor
    gap: float
    """``(sigma_K - sigma_{K+1}) / sigma_1``, with sigma_{S+1} = 0; resolved to about 1e-8."""


@torch.no_grad()
def singular_subspaces(weight_OI: Tensor, k: int) -> Subspaces:
    """The ``k`` leading left and right singular vectors of a matrix; NaN throughout where it is zero or not finite.

    Raises:
        ValueError: not a matrix, or ``k`` outside ``1..min(O, I)``.
    """
    if weight_OI.ndim != 2 or not 1 <= k <= min(weight_OI.shape):
        raise ValueError(
            f"A singular subspace needs a matrix and 1 <= k <= its smaller side, but the shape is "
            f"{tuple(weight_OI.shape)} and k={k}: lower k or reshape the tensor to (O, I)."
        )
    scale = max(at_least_fp32(block).abs().amax().item() for block in flat_blocks(weight_OI))
    if scale == 0 or not math.isfinite(scale):
        return _undefined(weight_OI, k)
    if weight_OI.shape[0] < weight_OI.shape[1]:
        flipped = _tall_subspaces(weight_OI.mT, k, scale)
        return Subspaces(flipped.v_IK, flipped.values_K, flipped.u_OK, flipped.gap)
    return _tall_subspaces(weight_OI, k, scale)


def head_energy(operator: Operator, v_IK: Tensor) -> float:
    """``||dW V||_F^2 / ||dW||_F^2``: the share of an update that reads the K right directions ``v_IK`` of its base.

    Raises:
        ValueError: ``v_IK`` does not have I rows.
    """
    _require_basis("v_IK", v_IK, operator.shape[1])
    return _share(operator.matmat(v_IK.double()), operator)


def head_energy_left(operator: Operator, u_OK: Tensor) -> float:
    """``||U^T dW||_F^2 / ||dW||_F^2``: the share of an update that writes into the K left directions ``u_OK``.

    Raises:
        ValueError: ``u_OK`` does not have O rows.
    """
    _require_basis("u_OK", u_OK, operator.shape[0])
    return _share(operator.rmatmat(u_OK.double()), operator)


def head_energy_two_sided(operator: Operator, u_OK: Tensor, v_IK: Tensor) -> float:
    """``||U^T dW V||_F^2 / ||dW||_F^2``: the share of an update that stays within both head subspaces.

    Raises:
        ValueError: ``u_OK`` does not have O rows, or ``v_IK`` not I.
    """
    _require_basis("u_OK", u_OK, operator.shape[0])
    _require_basis("v_IK", v_IK, operator.shape[1])
    return _share(u_OK.double().mT @ operator.matmat(v_IK.double()).double(), operator)


@torch.no_grad()
def principal_angles(x_NK: Tensor, y_NK: Tensor) -> Tensor:
    """The K angles between two subspaces in degrees, descending, as ``scipy.linalg.subspace_angles`` orders them.

    The columns need full rank but not be orthonormal. The largest angle is the distance of the subspaces, and the first
    to saturate where the base has no gap at K; the mean is the robust summary.

    Raises:
        ValueError: the shapes differ, or there are more columns than rows.
    """
    if x_NK.shape != y_NK.shape or x_NK.ndim != 2 or not 1 <= x_NK.shape[1] <= x_NK.shape[0]:
        raise ValueError(
            f"Principal angles need two bases (N, K) of one shape with 1 <= K <= N, but the shapes are "
            f"{tuple(x_NK.shape)} and {tuple(y_NK.shape)}: take as many vectors from each."
        )
    if not (x_NK.isfinite().all() and y_NK.isfinite().all()):
        return x_NK.new_full((x_NK.shape[1],), torch.nan, dtype=torch.float64)
    x_NK, y_NK = torch.linalg.qr(x_NK.double()).Q, torch.linalg.qr(y_NK.double()).Q
    inner_KK = x_NK.mT @ y_NK
    cosines_K = torch.linalg.svdvals(inner_KK)
    sines_K = torch.linalg.svdvals(y_NK - x_NK @ inner_KK)
    return torch.rad2deg(torch.atan2(sines_K, cosines_K.flip(0)))


def _tall_subspaces(weight_OI: Tensor, k: int, scale: float) -> Subspaces:
    """The triplets of a matrix with ``O >= I``, divided by its largest entry so that no square over- or underflows."""
    blocks = torch.split(weight_OI, max(1, BLOCK_ENTRIES // weight_OI.shape[1]))
    if k == weight_OI.shape[1]:
        start_IK, following = None, 0.0
    else:
        start_IK, following = _gram_vectors(blocks, k, scale)
    images = [block.double() / scale for block in blocks]
    if start_IK is not None:
        images = [image @ start_IK for image in images]
    u_OK, values_K, vh = torch.linalg.svd(torch.cat(images), full_matrices=False)
    v_IK = vh.mT if start_IK is None else start_IK @ vh.mT
    gap = max(values_K[-1].item() - following, 0.0) / values_K[0].item()
    return Subspaces(u_OK, scale * values_K, v_IK, gap)


def _gram_vectors(blocks_OI: tuple[Tensor, ...], k: int, scale: float) -> tuple[Tensor, float]:
    """The ``k`` leading right vectors ``(I, K)`` by ``eigh`` of the Gram matrix, and the singular value after them."""
    columns = blocks_OI[0].shape[1]
    gram_II = blocks_OI[0].new_zeros((columns, columns), dtype=torch.float64)
    for block in blocks_OI:
        rows = block.double() / scale
        gram_II.addmm_(rows.mT, rows)
    eigenvalues_I, vectors_II = torch.linalg.eigh(gram_II)
    return vectors_II[:, -k:], math.sqrt(max(eigenvalues_I[-k - 1].item(), 0.0))


def _share(projected: Tensor, operator: Operator) -> float:
    energy, total = projected.double().square().sum().item(), operator.frobenius_sq()
    return energy / total if total > 0 and math.isfinite(total) and math.isfinite(energy) else math.nan


def _require_basis(name: str, basis: Tensor, dimensions: int) -> None:
    if basis.ndim != 2 or basis.shape[0] != dimensions or not 1 <= basis.shape[1] <= dimensions:
        raise ValueError(
            f"Head energy needs {name} of shape ({dimensions}, K) with 1 <= K <= {dimensions}, but it is "
            f"{tuple(basis.shape)}: take the basis from the base weight of the same matrix."
        )


def _undefined(weight_OI: Tensor, k: int) -> Subspaces:
    u_OK, values_K, v_IK = (
        weight_OI.new_full(shape, torch.nan, dtype=torch.float64)
        for shape in ((weight_OI.shape[0], k), (k,), (weight_OI.shape[1], k))
    )
    return Subspaces(u_OK, values_K, v_IK, math.nan)
