"""The leading singular triplets of a dense matrix, randomised or exact, and the trailing ones.

Legend: O output features, I input features, L longer side, K shorter side, R triplets, B block width, N basis
vectors.

Contract: `leading_triplets` keeps the head of the spectrum to an energy ``sum sigma^2`` within `TOLERANCE` of the best,
estimated; `energy_certificate.py` turns the estimate into a bound on request. `exact_triplets` gives any part of the
spectrum. Both are deterministic for a fixed matrix, device and thread count, and leave torch's generators alone.

Randomised route. Block Krylov: a Haar-random block at least as wide as R (so that no multiple value can hide), an
orthonormal basis of ``span(X, M X, M^2 X, ...)``, ``M = A^T A``, and the R leading Ritz vectors. One more half step
gives the triplets: with ``Y = orth(A X)``, those of ``Y Y^T A``. The energy they capture converges whatever the gaps
between singular values are (Musco & Musco 2015): weights of language models have flat spectra, where single vectors do
not converge and need not. The number of steps is foretold from the last two gains of energy, which fall geometrically
or faster; a basis that fills the space is exact.

Numerics: the basis may be built from bf16 products where the processor multiplies bf16 in hardware (it need only
contain the head: its loss was the same as with fp32 products to five digits, and it halves the time); the product
that gives values and vectors is fp32, the R-by-R core fp64. Vectors are orthonormal to about 1e-6, values good to 1e-6
of sigma_1; columns of a zero singular value are zero. Cost 4 O I R flops a step, 6 to 10 steps at K = 576.

Exact route: `eigh` of the fp64 Gram matrix of the shorter side, then one SVD of ``A V`` (Rayleigh-Ritz), so factors are
orthonormal and values accurate to 1e-15 of sigma_1. The smallest triplets are as good as the Gram matrix resolves them:
values under about 1e-8 sigma_1 are noise. Memory: one fp64 copy of the matrix.

Left out on purpose: a certificate by default. It needs a Lanczos run of its own on the deflated matrix, several times
as long as the factorisation itself; where certainty is wanted for small matrices, ``exact`` is the way to it.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from stablerank.spectral.lanczos import random_start
from stablerank.spectral.precision import at_least_fp32

TOLERANCE = 5e-4
"""Share of the best energy that the randomised route may miss, as foretold; SmolLM2's weights miss 6e-5 in the mean."""
_SMALL_SIDE = 96
_GRAM_SIDE = 256
"""Up to this side the Gram matrix in the matrix's own precision costs less than the steps: its head is as good."""
_NARROWEST = 16
"""Least block width: single orthogonalisation does not hold for the many steps that narrower blocks take."""
_FIRST_LOOK, _TRUSTED, _SLOWEST = 5, 4, 0.95
"""Steps before the first look, steps that a forecast is trusted for, and the slowest fall of the loss it admits."""
_ORTHONORMAL = 1e-3
"""Largest entry by which the products of eigenvectors may differ from those of orthonormal ones."""
_SAFE_ENTRY = (1e-12, 1e12)
"""Largest entries between these lose nothing to fp32 squares that over- or underflow."""


@dataclass(frozen=True, eq=False)
class Triplets:
    """Singular triplets in descending order."""

    u_OR: Tensor
    values_R: Tensor
    v_IR: Tensor

    def turned(self) -> "Triplets":
        """Those of the transposed matrix."""
        return Triplets(self.v_IR, self.values_R, self.u_OR)


@torch.no_grad()
def leading_triplets(weight_OI: Tensor, rank: int, *, exact: bool = False, seed: int = 0) -> Triplets:
    """The ``rank`` leading singular triplets, in fp32 (exact ones in fp64).

    Args:
        weight_OI: any floating-point dtype; never changed.
        rank: how many.
        exact: through the fp64 Gram matrix.
        seed: of the random start; the start must not depend on the matrix.

    Raises:
        ValueError: not a matrix, ``rank`` outside ``1..min(O, I)``, or an entry is not finite.
    """
    scale = _checked(weight_OI, rank)
    shorter = min(weight_OI.shape)
    if exact or shorter <= max(_SMALL_SIDE, 4 * rank):
        return exact_triplets(weight_OI, range(rank))
    matrix_OI = at_least_fp32(weight_OI)
    if not _SAFE_ENTRY[0] <= scale <= _SAFE_ENTRY[1]:
        if scale == 0:
            return exact_triplets(weight_OI, range(rank))
        matrix_OI = (matrix_OI.double() / scale).float()
    else:
        scale = 1.0
    tall_LK = matrix_OI if matrix_OI.shape[0] >= matrix_OI.shape[1] else matrix_OI.mT
    product_LK = tall_LK.to(_product_dtype(tall_LK))
    basis_KR = _gram_head(tall_LK, rank) if shorter <= _GRAM_SIDE else _krylov(product_LK, tall_LK.dtype, rank, seed)
    found = _half_step(tall_LK, product_LK, basis_KR)
    found = Triplets(found.u_OR, scale * found.values_R, found.v_IR)
    return found if tall_LK is matrix_OI else found.turned()


@torch.no_grad()
def exact_triplets(weight_OI: Tensor, positions: range | Tensor) -> Triplets:
    """The singular triplets at ``positions`` of the descending spectrum, ascending positions, in fp64.

    Raises:
        ValueError: not a matrix, a position outside ``0..min(O, I) - 1``, or an entry is not finite.
    """
    scale = _checked(weight_OI, int(positions[-1]) + 1) or 1.0
    matrix_OI = weight_OI.double() / scale
    if matrix_OI.shape[0] < matrix_OI.shape[1]:
        return _exact_tall(matrix_OI.mT, positions, scale).turned()
    return _exact_tall(matrix_OI, positions, scale)


def _exact_tall(matrix_LK: Tensor, positions: range | Tensor, scale: float) -> Triplets:
    start_KR = _gram_vectors(matrix_LK.mT @ matrix_LK, positions)
    u_LR, values_R, vh_RR = torch.linalg.svd(matrix_LK @ start_KR, full_matrices=False)
    return Triplets(u_LR, scale * values_R, start_KR @ vh_RR.mT)


def _gram_vectors(gram_KK: Tensor, positions: range | Tensor) -> Tensor:
    """Eigenvectors ``(K, R)`` at positions of the descending spectrum."""
    last = len(gram_KK) - 1
    if isinstance(positions, range) and gram_KK.device.type == "cpu":
        return _some_vectors(gram_KK, last - positions[-1], last - positions[0]).flip(1)
    chosen = torch.as_tensor(positions, device=gram_KK.device)
    return torch.linalg.eigh(gram_KK).eigenvectors[:, last - chosen]


def _some_vectors(symmetric: Tensor, first: int, last: int) -> Tensor:
    """Eigenvectors ``first`` to ``last`` in ascending order: a third to a half of the time of all of them."""
    found = scipy.linalg.eigh(symmetric.cpu().numpy(), subset_by_index=[first, last], check_finite=False)[1]
    # LAPACK's `syevr` drops or repeats vectors of a tight cluster in fp32, as that of a flat spectrum.
    if found.shape[1] == last - first + 1 and np.abs(found.T @ found - np.eye(found.shape[1])).max() < _ORTHONORMAL:
        return torch.from_numpy(found).to(symmetric.device)
    return torch.linalg.eigh(symmetric).eigenvectors[:, first : last + 1]


def _gram_head(tall_LK: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading eigenvectors ``(K, R)`` of the Gram matrix."""
    size = tall_LK.shape[1]
    return _some_vectors(tall_LK.mT @ tall_LK, size - rank, size - 1)


def _krylov(product_LK: Tensor, dtype: torch.dtype, rank: int, seed: int) -> Tensor:
    """The ``rank`` leading Ritz vectors ``(K, R)`` of a basis that grows by one block a step, in ``dtype``."""
    size, width = product_LK.shape[1], max(rank, _NARROWEST)
    most = size // width
    # Only the lower triangle is ever written and read, and only pages that are touched cost anything.
    basis_NK = product_LK.new_empty(most * width, size, dtype=dtype)
    ritz_NN = product_LK.new_empty(most * width, most * width, dtype=dtype)
    block_BK = random_start(width, size, seed=seed, like=basis_NK[:1])
    step, last, look = 0, most, min(_FIRST_LOOK, most)
    while True:
        start, step = step * width, step + 1
        here, known_NK = slice(start, start + width), basis_NK[: start + width]
        known_NK[here] = block_BK
        image_BK = ((block_BK.to(product_LK) @ product_LK.mT) @ product_LK).to(dtype)
        overlap_BN = image_BK @ known_NK.mT
        ritz_NN[here, : len(known_NK)] = overlap_BN
        if step == look:
            ahead = _steps_ahead(ritz_NN, step, width, rank)
            look, last = (step + _TRUSTED, most) if ahead > _TRUSTED else (0, min(step + ahead, most))
        if step == last:
            found = ritz_NN[: len(known_NK), : len(known_NK)]
            return known_NK.mT @ _some_vectors(found, len(found) - rank, len(found) - 1)
        block_BK = _next_block(image_BK, overlap_BN, known_NK)


def _next_block(image_BK: Tensor, overlap_BN: Tensor, known_NK: Tensor) -> Tensor:
    """The part of a block outside the basis, orthonormal; an exhausted direction becomes an arbitrary one."""
    block_KB, kept_BB = torch.linalg.qr(torch.addmm(image_BK, overlap_BN, known_NK, alpha=-1).mT)
    # Where little is left, rounding has filled it with what was taken away.
    if kept_BB.diagonal().abs().min() < 1e-2 * overlap_BN.abs().max():
        for _ in range(2):
            block_KB = torch.linalg.qr(block_KB - known_NK.mT @ (known_NK @ block_KB)).Q
    return block_KB.mT


def _steps_ahead(ritz_NN: Tensor, step: int, width: int, rank: int) -> int:
    """How many more steps the loss of energy needs to fall below `TOLERANCE`, if it goes on falling as it last did."""
    before, last, now = (
        torch.linalg.eigvalsh(ritz_NN[:size, :size])[-rank:].sum().item()
        for size in ((step - 2) * width, (step - 1) * width, step * width)
    )
    gain = max(now - last, 0.0)
    ratio = min(gain / max(last - before, 1e-3 * TOLERANCE * now), _SLOWEST)
    missing = gain * ratio / (1 - ratio) / max(now, torch.finfo(ritz_NN.dtype).tiny)
    return 0 if missing <= TOLERANCE else math.ceil(math.log(TOLERANCE / missing) / math.log(ratio))


def _half_step(tall_LK: Tensor, product_LK: Tensor, basis_KR: Tensor) -> Triplets:
    """The leading triplets of ``Y Y^T A``, ``Y = orth(A X)``."""
    y_LR = torch.linalg.qr((product_LK @ basis_KR.to(product_LK)).to(tall_LK)).Q
    z_KR = tall_LK.mT @ y_LR
    energies_R, turn_RR = torch.linalg.eigh(z_KR.double().mT @ z_KR.double())
    values_R, turn_RR = energies_R.flip(0).clamp(min=0).sqrt().to(tall_LK), turn_RR.flip(1).to(tall_LK)
    return Triplets(y_LR @ turn_RR, values_R, z_KR @ turn_RR / values_R.clamp(min=torch.finfo(values_R.dtype).tiny))


def _product_dtype(matrix: Tensor) -> torch.dtype:
    """Bf16 for the basis where the hardware multiplies it, else the matrix's own."""
    if matrix.dtype == torch.float64:
        return matrix.dtype
    if matrix.device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else matrix.dtype
    return torch.bfloat16 if matrix.device.type == "cuda" and torch.cuda.is_bf16_supported(False) else matrix.dtype


def _checked(weight_OI: Tensor, rank: int) -> float:
    """The largest magnitude of a matrix that has ``rank`` triplets and only finite entries."""
    if weight_OI.ndim != 2 or not 1 <= rank <= min(weight_OI.shape):
        raise ValueError(
            f"{rank} singular triplets need a matrix whose smaller side is at least that, but the shape is "
            f"{tuple(weight_OI.shape)}: lower the rank or reshape the tensor to (O, I)."
        )
    low, high = weight_OI.aminmax()
    scale = max(-low.item(), high.item())
    if not math.isfinite(scale):
        raise ValueError(
            f"A weight of shape {tuple(weight_OI.shape)} has entries that are not finite: repair it first."
        )
    return scale
