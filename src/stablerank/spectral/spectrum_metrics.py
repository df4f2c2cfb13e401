"""Metrics of a whole spectrum, by name, each with the interval that the rounding of the spectrum leaves.

Legend: K singular values, descending.

Contract: a `Spectra` says that the true matrix differs from the one whose values these are by at most ``e`` in the
Frobenius norm. Every interval follows from that by a perturbation bound and always holds:

- Schatten norms of order 2 and above move by at most e, the nuclear norm by at most sqrt(K) e (triangle inequality);
- every single value moves by at most e (Weyl);
- entropies move by at most ``t ln(K - 1) + h(t)``, h the binary entropy, t half the 1-norm of the move of p
  (Fannes 1973, in Audenaert's sharp form, 2007).

The tail exponent is a fit, not a function of the matrix to any precision: its status is ``estimated``, without bounds.

Left out on purpose: nulls (nulls.py) and what needs two matrices (subspaces.py, nss.py).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stablerank.spectral.exact import Estimate, Spectra, Status, undefined
from stablerank.spectral.functionals import (
    condition_number,
    effective_rank,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    spectral_entropy,
)
from stablerank.spectral.tail import power_law_fit


def spectrum_metric(name: str, spectra: Spectra) -> Estimate:
    """One metric of one spectrum.

    Args:
        name: a key of ``SPECTRUM_METRICS``.
        spectra: a batch of one.
    """
    values_K, error = spectra.values_NK[0], spectra.error_N[0].item()
    if len(values_K) == 0:
        return undefined("empty", passes=0)
    largest = values_K[0].item()
    if not math.isfinite(largest):
        return undefined("non_finite")
    if largest <= error or largest == 0:
        return undefined("zero")
    return SPECTRUM_METRICS[name](values_K, error)


def _nuclear_rank(values_K: Tensor, error: float) -> Estimate:
    nuclear, frobenius = values_K.sum().item(), values_K.norm().item()
    slack = math.sqrt(len(values_K)) * error
    lower, upper = (_ratio(nuclear - s, frobenius + f) ** 2 for s, f in ((slack, error), (-slack, -error)))
    return _within(nuclear_rank(values_K), lower, upper, len(values_K))


def _participation_ratio(values_K: Tensor, error: float) -> Estimate:
    frobenius, fourth = values_K.norm().item(), values_K.norm(4).item()
    lower, upper = (_ratio(frobenius - e, fourth + e) ** 4 for e in (error, -error))
    return _within(participation_ratio(values_K), lower, upper, len(values_K))


def _effective_rank(values_K: Tensor, error: float) -> Estimate:
    count, value = len(values_K), effective_rank(values_K)
    move = _entropy_move(2 * math.sqrt(count) * error / values_K.sum().item(), count)
    return _within(value, value.item() * math.exp(-move), value.item() * math.exp(move), count)


def _spectral_entropy(values_K: Tensor, error: float) -> Estimate:
    count, value, frobenius = len(values_K), spectral_entropy(values_K).item(), values_K.norm().item()
    move = _entropy_move(2 * error * (2 * frobenius + error) / frobenius**2, count)
    return Estimate(value, max(value - move, 0.0), min(value + move, math.log(count)), 1, "exact")


def _condition_number(values_K: Tensor, error: float) -> Estimate:
    largest, smallest = values_K[0].item(), values_K[-1].item()
    upper = (largest + error) / (smallest - error) if smallest > error else math.inf
    lower = max((largest - error) / (smallest + error), 1.0)
    return Estimate(condition_number(values_K).item(), lower, upper, 1, "exact")


def _numerical_rank(values_K: Tensor, error: float) -> Estimate:
    """At numpy's threshold for fp32 entries, ``K eps sigma_1``: fp64 would count the rounding of the storage."""
    rtol = len(values_K) * torch.finfo(torch.float32).eps
    threshold = rtol * values_K[0].item()
    sure, possible = ((values_K > threshold + s * error * (1 + rtol)).sum().item() for s in (1, -1))
    return Estimate(numerical_rank(values_K, rtol).item(), float(sure), float(possible), 1, "exact")


def _tail_exponent(values_K: Tensor, error: float) -> Estimate:
    fit = power_law_fit(values_K)
    return Estimate(fit.alpha, math.nan, math.nan, 1, fit.status)


SPECTRUM_METRICS: dict[str, Callable[[Tensor, float], Estimate]] = {
    "nuclear_rank": _nuclear_rank,
    "participation_ratio": _participation_ratio,
    "effective_rank": _effective_rank,
    "numerical_rank": _numerical_rank,
    "spectral_entropy": _spectral_entropy,
    "condition_number": _condition_number,
    "tail_exponent": _tail_exponent,
}
"""Metrics that need every singular value, by name; each takes values ``(K,)`` and the bound on their error."""


def _within(value: Tensor, lower: float, upper: float, count: int, status: Status = "exact") -> Estimate:
    return Estimate(value.item(), max(lower, 1.0), min(upper, float(count)), 1, status)


def _ratio(above: float, below: float) -> float:
    return max(above, 0.0) / below if below > 0 else math.inf


def _entropy_move(one_norm: float, count: int) -> float:
    """Audenaert's bound for distributions over ``count`` outcomes whose 1-norm distance is ``one_norm``."""
    half = min(one_norm / 2, 1 - 1 / count)
    if half <= 0 or count == 1:
        return 0.0
    return half * math.log(count - 1) - half * math.log(half) - (1 - half) * math.log1p(-half)
