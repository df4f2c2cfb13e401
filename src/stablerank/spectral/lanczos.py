"""Block Lanczos with full reorthogonalisation: the top of the spectrum of ``M = A^T A`` from a few passes over A.

Legend: K shorter side of A, B block width, N = steps times B basis vectors.

Contract: from a random orthonormal block V_1, independent of A, it builds an orthonormal basis V and a symmetric block
tridiagonal T with ::

    M V = V T + V_next (residual coupling) + rounding

so that the largest eigenvalue of T (the Ritz value) never exceeds that of M. A direction that is exhausted
(rank-deficient A, repeated values) comes out of the QR as an arbitrary one with coupling zero, so that low rank needs
no special case.

Numerics: products in the dtype of the blocks (fp32, or fp64 for fp64 input); T in fp64. Classical Gram-Schmidt, twice,
and again where the second time takes most of a direction away (Kahan's criterion, in Parlett 1980, section 6.9).
Cost a step: 4 O I B flops and 4 N K B for the reorthogonalisation.

Source: Golub & Underwood 1977; full reorthogonalisation as in Golub & Van Loan, Matrix Computations, section 10.3.

Left out on purpose: restarts (the few steps that a certificate needs fit in memory) and eigenvectors.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from stablerank.spectral.operators import Stored, row_blocks

_MOST_REPEATS = 3


@dataclass(eq=False)
class BlockLanczos:
    """A factorisation that grows by one block a step; ``start_BK`` has orthonormal rows."""

    operator: Stored
    start_BK: Tensor
    capacity: int
    """Most steps; memory is reserved for that many, but its pages are only touched as they fill."""
    coupling: list[Tensor] = field(default_factory=list)
    """``coupling[j]`` ``(B, B)`` is block ``(j, j + 1)`` of T; the last one couples to the next block."""

    def __post_init__(self) -> None:
        self.width, size = self.start_BK.shape
        most = (self.capacity + 1) * self.width
        self._basis_NK = self.start_BK.new_empty(most, size)
        self._basis_NK[: self.width] = self.start_BK
        self._seen_NN = self.start_BK.new_zeros(most, most, dtype=torch.float64)
        self._t_NN = torch.zeros_like(self._seen_NN)

    @property
    def steps(self) -> int:
        """Lanczos steps so far."""
        return len(self.coupling)

    def step(self) -> None:
        """Multiply by M once and append a block."""
        known = (self.steps + 1) * self.width
        here, ahead = slice(known - self.width, known), slice(known, known + self.width)
        basis_NK = self._basis_NK[:known]
        product_BK = gram_product(self.operator, basis_NK[here])
        overlap_BN = product_BK @ basis_NK.mT
        next_BK, coupling_BB = _orthonormal_rows(torch.addmm(product_BK, overlap_BN, basis_NK, alpha=-1))
        seen_BN = overlap_BN.double()
        for _ in range(_MOST_REPEATS):
            again_BN = next_BK @ basis_NK.mT
            next_BK, kept_BB = _orthonormal_rows(torch.addmm(next_BK, again_BN, basis_NK, alpha=-1))
            seen_BN.addmm_(coupling_BB, again_BN.double())
            coupling_BB = coupling_BB @ kept_BB
            # Twice is enough, except for the rounding noise that is left of an exhausted direction.
            if kept_BB.diagonal().abs().min() > 0.5:
                break
        self._basis_NK[ahead] = next_BK
        self._seen_NN[here, :known] = seen_BN
        self._t_NN[here, here] = (seen_BN[:, here] + seen_BN[:, here].mT) / 2
        self._t_NN[here, ahead] = coupling_BB
        self._t_NN[ahead, here] = coupling_BB.mT
        self.coupling.append(coupling_BB)

    def tridiagonal(self) -> tuple[Tensor, float]:
        """T, ``(N, N)`` in fp64, and the largest entry by which the products differ from it.

        Exact arithmetic would make that entry zero: it is what rounding did, seen from inside the basis.
        """
        size = self.steps * self.width
        t_NN = self._t_NN[:size, :size]
        return t_NN, (self._seen_NN[:size, :size] - t_NN).tril().abs().max().item()


def gram_product(operator: Stored, x_BK: Tensor) -> Tensor:
    """``X M``, M the Gram matrix of the shorter side: ``A^T A``, or ``A A^T`` where A is wide.

    A tall matrix is read once: both products use a block while it is in the cache. A wide one is read twice, for its
    blocks of rows are short pieces of the long side.
    """
    rows, columns = operator.shape
    if rows >= columns:
        result_BK = torch.zeros_like(x_BK)
        for _, block_LK in row_blocks(operator):
            result_BK.addmm_(x_BK @ block_LK.mT, block_LK)
        return result_BK
    across_BL = x_BK.new_zeros(len(x_BK), columns)
    for chosen, block_RL in row_blocks(operator):
        across_BL.addmm_(x_BK[:, chosen], block_RL)
    return torch.cat([across_BL @ block_RL.mT for _, block_RL in row_blocks(operator)], dim=1)


def random_start(width: int, size: int, *, seed: int, like: Tensor) -> Tensor:
    """A Haar-random orthonormal block ``(B, K)`` from a generator of its own, in the dtype and device of ``like``."""
    return _haar_rows(width, size, seed).to(like)


@lru_cache(maxsize=64)
def _haar_rows(width: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return _orthonormal_rows(torch.randn(width, size, generator=generator, dtype=torch.float64))[0]


def _orthonormal_rows(rows_BK: Tensor) -> tuple[Tensor, Tensor]:
    """``rows = coupling @ orthonormal``: the orthonormal rows and the coupling ``(B, B)`` in fp64."""
    q_KB, r_BB = torch.linalg.qr(rows_BK.mT)
    return q_KB.mT.contiguous(), r_BB.mT.double()
