"""Exact spectra: every singular value of an operator, and the stable rank with a bound on its rounding error.

Legend: O rows, I columns, R inner rank, K = min of them singular values, N batch.

Numerics: fp64 throughout, values from the matrix itself, never from a Gram matrix. No gradient. Cost O(O I K) for a
dense matrix (on one CPU core 0.4 s at 1024 by 1024, 6 s at 2048 by 2048), O((O + I) R^2 + R^3) for a factored one.
Deterministic for a fixed device and thread count.

Rounding. Write u = 2^-53. Householder reduction and the bidiagonal SVD return the singular values of M + E with
||E||_F <= e (Higham 2002, Lemma 19.3: a reflection of length m costs c m u ||M||_F, c a small integer; Demmel & Kahan
1990: 69 K^2 u relative for the bidiagonal part), where::

    e = 100 u O I ||M||_F                             for a dense matrix or a difference
    e = 100 u R (O + I + R) |s| ||B||_F ||A||_F       for s B A: two QRs, one product, one R-by-R SVD

The second is relative to ||B|| ||A||, not to ||BA||: factors that cancel widen it, as they must. By Weyl and Mirsky
both the Frobenius norm F and sigma_1 move by at most e, so the true stable rank lies in ::

    [ ((F - e) / (sigma_1 + e))^2 , ((F + e) / (sigma_1 - e))^2 ]  intersected with [1, K]

and a matrix with sigma_1 <= e cannot be told from zero. The bound covers arithmetic only: what bf16 storage did to the
entries before is not in it.

Left out on purpose: iterative solvers (certified.py), batched hidden states (batched.py).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stablerank.spectral.functionals import stable_rank
from stablerank.spectral.operators import Dense, Difference, Factored, factored_core

Status = Literal["exact", "certified", "open", "estimated", "refused", "zero", "non_finite", "empty"]
"""How a number is known.

``exact``: the bounds always hold. ``certified``: iterative; the bounds meet the requested accuracy and hold but for a
stated probability. ``open``: as certified, but wider than requested. ``estimated``: a value without a bound. The rest
have value NaN: ``refused`` (the metric is not defined for this input), ``zero`` (not to be told from the zero matrix),
``non_finite``, ``empty`` (no singular values).
"""

_ROUNDING = 100 * 2.0**-53


@dataclass(frozen=True)
class Estimate:
    """A measured number with its certificate: the truth lies in ``[lower, upper]``; all three are NaN on failure."""

    value: float
    lower: float
    upper: float
    passes: int
    """How often the matrix was read."""
    status: Status


@dataclass(frozen=True, eq=False)
class Spectra:
    """Singular values of N matrices in descending order, and how far rounding may have moved them."""

    values_NK: Tensor
    error_N: Tensor
    """Bound on the move of the Frobenius norm and of every single value, absolute."""


def singular_values(operator: Dense | Difference | Factored) -> Tensor:
    """All K singular values in fp64, descending; NaN where an entry is not finite."""
    return spectrum(operator).values_NK[0]


def factored_singular_values(b_NOR: Tensor, a_NRI: Tensor, scale_N: Tensor) -> Tensor:
    """Singular values ``(N, K)`` in fp64 of N products ``s B A`` of one shape; NaN rows where not finite."""
    return factored_spectra(b_NOR, a_NRI, scale_N).values_NK


def stable_rank_exact(operator: Dense | Difference | Factored) -> Estimate:
    """The stable rank of one operator, with the rounding interval derived in the module header."""
    return stable_rank_estimates(spectrum(operator))[0]


@torch.no_grad()
def spectrum(operator: Dense | Difference | Factored) -> Spectra:
    """The spectrum of one operator, as a batch of one."""
    if isinstance(operator, Factored):
        scale_N = torch.tensor([operator.scale], dtype=torch.float64, device=operator.b_OR.device)
        return factored_spectra(operator.b_OR[None], operator.a_RI[None], scale_N)
    values_NK = _svdvals(operator.materialised()[None])
    return Spectra(values_NK, _ROUNDING * math.prod(operator.shape) * _norm(values_NK))


@torch.no_grad()
def factored_spectra(b_NOR: Tensor, a_NRI: Tensor, scale_N: Tensor) -> Spectra:
    """The spectra of N products ``s B A`` of one shape in one batched pass."""
    (rows, rank), columns = b_NOR.shape[1:], a_NRI.shape[2]
    values_NK = _svdvals(factored_core(b_NOR, a_NRI, scale_N))
    size_N = scale_N.double().abs() * _norm(b_NOR.flatten(1)) * _norm(a_NRI.flatten(1))
    return Spectra(values_NK, _ROUNDING * rank * (rows + columns + rank) * size_N)


def stable_rank_estimates(spectra: Spectra) -> list[Estimate]:
    """One stable rank a spectrum. Undefined for a zero matrix: status ``zero``, value NaN."""
    values_NK = spectra.values_NK
    count = values_NK.shape[1]
    if count == 0:
        return [undefined("empty", passes=0) for _ in values_NK]
    value_N = stable_rank(values_NK)
    relative_N = spectra.error_N / values_NK[:, 0]
    lower_N = ((value_N.sqrt() - relative_N) / (1 + relative_N)).clamp(min=1).square()
    upper_N = ((value_N.sqrt() + relative_N) / (1 - relative_N)).square().clamp(max=count)
    intervals = torch.stack((value_N, lower_N, upper_N), dim=1).tolist()
    statuses = [_status(*pair) for pair in torch.stack((values_NK[:, 0], spectra.error_N), dim=1).tolist()]
    return [
        Estimate(value, lower, upper, 1, status) if status == "exact" else undefined(status)
        for (value, lower, upper), status in zip(intervals, statuses, strict=True)
    ]


def frobenius_estimates(spectra: Spectra) -> list[Estimate]:
    """One Frobenius norm a spectrum. Defined for the zero matrix, whose norm is exactly 0."""
    norms, errors = _norm(spectra.values_NK).tolist(), spectra.error_N.tolist()
    return [
        Estimate(norm, max(norm - error, 0.0), norm + error, 1, "exact")
        if math.isfinite(norm)
        else undefined("non_finite")
        for norm, error in zip(norms, errors, strict=True)
    ]


def _status(largest: float, error: float) -> Status:
    if not math.isfinite(largest):
        return "non_finite"
    return "exact" if largest > error else "zero"


def undefined(status: Status, passes: int = 1) -> Estimate:
    """NaN with the reason."""
    return Estimate(math.nan, math.nan, math.nan, passes, status)


def _svdvals(matrices_NOI: Tensor) -> Tensor:
    """Batched singular values; one non-finite matrix must not make LAPACK refuse the whole batch."""
    finite_N = matrices_NOI.isfinite().all(-1).all(-1)
    values_NK = torch.linalg.svdvals(matrices_NOI.masked_fill(~finite_N[:, None, None], 0.0))
    return values_NK.masked_fill(~finite_N[:, None], torch.nan)


def _norm(entries_NK: Tensor) -> Tensor:
    """Euclidean norms in fp64, the largest entry taken out first so that no square over- or underflows."""
    if entries_NK.shape[1] == 0:
        return entries_NK.new_zeros(len(entries_NK), dtype=torch.float64)
    entries_NK = entries_NK.double()
    largest_N = entries_NK.abs().amax(1)
    unit_N = largest_N.masked_fill(largest_N == 0, 1.0)
    return unit_N * torch.linalg.vector_norm(entries_NK / unit_N[:, None], dim=1)
