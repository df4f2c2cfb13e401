"""Intruder dimensions: leading singular vectors after training that resemble no singular vector from before.

Legend: O rows, S singular vectors of the base, K leading vectors after training.

Contract (arXiv 2410.21228, ``find_intruder_dimensions.py``): a left singular vector among the first k of W+ is an
intruder if its largest ``|cos|`` with ALL left singular vectors of W0 is below epsilon; the paper takes k = 10 and
epsilon = 0.5. "All" means every vector that belongs to a singular value, S = min(O, I): for O > I these do not span
R^O, the basis of the rest is arbitrary, and a vector moved into it is an intruder rightly.

Caveats. (1) Where singular values of W0 nearly coincide its vectors are one choice of many; an infinitesimal update
may then spread an old direction over a cluster of q of them, at cosines of about 1 / sqrt(q), and be counted. Read a
count beside its floor, which shares the fault: evenly spaced values at S = 4096 give 10 of 10 to a random rank-16
update of relative norm 0.05. (2) k and epsilon are conventions: report the grid. (3) A zero update counts 0.

Numerics: fp64, cost O(O S K) beside the two decompositions. Two nulls stand at the two ends of the scale:

- :func:`intruder_update_null`, the floor of a factored update: the count after a random update of its rank and norm. A
  random update is rotation invariant, so W0 may be taken as diag(sigma), whose left vectors are the axes: the largest
  ``|cos|`` is the largest entry. The k leading vectors of diag(sigma) + B A come from ARPACK, whose products cost
  O((S + R) R), rows beyond the S-th entering as their triangle: nothing of size O I is ever formed.
- :func:`intruder_null`, the ceiling: the count in a random orthonormal frame. The largest ``|cos|`` of a random vector
  is about ``sqrt(2 ln S / O)``, 0.15 at 576, so at epsilon = 0.5 all k of them count.

Left out on purpose: the floor of a dense update, which has no such cheap product.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from stablerank.spectral.nulls import Array, Null, bartlett, summary

_SMALL = 256


def intruder_cosines(after_OK: Tensor, before_OS: Tensor) -> Tensor:
    """The largest ``|cos|`` of each vector after training with any before, ``(K,)`` fp64; NaN where not finite.

    Args:
        after_OK: the K leading left singular vectors of W+, in order.
        before_OS: all left singular vectors of W0 that belong to a singular value.

    Raises:
        ValueError: the vectors have unlike lengths, or there are none.
    """
    if after_OK.ndim != 2 or before_OS.ndim != 2 or after_OK.shape[0] != before_OS.shape[0] or not before_OS.shape[1]:
        raise ValueError(
            f"Intruder dimensions need vectors (O, K) and (O, S) of one length, but the shapes are "
            f"{tuple(after_OK.shape)} and {tuple(before_OS.shape)}: take them from two states of one matrix."
        )
    return (before_OS.double().mT @ after_OK.double()).abs().amax(0)


def intruder_counts(cosines_K: Tensor, ks: Sequence[int] = (10,), epsilons: Sequence[float] = (0.5,)) -> Tensor:
    """How many of the first k vectors are intruders, ``(len(ks), len(epsilons))`` fp64; NaN where a cosine is.

    Raises:
        ValueError: a k outside ``1..K``.
    """
    if not all(1 <= k <= len(cosines_K) for k in ks):
        raise ValueError(
            f"Intruders are counted among the {len(cosines_K)} vectors given, but ks={tuple(ks)}: take every k from 1 "
            f"to {len(cosines_K)} or pass more vectors."
        )
    below_KE = (cosines_K[:, None] < cosines_K.new_tensor(epsilons)).double()
    below_KE[cosines_K.isnan()] = torch.nan
    return below_KE.cumsum(0)[torch.tensor(ks) - 1]


@cache
def intruder_null(
    out_features: int, in_features: int, *, k: int = 10, epsilon: float = 0.5, draws: int = 200, seed: int = 0
) -> Null:
    """The count among k random orthonormal vectors of R^O; kind ``haar_frame``. Cost O(draws S k^2).

    Raises:
        ValueError: ``k`` outside ``1..out_features``, or fewer than 20 draws.
    """
    if not 1 <= k <= out_features:
        raise ValueError(
            f"A random frame needs 1 <= k <= {out_features} vectors in as many dimensions, but k={k}: lower k."
        )
    rng = np.random.default_rng(seed)
    counts = [_haar_count(rng, out_features, min(out_features, in_features), k, epsilon) for _ in range(draws)]
    return summary(np.array(counts, dtype=np.float64), "haar_frame")


def intruder_update_null(
    before_S: Tensor,
    shape: tuple[int, int],
    relative_norm: float,
    rank: int,
    *,
    k: int = 10,
    epsilon: float = 0.5,
    draws: int = 20,
    seed: int = 0,
) -> Null:
    """The count after Gaussian factors of ``rank`` with ``||dW||_F = relative_norm ||W0||_F``; ``gaussian_factors``.

    At S = 4096 some 15 to 200 ms a draw. NaN, kind ``none``, where the base or the update is zero or not finite.

    Args:
        before_S: all singular values of the base.
        shape: ``(O, I)`` of the matrix.
        relative_norm: ``||dW||_F / ||W0||_F``.
        rank: rank of the update, at least 1.
        k: how many leading vectors are looked at.
        epsilon: the largest ``|cos|`` of an intruder.
        draws: at least 20.
        seed: of the draws.

    Raises:
        ValueError: the spectrum does not fit the shape, ``rank`` below 1, ``k`` outside ``1..S``, fewer than 20 draws.
    """
    if before_S.shape != (min(shape),) or rank < 1 or not 1 <= k <= min(shape):
        raise ValueError(
            f"The null of intruders needs all {min(shape)} singular values of a matrix {shape}, rank >= 1 and k up to "
            f"{min(shape)}, but the spectrum has shape {tuple(before_S.shape)}, rank={rank}, k={k}: pass "
            "the whole spectrum."
        )
    values_S = before_S.double().cpu().numpy()
    size = relative_norm * float(np.linalg.norm(values_S))
    if not (np.isfinite(size) and size > 0):
        return Null(math.nan, math.nan, math.nan, "none")
    rng = np.random.default_rng(seed)
    counts = [_updated_count(rng, values_S, shape, size, rank, k, epsilon) for _ in range(draws)]
    return summary(np.array(counts, dtype=np.float64), "gaussian_factors")


def _updated_count(
    rng: np.random.Generator, values_S: Array, shape: tuple[int, int], size: float, rank: int, k: int, epsilon: float
) -> int:
    """One draw: intruders among the k leading left vectors of ``diag(values_S) + B A``."""
    count = len(values_S)
    b_XR, a_YR = (
        np.concatenate((rng.standard_normal((count, rank)), bartlett(rng, side - count, rank, 1)[0])) for side in shape
    )
    b_XR *= size / np.sqrt((b_XR.T @ b_XR * (a_YR.T @ a_YR)).sum())
    vectors_XK = _leading_left_vectors(values_S, b_XR, a_YR, k)
    return int((np.abs(vectors_XK[:count]).max(0) < epsilon).sum())


def _leading_left_vectors(values_S: Array, b_XR: Array, a_YR: Array, k: int) -> Array:
    """By ARPACK with a fixed start, or by a dense SVD where the matrix is small."""
    count = len(values_S)
    if count <= max(_SMALL, 4 * k):
        matrix = b_XR @ a_YR.T
        matrix[np.arange(count), np.arange(count)] += values_S
        return np.linalg.svd(matrix, full_matrices=False).U[:, :k]

    def product(left: Array, right: Array, x: Array) -> Array:
        result = left @ (right.T @ x)
        result[:count] += values_S * x[:count]
        return result

    operator = LinearOperator(
        (len(b_XR), len(a_YR)),
        matvec=lambda x: product(b_XR, a_YR, x.ravel()),
        rmatvec=lambda y: product(a_YR, b_XR, y.ravel()),
        dtype=np.float64,
    )
    vectors_XK: Array = svds(operator, k=k, tol=1e-8, v0=np.ones(min(operator.shape)), return_singular_vectors="u")[0]
    return vectors_XK


def _haar_count(rng: np.random.Generator, dimensions: int, known: int, k: int, epsilon: float) -> int:
    """One draw: only the ``known`` coordinates of the frame are needed, so the others enter as their triangle."""
    gaussian = np.concatenate((rng.standard_normal((known, k)), bartlett(rng, dimensions - known, k, 1)[0]))
    frame = np.linalg.qr(gaussian).Q[:known]
    return int((np.abs(frame).max(0) < epsilon).sum())
