"""Normalised spectral shift: how far the singular values moved, without asking which vectors they belong to.

Legend: K singular values, O rows and I columns of the matrix (O >= I = K after transposing), R rank of a factored
update, D draws.

Contract: ``NSS = ||sigma(W+) - sigma(W0)||_2 / ||sigma(W0)||_2``, both spectra descending (arXiv 2511.08567; METHODS.md
2.4). Two equal spectra give exactly 0, also where the update is a mere rotation. By Mirsky's inequality
``NSS <= ||dW||_F / ||W0||_F``, see :func:`nss_bound`: a measured value above it is a bug or an fp32 Gram matrix.

Numerics: fp64. Spectra have to come from the matrices: published shifts are 1e-5 to 1e-3, and fp32 Gram spectra inflate
them up to 4.7 times. An update read from bf16 checkpoints carries its rounding noise along (representable.py).

Null. A random update of the same norm and structure is rotation invariant, so W0 may be taken as diag(sigma). With
``e = ||dW||_F / ||W0||_F`` the first order of each value is a diagonal entry of dW, which gives the typical size ::

    NSS ~ e / sqrt(max(O, I))            "100 times below the Mirsky bound" is what chance does at 10,000 columns

exactly distributed as the share of energy on the diagonal. The first order holds while an entry of dW, ``s = e
||W0||_F / sqrt(O I)``, is smaller than the spacing of the singular values: here, while on average at most half a
neighbour lies within s of a value (then within 15 % of full draws on Gaussian and power-law spectra; repeated values
move sqrt(multiplicity) more, are counted as neighbours, and so leave the domain). Beyond it the null is drawn in full
from a K-by-K problem, O(K^3) a draw, up to K = 1024; larger matrices outside the domain have no null (NaN, kind
``none``): their first order would be too low a floor.

Left out on purpose: free-probability limits, which would cover the large matrices but not their few leading values.
"""

import math

import numpy as np
import torch
from numpy.random import Generator
from scipy.special import betaincinv
from torch import Tensor

from stablerank.spectral.nulls import Array, Null, bartlett, summary
from stablerank.spectral.operators import Operator

LARGEST_DRAWN = 1024
_MOST_NEIGHBOURS = 0.5


def nss(after_K: Tensor, before_K: Tensor) -> float:
    """Normalised spectral shift between two descending spectra; NaN where one is not finite or the base is zero.

    Raises:
        ValueError: the spectra differ in length or are not one-dimensional.
    """
    if after_K.ndim != 1 or after_K.shape != before_K.shape:
        raise ValueError(
            f"NSS needs two spectra (K,) of one length, but the shapes are {tuple(after_K.shape)} and "
            f"{tuple(before_K.shape)}: take them from two states of one matrix."
        )
    before_K = before_K.double()
    shift = torch.linalg.vector_norm(after_K.double().to(before_K.device) - before_K).item()
    return _ratio(shift, torch.linalg.vector_norm(before_K).item())


def nss_bound(update: Operator, before_K: Tensor) -> float:
    """``||dW||_F / ||W0||_F``, which no NSS exceeds (Mirsky 1960): also the relative norm of the update."""
    return _ratio(math.sqrt(update.frobenius_sq()), torch.linalg.vector_norm(before_K.double()).item())


def nss_null(
    before_K: Tensor,
    shape: tuple[int, int],
    relative_norm: float,
    *,
    rank: int | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Null:
    """NSS of random updates of one relative norm: a Gaussian matrix, or Gaussian factors of ``rank``.

    Kinds ``gaussian_matrix`` and ``gaussian_factors``, with ``_first_order`` appended inside its domain; ``none`` with
    NaN where there is no affordable null or no update.

    Args:
        before_K: all singular values of the base, descending.
        shape: ``(O, I)`` of the matrix.
        relative_norm: ``||dW||_F / ||W0||_F``.
        rank: rank of a factored update.
        draws: at least 20.
        seed: of the draws.

    Raises:
        ValueError: the spectrum does not fit the shape, or fewer than 20 draws.
    """
    long, short = max(shape), min(shape)
    if before_K.shape != (short,) or short < 1:
        raise ValueError(
            f"The null of NSS needs all {short} singular values of a matrix {shape}, but the spectrum has shape "
            f"{tuple(before_K.shape)}: pass the whole spectrum."
        )
    values_K = before_K.double().cpu().numpy()
    norm = float(np.linalg.norm(values_K))
    if not (math.isfinite(norm) and norm > 0 and math.isfinite(relative_norm) and relative_norm > 0):
        return Null(math.nan, math.nan, math.nan, "none")
    kind = "gaussian_matrix" if rank is None else "gaussian_factors"
    rng = np.random.default_rng(seed)
    if _neighbours(values_K, relative_norm * norm / math.sqrt(long * short)) <= _MOST_NEIGHBOURS:
        return _first_order(rng, long, short, relative_norm, rank, draws, kind)
    if short > LARGEST_DRAWN:
        return Null(math.nan, math.nan, math.nan, "none")
    unit_K = values_K / norm
    return summary(
        np.array([_drawn_shift(unit_K, relative_norm * _random_update(rng, long, short, rank)) for _ in range(draws)]),
        kind,
    )


def _first_order(
    rng: Generator, long: int, short: int, relative_norm: float, rank: int | None, draws: int, kind: str
) -> Null:
    """``e`` times the root of the share of energy on the diagonal."""
    if rank is None:
        shares = betaincinv(short / 2, (long - 1) * short / 2, (0.025, 0.5, 0.975)) if long > 1 else np.ones(3)
        low, median, high = (relative_norm * np.sqrt(shares)).tolist()
        return Null(median, low, high, f"{kind}_first_order")
    shares = np.array([_diagonal_share(rng, long, short, rank) for _ in range(draws)])
    return summary(relative_norm * np.sqrt(shares), f"{kind}_first_order")


def _diagonal_share(rng: Generator, long: int, short: int, rank: int) -> float:
    """``sum_i (B A)_ii^2 / ||B A||_F^2`` from the rows that meet the diagonal and the triangle of the rest."""
    b_KR, a_KR = rng.standard_normal((2, short, rank))
    rest = bartlett(rng, long - short, rank, 1)[0]
    gram_b = b_KR.T @ b_KR + rest.T @ rest
    return float(np.square((b_KR * a_KR).sum(1)).sum() / (gram_b * (a_KR.T @ a_KR)).sum())


def _random_update(rng: Generator, long: int, short: int, rank: int | None) -> Array:
    """A random update of norm 1; the rows below the K-th enter as their triangle, which has the same Gram matrix."""
    if rank is None:
        update = np.concatenate((rng.standard_normal((short, short)), bartlett(rng, long - short, short, 1)[0]))
    else:
        b = np.concatenate((rng.standard_normal((short, rank)), bartlett(rng, long - short, rank, 1)[0]))
        update = b @ rng.standard_normal((rank, short))
    return update / np.linalg.norm(update)


def _drawn_shift(unit_K: Array, update_XK: Array) -> float:
    """NSS of ``diag(unit_K)`` after one update."""
    diagonal = np.arange(len(unit_K))
    update_XK[diagonal, diagonal] += unit_K
    return float(np.linalg.norm(np.linalg.svd(update_XK, compute_uv=False) - unit_K))


def _neighbours(values_K: Array, distance: float) -> float:
    """How many other singular values lie within ``distance`` of one, on average."""
    ascending = np.sort(values_K)
    within = np.searchsorted(ascending, ascending + distance, "right") - np.searchsorted(
        ascending, ascending - distance
    )
    return float(within.mean() - 1)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 and math.isfinite(part) and math.isfinite(whole) else math.nan
