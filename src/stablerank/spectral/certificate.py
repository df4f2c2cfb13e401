"""An upper bound on the largest eigenvalue of ``M = A^T A`` from a block Lanczos run, and with what probability.

Legend: B block width, S steps, N = S B, K size of M.

Statement. Let x_1 be a unit eigenvector of M to its largest eigenvalue lambda_1, V_1 the random start block and
c = V_1^T x_1. V_1 is independent of M, so ||c||^2 has the Beta(B / 2, (K - B) / 2) distribution, and ||c|| >= epsilon
but with probability delta, epsilon^2 its delta-quantile. Suppose lambda_1 > theta, the largest Ritz value (if not,
there is nothing to show). Multiplying the Lanczos relation by x_1^T, with z = V^T x_1, w = V_next^T x_1, ||w|| <= 1 and
rounding errors e, ||e|| <= eta::

    (lambda_1 - T) z = E_S L_S w + e,      c = E_1^T z.

Write the block LDL factorisation of x - T with pivots N_j(x), positive definite for x > theta. At x = lambda_1 ::

    c = N_1^-1 L_1 N_2^-1 L_2 ... N_S^-1 L_S w + E_1^T (x - T)^-1 e
    epsilon <= ||c|| <= chain(x) + eta ||E_1^T (x - T)^-1||
    chain(x) = ||N_1^-1/2|| prod_j ||N_j^-1/2 L_j N_{j+1}^-1/2|| ||N_S^-1/2 L_S||

Each N_j(x) grows with x in the semidefinite order, so the right side falls: where it is below epsilon at x, it is so
at every larger x, and lambda_1 < x (:func:`shortfall`). One event, ||c|| >= epsilon, carries every x and every number
of steps, so a run may stop when it likes. For B = 1 the chain is 1 / |p_S(x)|, the bound of van Dorsselaer,
Hochstenbach & van der Vorst (2000) from the run's own Lanczos polynomial. A block needs far less luck: for K = 4096
and delta = 1e-6 epsilon is 2e-8 with one vector and 6e-3 with eight, hence fewer steps, and a margin over rounding
errors, which are about 1e-7.

In exact arithmetic the norm of the whole product would be a tighter bound, but not one that provably falls with x; on
weights of language models the chain costs at most one step more, on Gaussian matrices a fifth.

Rounding. The errors e enter through one linear map of B rows. With independent mean-zero roundings (Connolly, Higham &
Mary 2021) each entry of e has a standard deviation of at most s = u (sqrt(O) + sqrt(I)) lambda_1, and their image one
of at most s times the norm of the map in every direction: it exceeds sqrt(B) + 5 such deviations with a probability
below 1e-6. eta is :func:`rounding_allowance`, 8 s, and never less than eight times what the run itself saw
(``BlockLanczos.tridiagonal``). Loss of orthogonality, some 1e-6 in fp32, is covered by one part in a thousand of
epsilon.
"""

import math

import torch
from scipy.special import betaincinv
from torch import Tensor

from stablerank.spectral.lanczos import BlockLanczos


def least_overlap(width: int, size: int, delta: float) -> float:
    """``epsilon``: what the norm of B coordinates of a random unit vector in K dimensions exceeds but for ``delta``."""
    return math.sqrt(float(betaincinv(width / 2, (size - width) / 2, delta)))


def rounding_allowance(shape: tuple[int, int], dtype: torch.dtype) -> float:
    """``eta / lambda_1``: eight standard deviations of the rounding of one product with A and one with its transpose.

    A dot product of length n errs by ``u sqrt(n)`` times the norms of its factors; row norms do not exceed sigma_1.
    """
    unit = torch.finfo(dtype).eps / 2
    return 8 * unit * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


def shortfall(x: float, run: BlockLanczos, tridiagonal_NN: Tensor, *, epsilon: float, eta: float) -> float:
    """How far the right side of the statement is above epsilon at ``x``: below 1, ``lambda_1 < x`` is shown.

    Infinite where ``x`` is not above the largest Ritz value.
    """
    shifted_NN = -tridiagonal_NN
    shifted_NN.diagonal().add_(x)
    factor_NN, failed = torch.linalg.cholesky_ex(shifted_NN)
    if failed:
        return math.inf
    start_NB = torch.eye(len(factor_NN), run.width, dtype=torch.float64, device=factor_NN.device)
    response = _norms(torch.cholesky_solve(start_NB, factor_NN)[None]).item()
    return (_chain(factor_NN, run) + eta * response) / (0.999 * epsilon)


def _chain(factor_NN: Tensor, run: BlockLanczos) -> float:
    """The product of norms, from the Cholesky factor C of x - T: its diagonal blocks are square roots of the N_j.

    Its blocks below the diagonal are ``-(C_j^-1 L_j)^T``, so ``N_j^-1/2 L_j N_{j+1}^-1/2`` has the norm of
    ``C_{j+1}^-1 C_{j+1,j}``.
    """
    steps, width = run.steps, run.width
    factor_SBSB = factor_NN.view(steps, width, steps, width)
    index = torch.arange(steps)
    roots_SBB = factor_SBSB[index, :, index]
    below_SBB = factor_SBSB[index[1:], :, index[:-1]]
    unit_BB = torch.eye(width, dtype=torch.float64, device=factor_NN.device)
    links = torch.cat((unit_BB[None], below_SBB, run.coupling[-1][None]))
    return (
        _norms(torch.linalg.solve_triangular(torch.cat((roots_SBB, roots_SBB[-1:])), links, upper=False)).prod().item()
    )


def _norms(matrices: Tensor) -> Tensor:
    """Spectral norms of matrices with few columns."""
    return torch.linalg.eigvalsh(matrices.mT @ matrices)[..., -1].clamp(min=0).sqrt()
