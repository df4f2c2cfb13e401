"""Nulls of metrics that need a whole spectrum: their values over random matrices of the same structure.

Legend: O output features, I input features, K = min of them, R inner rank.

Singular values are drawn from the small matrices in which a factorisation of the Gaussian would end, as in nulls.py:
a product of Bartlett triangles for factors of rank R, the bidiagonal form for a Gaussian matrix. A whole spectrum costs
K^2 a draw, so a Gaussian matrix with K above 512 is stood for by one of K = 512 and the same aspect ratio: a rank is
scaled by K / 512, an entropy moved by ln(K / 512). These metrics are averages over the spectrum, whose law depends on
the aspect ratio alone up to terms of order 1 / K; the kind then ends in ``_scaled``.

Numerics: fp64; values as roots of eigenvalues of a tridiagonal matrix, the smallest to 1e-8 of the largest.

Left out on purpose: nulls of the condition number, the numerical rank and the tail exponent, which depend on the few
smallest values, on the storage type, or on a fit.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch
from numpy.random import Generator
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from stablerank.spectral.functionals import effective_rank, nuclear_rank, participation_ratio, spectral_entropy
from stablerank.spectral.nulls import FEWEST_DRAWS, Array, Null, bartlett, summary

LARGEST_DRAWN = 512
_MANY_DRAWS, _SMALL = 200, 128

RANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "nuclear_rank": nuclear_rank,
    "participation_ratio": participation_ratio,
    "effective_rank": effective_rank,
}
"""Metrics that count directions, by name."""


@cache
def spectrum_null(name: str, out_features: int, in_features: int, rank: int | None = None, *, seed: int = 0) -> Null:
    """Median and central 95 % of one metric; kind ``gaussian_factors`` with a ``rank``, else ``gaussian_matrix``.

    Args:
        name: a key of ``RANKS``, or ``spectral_entropy``.
        out_features: O.
        in_features: I.
        rank: inner rank of the factors; None for a Gaussian matrix.
        seed: of the draws.

    Raises:
        ValueError: a dimension below 1.
    """
    shorter = min(out_features, in_features, rank or in_features)
    shrink = 1.0 if rank is not None else max(shorter / LARGEST_DRAWN, 1.0)
    shape = round(out_features / shrink), round(in_features / shrink)
    draws = _MANY_DRAWS if shorter <= _SMALL else FEWEST_DRAWS
    values = torch.from_numpy(np.stack(list(gaussian_spectra(*shape, rank, draws=draws, seed=seed))))
    kind = "gaussian_matrix" if rank is None else "gaussian_factors"
    sample = RANKS[name](values) * shrink if name in RANKS else spectral_entropy(values) + math.log(shrink)
    return summary(sample.numpy(), kind if shrink == 1 else f"{kind}_scaled")


def gaussian_spectra(
    out_features: int, in_features: int, rank: int | None, *, draws: int, seed: int
) -> Iterator[Array]:
    """Singular values, descending, of random Gaussian matrices, or of products of Gaussian factors of ``rank``."""
    if min(out_features, in_features, 1 if rank is None else rank) < 1:
        sizes = (out_features, in_features, rank)
        raise ValueError(f"A null needs sizes of at least 1, but (O, I, rank) is {sizes}: skip the empty matrix.")
    rng = np.random.default_rng(seed)
    tall, short = max(out_features, in_features), min(out_features, in_features)
    for _ in range(draws):
        yield _gaussian_values(rng, tall, short) if rank is None else _factored_values(rng, tall, short, rank)


def _factored_values(rng: Generator, tall: int, short: int, rank: int) -> Array:
    core = bartlett(rng, tall, rank, 1)[0] @ bartlett(rng, short, rank, 1)[0].T
    return torch.linalg.svdvals(torch.from_numpy(core)).numpy()


def _gaussian_values(rng: Generator, tall: int, short: int) -> Array:
    diagonal = rng.chisquare(tall - np.arange(short))
    above = rng.chisquare(np.arange(short - 1, 0, -1)) if short > 1 else np.empty(0)
    gram_diagonal = diagonal + np.concatenate(([0.0], above))
    energies = eigvalsh_tridiagonal(gram_diagonal, np.sqrt(diagonal[:-1] * above), lapack_driver="sterf")
    return np.sqrt(np.clip(energies[::-1], 0.0, None))
