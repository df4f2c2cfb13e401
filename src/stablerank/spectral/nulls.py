"""The stable rank of random matrices of the same structure: the floor that a measured value is read against.

A rank-r update is held against a product of Gaussian factors of rank r, a full update against a Gaussian matrix of its
shape. A factored update held against a dense Gaussian would always look "low rank": it has rank r by construction.

Numerics: fp64, a generator of its own (numpy PCG64), so no global random state is read or moved; one seed, one answer.
Both samplers are exact in distribution and cheap, because they draw the triangular matrix that a factorisation of the
Gaussian would end in and never the Gaussian itself:

- factored: R of the QR of an m-by-r Gaussian has independent entries, chi with m, m-1, ... degrees of freedom on the
  diagonal and standard normal above (Bartlett 1933). Cost O(draws r^3), whatever the shape.
- dense: the bidiagonal form of an m-by-n Gaussian, m >= n, has chi with m, m-1, ..., m-n+1 degrees of freedom on the
  diagonal and n-1, ..., 1 above it (Silverstein 1985; Dumitriu & Edelman 2002). Cost O(draws n): under a second for
  4096 by 14336, where 200 dense SVDs would take hours.

Left out on purpose: nulls of other metrics (spectrum_nulls.py), of residuals in bf16, and by permutation.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal

from stablerank.spectral.functionals import stable_rank

FEWEST_DRAWS = 20

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Null:
    """Median and central 95 % of the stable rank over random matrices of one structure."""

    median: float
    low: float
    high: float
    kind: str


NO_NULL = Null(math.nan, math.nan, math.nan, "none")
"""For a metric without a scale-free null, such as a norm."""


@cache
def factored_null(out_features: int, in_features: int, rank: int, *, draws: int = 200, seed: int = 0) -> Null:
    """The stable rank of ``B A`` with Gaussian ``B (O, R)`` and ``A (R, I)``; kind ``gaussian_factors``.

    Raises:
        ValueError: a dimension below 1, or fewer than 20 draws.
    """
    sample = factored_draws(out_features, in_features, rank, draws=draws, seed=seed)
    return summary(sample, "gaussian_factors")


@cache
def dense_null(out_features: int, in_features: int, *, draws: int = 200, seed: int = 0) -> Null:
    """The stable rank of a Gaussian matrix ``(O, I)``; kind ``gaussian_matrix``.

    Raises:
        ValueError: a dimension below 1, or fewer than 20 draws.
    """
    return summary(dense_draws(out_features, in_features, draws=draws, seed=seed), "gaussian_matrix")


def factored_draws(out_features: int, in_features: int, rank: int, *, draws: int, seed: int) -> Array:
    """``draws`` stable ranks of random factored matrices."""
    _require_dimensions(out_features, in_features, rank)
    rng = np.random.default_rng(seed)
    r_b, r_a = (bartlett(rng, features, rank, draws) for features in (out_features, in_features))
    core = torch.from_numpy(r_b @ r_a.swapaxes(-1, -2))
    return stable_rank(torch.linalg.svdvals(core)).numpy()


def dense_draws(out_features: int, in_features: int, *, draws: int, seed: int) -> Array:
    """``draws`` stable ranks of random Gaussian matrices."""
    _require_dimensions(out_features, in_features)
    rng = np.random.default_rng(seed)
    tall, short = max(out_features, in_features), min(out_features, in_features)
    return np.array([_gaussian_stable_rank(rng, tall, short) for _ in range(draws)])


def bartlett(rng: Generator, features: int, rank: int, draws: int) -> Array:
    """Triangular factors ``(draws, min(features, rank), rank)`` of Gaussian ``(features, rank)`` matrices."""
    rows = min(features, rank)
    factors = np.triu(rng.standard_normal((draws, rows, rank)), k=1)
    diagonal = np.arange(rows)
    factors[:, diagonal, diagonal] = np.sqrt(rng.chisquare(features - diagonal, size=(draws, rows)))
    return factors


def _gaussian_stable_rank(rng: Generator, tall: int, short: int) -> float:
    """``||G||_F^2 / ||G||_2^2`` from the squares of the two diagonals of a random bidiagonal form."""
    diagonal = rng.chisquare(tall - np.arange(short))
    above = rng.chisquare(np.arange(short - 1, 0, -1)) if short > 1 else np.empty(0)
    gram_diagonal = diagonal + np.concatenate(([0.0], above))
    top = eigvalsh_tridiagonal(
        gram_diagonal, np.sqrt(diagonal[:-1] * above), select="i", select_range=(short - 1, short - 1)
    )
    return float(gram_diagonal.sum() / top[0])


def summary(sample: Array, kind: str) -> Null:
    """Median and central 95 % of a sample of at least 20 draws."""
    if len(sample) < FEWEST_DRAWS:
        raise ValueError(f"A null needs at least {FEWEST_DRAWS} draws, but draws={len(sample)}: raise draws.")
    low, median, high = np.quantile(sample, (0.025, 0.5, 0.975)).tolist()
    return Null(median, low, high, kind)


def _require_dimensions(*dimensions: int) -> None:
    if min(dimensions) < 1:
        raise ValueError(f"A null needs dimensions of at least 1, but they are {dimensions}: skip the empty matrix.")
