"""Power-law tails: the exponent of a spectrum's largest eigenvalues, by maximum likelihood and by Hill's estimate.

Legend: K singular values, ascending here, of which the top N form a tail; C candidates for the start of the tail.

The model: eigenvalues ``lambda = sigma^2`` of the Gram matrix, from ``xmin`` upwards, have density proportional to
``lambda^-alpha``. For a tail of N eigenvalues from xmin (Clauset, Shalizi & Newman 2009, equations 3.1 and 3.2)::

    alpha = 1 + N / sum ln(lambda / xmin)        standard error = (alpha - 1) / sqrt(N)

``power_law_fit`` takes the xmin that minimises the Kolmogorov-Smirnov distance (their section 3.3): the ``alpha`` of
WeightWatcher. ``hill_fit`` takes a fixed share of the spectrum (Hill 1975; the ``PL_Alpha_Hill`` of arXiv 2410.10912).
Both alphas are exponents of the density, one more than those of the survival function.

What it does not mean. A fit always finds some alpha: it is no evidence of a power law, which would need a bootstrapped
distance and a contest with other heavy tails. A Gaussian matrix, which has no such tail, gets one too: 6 to 14 at 576
by 576, from draw to draw. Eigenvalues repel each other and are no independent sample, and xmin was chosen by looking:
the standard error is a scale, not an interval. "2 to 6 is healthy" is experience with trained models, not theory.

Refused below 50 non-zero eigenvalues. The tail is then so short that the standard error passes a seventh of alpha - 1
even if every eigenvalue joins it, and hardly any distance would speak against the model. Above all, an update of rank
r has r eigenvalues: a LoRA has no tail to fit. Non-zero means sigma > K eps sigma_1, eps of the dtype of the values
(fp32 at least; ``numerical_rank`` counts the same), so the rounding noise of a rank-deficient matrix is not fitted.

Numerics: fp64 logarithms of sigma / sigma_1; sums of non-negative gaps, without cancellation. No gradient.
Deterministic. Cost O(K^2), blocked: 0.1 s at K = 4096, 0.8 s at 15000 on one CPU core. The distance is the two-sided
one, as in scipy; ``powerlaw`` and WeightWatcher look below each step only, at most 1/N apart, and so now and then pick
a neighbouring xmin (9 of 12 spectra gave the alpha of powerlaw 1.5 to 1e-12, the others within 1 %).

Left out on purpose: goodness-of-fit tests, truncated power laws and other families, an upper cut-off, alpha times
``log10(lambda_1)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stablerank.spectral.precision import at_least_fp32

FEWEST_EIGENVALUES = 50

Status = Literal["estimated", "refused", "zero", "non_finite", "empty"]
"""``refused``: fewer than 50 non-zero eigenvalues, or a tail of equal ones. All but ``estimated`` have alpha NaN."""

_BLOCK = 2**18
"""Entries of one block of the scan: 2 MB, which stays in a core's cache."""


@dataclass(frozen=True)
class TailFit:
    """A power-law fit of the eigenvalues ``sigma^2 >= xmin``; every float is NaN unless the status is ``estimated``."""

    alpha: float
    """Exponent of the density, above 1."""
    standard_error: float
    """``(alpha - 1) / sqrt(tail)``: as if eigenvalues were independent and xmin known."""
    xmin: float
    """The eigenvalue at which the tail starts (for Hill's estimate, above which)."""
    distance: float
    """Kolmogorov-Smirnov distance between the tail and its fit."""
    tail: int
    """How many eigenvalues were fitted."""
    eigenvalues: int
    """How many eigenvalues are non-zero."""
    status: Status


def tail_exponent(values: Tensor) -> Tensor:
    """The alpha of :func:`power_law_fit` as a functional: ``(..., K)`` in, ``(...)`` out, NaN where refused."""
    values = at_least_fp32(values)
    *batch, count = values.shape
    alphas = [power_law_fit(values_K).alpha for values_K in values.reshape(math.prod(batch), count)]
    return values.new_tensor(alphas).reshape(batch)


def power_law_fit(values_K: Tensor) -> TailFit:
    """The maximum likelihood fit from the xmin with the least Kolmogorov-Smirnov distance, of one spectrum.

    Candidates for xmin are the distinct eigenvalues; of equally distant ones the smallest is taken.
    """
    return _fit(values_K, _closest_tail)


def hill_fit(values_K: Tensor) -> TailFit:
    """Hill's estimate from the upper half of the non-zero eigenvalues, of one spectrum.

    With N eigenvalues in the half, ``alpha = 1 + N / sum ln(lambda / xmin)``; xmin is the next eigenvalue below them.
    """
    return _fit(values_K, _upper_half)


@torch.no_grad()
def _fit(values_K: Tensor, choose: Callable[[Tensor, float], tuple[int, int]]) -> TailFit:
    """The fit of the tail that ``choose`` picks: the position of its xmin and its length."""
    values_K = at_least_fp32(values_K)
    status = _undefined(values_K)
    if status is not None:
        return _no_fit(status, eigenvalues=0)
    resolution = len(values_K) * torch.finfo(values_K.dtype).eps
    largest = values_K.amax()
    relative_K = values_K[values_K > resolution * largest].double() / largest.double()
    logs_K = 2 * relative_K.log().sort().values
    if len(logs_K) < FEWEST_EIGENVALUES:
        return _no_fit("refused", len(logs_K))
    start, tail = choose(logs_K, resolution)
    excess_N = logs_K[-tail:] - logs_K[start]
    if excess_N.mean() <= resolution:
        return _no_fit("refused", len(logs_K))
    slope = excess_N.mean().reciprocal()
    return TailFit(
        alpha=1 + slope.item(),
        standard_error=slope.item() / math.sqrt(tail),
        xmin=(logs_K[start].exp() * largest.double().square()).item(),
        distance=_distances(excess_N[None], excess_N.new_tensor([tail]), slope[None]).item(),
        tail=tail,
        eigenvalues=len(logs_K),
        status="estimated",
    )


def _upper_half(logs_K: Tensor, resolution: float) -> tuple[int, int]:
    tail = len(logs_K) // 2
    return len(logs_K) - tail - 1, tail


def _closest_tail(logs_K: Tensor, resolution: float) -> tuple[int, int]:
    """The tail with the least distance to its own fit; all of them where every tail is of equal eigenvalues."""
    count = len(logs_K)
    size_K = torch.arange(count, 0, -1, dtype=logs_K.dtype, device=logs_K.device)
    gap_K = logs_K.diff(append=logs_K[-1:])
    excess_K = (gap_K * (size_K - 1)).flip(0).cumsum(0).flip(0)  # sum ln(lambda / xmin), gap by gap
    distinct_K = gap_K.roll(1) > 0
    distinct_K[0] = True
    starts_C = (distinct_K & (excess_K > resolution * size_K)).nonzero()[:, 0]
    if len(starts_C) == 0:
        return 0, count
    distances = [
        _distances(logs_K[block[0] :] - logs_K[block, None], size_K[block], size_K[block] / excess_K[block])
        for block in torch.split(starts_C, max(1, _BLOCK // count))
    ]
    start = int(starts_C[torch.cat(distances).argmin()])
    return start, count - start


def _distances(excess_CN: Tensor, size_C: Tensor, slope_C: Tensor) -> Tensor:
    """Two-sided Kolmogorov-Smirnov distances ``(C,)`` between tails and ``P(excess > t) = exp(-slope t)``.

    Row c holds ``ln(lambda / xmin)`` ascending; its last ``size_C[c]`` entries are the tail.
    """
    share_CN = torch.arange(excess_CN.shape[1], 0, -1, device=excess_CN.device) / size_C[:, None]
    above_CN = (share_CN - torch.exp(-slope_C[:, None] * excess_CN)).masked_fill(share_CN > 1, 0.0)
    return torch.maximum(above_CN.amax(1), 1 / size_C - above_CN.amin(1))


def _undefined(values_K: Tensor) -> Status | None:
    if len(values_K) == 0:
        return "empty"
    if not bool(values_K.isfinite().all()):
        return "non_finite"
    return None if bool(values_K.any()) else "zero"


def _no_fit(status: Status, eigenvalues: int) -> TailFit:
    return TailFit(math.nan, math.nan, math.nan, math.nan, 0, eigenvalues, status)
