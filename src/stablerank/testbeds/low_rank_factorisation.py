"""Fitting a low-rank matrix: gradient descent on LoRA's two factors against Riemannian descent on PoLAR's three.

Legend: M rows, N columns, R rank of the factors, K rank of the target.

Contract: minimise ``|B A - T|_F^2 / 2`` by gradient descent (`lora`), or ``|X Theta Y^T - T|_F^2 / 2`` with X and Y on
the Stiefel manifold (`polar`); T has rank K <= R and singular values even on a logarithmic axis from 1 to 1 / kappa.
Both give the first iteration at which the relative loss ``|.|_F^2 / |T|_F^2`` is at most each tolerance, None where it
never came to that within the budget or diverged.

LoRA starts with B = 0 and A Gaussian of variance 1 / N, one step size for both factors. PoLAR takes the unit step in
Theta, which is its exact minimiser ``X^T T Y`` (the loss is quadratic in Theta with curvature one), and then one step
in X and in Y along the Riemannian gradient, which is ``-(I - X X^T) T Y Theta^T`` there, with the polar retraction.

Numerics: fp64. The loss after Theta's step is ``|T|^2 - |Theta|^2``, taken from the residual itself, not from this
difference. Cost of an iteration: O(M N R), PoLAR's retraction O((M + N) R^2) beside it.

Source: PoLAR (2506.03133), whose constants are not known to us; METHODS.md 3.6, "canonical test".

Left out on purpose: noise, targets of full rank, adaptive optimisers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

Descent = Callable[["Problem", int, float], Iterator[float]]
"""``descent(problem, seed, step)`` yields the relative loss before every iteration."""


@dataclass(frozen=True)
class Problem:
    """One target."""

    condition: float
    rank: int
    target_rank: int = 4
    rows: int = 40
    columns: int = 30

    def target(self, seed: int) -> Tensor:
        """T, (M, N)."""
        draw = torch.Generator().manual_seed(seed)
        left_MK = torch.linalg.qr(_normal(self.rows, self.target_rank, draw)).Q
        right_NK = torch.linalg.qr(_normal(self.columns, self.target_rank, draw)).Q
        exponents_K = torch.linspace(0, 1, self.target_rank, dtype=torch.float64)
        return (left_MK * self.condition**-exponents_K) @ right_NK.T


def lora(problem: Problem, seed: int, step: float) -> Iterator[float]:
    """Gradient descent on B (M, R) and A (R, N)."""
    target_MN, draw = problem.target(seed), torch.Generator().manual_seed(seed + 1000)
    a_RN = _normal(problem.rank, problem.columns, draw) / problem.columns**0.5
    b_MR = torch.zeros(problem.rows, problem.rank, dtype=torch.float64)
    while True:
        residual_MN = b_MR @ a_RN - target_MN
        yield _relative(residual_MN, target_MN)
        b_MR, a_RN = b_MR - step * residual_MN @ a_RN.T, a_RN - step * b_MR.T @ residual_MN


def polar(problem: Problem, seed: int, step: float) -> Iterator[float]:
    """Riemannian gradient descent on X (M, R), Y (N, R), with Theta at its minimiser."""
    target_MN, draw = problem.target(seed), torch.Generator().manual_seed(seed + 1000)
    x_MR = torch.linalg.qr(_normal(problem.rows, problem.rank, draw)).Q
    y_NR = torch.linalg.qr(_normal(problem.columns, problem.rank, draw)).Q
    while True:
        theta_RR = x_MR.T @ target_MN @ y_NR
        residual_MN = x_MR @ theta_RR @ y_NR.T - target_MN
        yield _relative(residual_MN, target_MN)
        to_x_MR, to_y_NR = residual_MN @ y_NR @ theta_RR.T, residual_MN.T @ x_MR @ theta_RR
        x_MR = retract(x_MR, -step * (to_x_MR - x_MR @ (x_MR.T @ to_x_MR)))
        y_NR = retract(y_NR, -step * (to_y_NR - y_NR @ (y_NR.T @ to_y_NR)))


def retract(point_MR: Tensor, tangent_MR: Tensor) -> Tensor:
    """The polar retraction ``(P + V)(I + V^T V)^-1/2`` of a tangent V at P."""
    energies_R, basis_RR = torch.linalg.eigh(tangent_MR.T @ tangent_MR)
    return (point_MR + tangent_MR) @ (basis_RR * (1 + energies_R).rsqrt()) @ basis_RR.T


def iterations(
    descent: Descent, problem: Problem, seed: int, step: float, tolerances: Sequence[float], budget: int
) -> list[int | None]:
    """The first iteration at or below each tolerance, which fall."""
    reached: list[int | None] = []
    for count, loss in enumerate(islice(descent(problem, seed, step), budget + 1)):
        while len(reached) < len(tolerances) and loss <= tolerances[len(reached)]:
            reached.append(count)
        if len(reached) == len(tolerances) or not loss < 1e6:
            break
    return reached + [None] * (len(tolerances) - len(reached))


def _relative(residual_MN: Tensor, target_MN: Tensor) -> float:
    return float(residual_MN.square().sum() / target_MN.square().sum())


def _normal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64)
