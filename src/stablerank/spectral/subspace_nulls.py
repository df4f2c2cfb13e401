"""The floors of head energy and principal angles: what a random update, or a random subspace, would show.

Legend: O output features, I input features, R rank of a factored update, N ambient dimensions, K dimensions of a
subspace, D draws.

Numerics: fp64, a generator of its own, one seed one answer, no O-by-I matrix ever. All three are exact in distribution:

- dense. A Gaussian update is a vector of O I independent normals in any pair of orthonormal bases, so the share of its
  energy on E of these coordinates is Beta(E / 2, (O I - E) / 2), with E = O K one-sided and K^2 two-sided: closed form,
  nothing drawn. Its mean is K / I and K^2 / (O I).
- factored. Rotate ``dW = B A`` into the head: B splits into Gaussians B1 of K rows and B2 of O - K, A likewise, all
  four independent. The energy of a block is ``||B_i A_j||_F = ||R_Bi R_Aj^T||_F``, and the triangular factors of
  Gaussians are drawn directly (Bartlett 1933). Cost O(D R^3), whatever the shape. The mean is the same, the interval
  wider: for R = 1 the one-sided energy is Beta(K / 2, (I - K) / 2), which is also the law of a fixed rank-one update
  against a Haar-distributed subspace.
- angles. Between two K-dimensional subspaces of R^N, one Haar-distributed, N >= 2 K, the squared cosines have the joint
  law of the Jacobi ensemble, whose bidiagonal model has independent beta-distributed entries (Edelman & Sutton 2008, a
  = 0, b = N - 2 K). For N < 2 K two such subspaces share 2 K - N directions, and the other angles are those of their
  complements. Cost O(D K^2), whatever N; cosines to 1e-8, that is angles near 90 and 0 degrees to 1e-6 degrees.

Left out on purpose: a Haar subspace against the measured update itself, whose mean is the same.
"""

from functools import cache
from typing import Literal

import numpy as np
from numpy.random import Generator
from scipy.linalg import eigvalsh_tridiagonal
from scipy.special import betaincinv

from stablerank.spectral.nulls import Array, Null, bartlett, summary


@cache
def head_energy_null(
    out_features: int, in_features: int, k: int, *, rank: int | None = None, draws: int = 200, seed: int = 0
) -> Null:
    """One-sided head energy of a random update on K right directions; for left directions swap the two shapes.

    Kind ``gaussian_factors`` with a ``rank``, ``gaussian_matrix`` (exact quantiles) without.

    Raises:
        ValueError: a dimension below 1, ``k`` above ``in_features``, or fewer than 20 draws.
    """
    return _energy_null((out_features, in_features), (out_features, k), rank, draws, seed)


@cache
def head_energy_two_sided_null(
    out_features: int, in_features: int, k: int, *, rank: int | None = None, draws: int = 200, seed: int = 0
) -> Null:
    """Two-sided head energy of a random update on K left and K right directions; kinds as for the one-sided null.

    Raises:
        ValueError: a dimension below 1, ``k`` above the smaller of them, or fewer than 20 draws.
    """
    return _energy_null((out_features, in_features), (k, k), rank, draws, seed)


@cache
def principal_angle_null(
    features: int, k: int, *, statistic: Literal["largest", "mean"] = "largest", draws: int = 200, seed: int = 0
) -> Null:
    """Largest or mean angle in degrees between two random K-dimensional subspaces; kind ``haar_subspace``.

    Raises:
        ValueError: ``k`` outside ``1..features``, or fewer than 20 draws.
    """
    angles_DK = principal_angle_draws(features, k, draws=draws, seed=seed)
    return summary(angles_DK[:, 0] if statistic == "largest" else angles_DK.mean(1), "haar_subspace")


def principal_angle_draws(features: int, k: int, *, draws: int, seed: int) -> Array:
    """Angles ``(draws, K)`` in degrees, each row descending."""
    _require_within(k, features)
    rng = np.random.default_rng(seed)
    free = min(k, features - k)
    cosines_sq = np.ones((draws, k))  # eigenvalues ascend, so shared directions stand last, at angle 0
    for row in cosines_sq[:, :free] if free else ():
        row[:] = _jacobi_eigenvalues(rng, free, abs(features - 2 * k))
    return np.degrees(np.arccos(np.sqrt(cosines_sq.clip(0, 1))))


def energy_draws(shape: tuple[int, int], head: tuple[int, int], rank: int, *, draws: int, seed: int) -> Array:
    """The share of ``||B A||_F^2`` on the first ``head`` rows and columns, for Gaussian factors of ``rank``."""
    rng = np.random.default_rng(seed)
    (b_head, b_rest), (a_head, a_rest) = (
        (bartlett(rng, inside, rank, draws), bartlett(rng, features - inside, rank, draws))
        for features, inside in zip(shape, head, strict=True)
    )
    within = _product_energy(b_head, a_head)
    outside = _product_energy(b_head, a_rest) + _product_energy(b_rest, a_head) + _product_energy(b_rest, a_rest)
    return within / (within + outside)


def _energy_null(shape: tuple[int, int], head: tuple[int, int], rank: int | None, draws: int, seed: int) -> Null:
    for inside, features in zip(head, shape, strict=True):
        _require_within(inside, features)
    if rank is not None:
        _require_within(1, rank)
        return summary(energy_draws(shape, head, rank, draws=draws, seed=seed), "gaussian_factors")
    inside, entries = head[0] * head[1], shape[0] * shape[1]
    if inside == entries:
        return Null(1.0, 1.0, 1.0, "gaussian_matrix")
    low, median, high = betaincinv(inside / 2, (entries - inside) / 2, (0.025, 0.5, 0.975)).tolist()
    return Null(median, low, high, "gaussian_matrix")


def _product_energy(b_DXR: Array, a_DYR: Array) -> Array:
    return np.square(b_DXR @ a_DYR.swapaxes(-1, -2)).sum((-1, -2))


def _jacobi_eigenvalues(rng: Generator, k: int, excess: int) -> Array:
    """Squared cosines, ascending: the squared singular values of a random upper bidiagonal K-by-K matrix.

    Edelman & Sutton 2008, theorem 1.1 at beta = 1: diagonal ``c_K, c_{K-1} s'_{K-1}, ...``, above it ``s_i c'_{i-1}``.
    """
    order = np.arange(k, 0, -1)
    cos_sq = rng.beta(order / 2, (excess + order) / 2)
    inner_cos_sq = rng.beta(order[1:] / 2, (excess + 1 + order[1:]) / 2)
    diagonal_sq = cos_sq * np.concatenate(([1.0], 1 - inner_cos_sq))
    above_sq = (1 - cos_sq[:-1]) * inner_cos_sq
    gram_diagonal = diagonal_sq + np.concatenate(([0.0], above_sq))
    return eigvalsh_tridiagonal(gram_diagonal, np.sqrt(diagonal_sq[:-1] * above_sq))


def _require_within(inside: int, features: int) -> None:
    if not 1 <= inside <= features:
        raise ValueError(f"A null needs 1 <= k <= the dimensions it lies in, but k={inside} of {features}: lower k.")
