"""Functionals of a spectrum: singular values ``(..., K)`` in, one number a spectrum ``(...)`` out.

Contract: values are non-negative, in any order. A spectrum that is empty, all zero or not finite gives NaN ("not
defined"), never 1. Every other spectrum satisfies, to 1e-6 relative, ::

    1 <= stable_rank <= participation_ratio <= nuclear_rank <= effective_rank <= numerical_rank(rtol=0)

Numerics: every sum runs in fp64 over sigma / sigma_1, so no scale overflows or underflows; the result has the dtype of
the input, fp32 at least. (With fp32 sums the chain breaks its 1e-6 on nearly flat spectra of a few hundred values.)
Cost O(K); differentiable; deterministic. Unbiased for the values given: noise in the values is the caller's.

Names: "effective rank" is the exponential of the entropy of sigma here, never ``tr(M) / ||M||``; the entropy of sigma
squared is ``spectral_entropy``, and its exponential lies between the participation ratio and the effective rank.

Left out on purpose: any functional of a matrix (exact.py turns operators into values), and fits, which carry a status
of their own (tail.py).
"""

import torch
from torch import Tensor

from stablerank.spectral.precision import at_least_fp32


def stable_rank(values: Tensor) -> Tensor:
    """``sum sigma^2 / sigma_1^2``, i.e. squared Frobenius over squared spectral norm (Rudelson & Vershynin 2007)."""
    return _like(values, _relative(values).square().sum(-1))


def participation_ratio(values: Tensor) -> Tensor:
    """``(sum sigma^2)^2 / sum sigma^4``: the participation ratio of sigma squared, exp of its Renyi-2 entropy."""
    energy = _relative(values).square()
    return _like(values, energy.sum(-1).square() / energy.square().sum(-1))


def nuclear_rank(values: Tensor) -> Tensor:
    """``(sum sigma)^2 / sum sigma^2``: squared nuclear over squared Frobenius norm (arXiv 2512.04299, section 1)."""
    relative = _relative(values)
    return _like(values, relative.sum(-1).square() / relative.square().sum(-1))


def effective_rank(values: Tensor) -> Tensor:
    """``exp(-sum p ln p)`` with ``p = sigma / sum sigma`` (Roy & Vetterli 2007); RankMe without its epsilon."""
    relative = _relative(values)
    return _like(values, torch.special.entr(relative / relative.sum(-1, keepdim=True)).sum(-1).exp())


def numerical_rank(values: Tensor, rtol: float | None = None) -> Tensor:
    """How many values exceed ``rtol * sigma_1``; ``rtol=0`` counts every sigma > 0.

    The default is numpy's for a square matrix, ``K * eps`` of the dtype of ``values`` (fp32 at least). For an M-by-N
    matrix ``numpy.linalg.matrix_rank`` uses ``max(M, N) * eps``: pass that as ``rtol`` to reproduce it.
    """
    values = at_least_fp32(values)
    if rtol is None:
        rtol = values.shape[-1] * torch.finfo(values.dtype).eps
    undefined = _relative(values).isnan().any(-1)
    largest = values.amax(-1, keepdim=True) if values.shape[-1] else 0.0
    return _like(values, (values > rtol * largest).sum(-1).double().masked_fill(undefined, torch.nan))


def spectral_entropy(values: Tensor) -> Tensor:
    """``-sum p ln p`` with ``p = sigma^2 / sum sigma^2``, in nats: the von Neumann entropy of ``M M^T / tr(M M^T)``.

    Between 0 (rank one) and ``ln K`` (flat).
    """
    energy = _relative(values).square()
    return _like(values, torch.special.entr(energy / energy.sum(-1, keepdim=True)).sum(-1))


def condition_number(values: Tensor) -> Tensor:
    """``sigma_1 / sigma_K``; inf where sigma_K is exactly 0, or so small that the ratio leaves the dtype.

    A sigma_K below the rounding error of the values is noise, and so is the ratio then: a rank-deficient matrix rarely
    gives inf, but something near ``1 / eps``.
    """
    return _like(values, _relative(values).amin(-1).reciprocal())


def _relative(values: Tensor) -> Tensor:
    """Values over the largest of them, in fp64; NaN throughout a spectrum for which no functional is defined."""
    values = values.double()
    if values.shape[-1] == 0:
        return values.new_full((*values.shape[:-1], 1), torch.nan)
    largest = values.amax(-1, keepdim=True)
    defined = values.isfinite().all(-1, keepdim=True) & (largest > 0)
    return values / largest.masked_fill(~defined, torch.nan)


def _like(values: Tensor, result: Tensor) -> Tensor:
    return result.to(torch.promote_types(values.dtype, torch.float32))
