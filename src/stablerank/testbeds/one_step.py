"""Does the condition name the better step? Predicted and realised decrease of one Euclidean and one spectral step.

Legend: O outputs, K features, N samples.

Contract: a `OneStep` holds both sides of the condition and what each step really took off the loss. On random-feature
regression (`on_features`) the steps are those of the theory, ``G / L_F`` and ``|G|_* polar(G) / L_op`` with
``L_F = |A|_2^2 / N`` and ``L_op = |A|_F^2 / N``, after t steps of gradient descent; all is exact in the eigenbasis of
``A A^T / N``, where the loss is a weighted sum of squares. There ``nr >= 2 st`` must mean a larger realised decrease.

On a model (`on_model`) the curvature is not known, and in the limit of short steps of equal constants the realised
ratio is the predicted one by construction. So each direction, G and ``polar(G)``, gets the length that is best for it:
a search over powers of two of the weight's own norm, refined once. One block moves at a time.

Numerics: features in fp64; a model in its own type, losses as the caller computes them. Source: Davis, Drusvyatskiy
(2512.04299), section 1; METHODS.md 5.1.

Left out on purpose: several blocks at once, whose curvatures meet (section 4.4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from stablerank.optimisers.spectral_descent import polar_factor
from stablerank.probes.spectral_condition import BlockCondition
from stablerank.spectral.functionals import nuclear_rank
from stablerank.testbeds.random_features import features

LENGTHS = tuple(2.0**-power for power in range(1, 13))
"""Of a step, in units of the weight's Frobenius norm."""
REFINEMENTS = 8


@dataclass(frozen=True)
class OneStep:
    """One block at one point."""

    place: str
    nuclear_rank: float
    stable_rank: float
    euclidean: float
    """Realised decrease of the loss."""
    spectral: float

    @property
    def predicted(self) -> float:
        """Guaranteed decrease of the spectral step over that of the Euclidean one."""
        return self.nuclear_rank / self.stable_rank

    @property
    def is_named(self) -> bool:
        """Whether the condition names the step that decreases the loss more."""
        return (self.predicted >= 1) == (self.spectral >= self.euclidean)


def on_features(activation: str, width: int, seed: int, steps: Sequence[int]) -> list[OneStep]:
    """Along gradient descent from zero towards a Gaussian teacher, K outputs."""
    a_KN = features(activation, width, seed)
    energies_K, basis_KK = torch.linalg.eigh(a_KN @ a_KN.T / a_KN.shape[1])
    draw = torch.Generator().manual_seed(seed + 1000)
    teacher_OK = torch.randn(width, width, generator=draw, dtype=torch.float64) @ basis_KK
    shrink_K = 1 - energies_K / energies_K[-1]
    return [_on_quadratic(f"step {step}", -teacher_OK * shrink_K**step, energies_K) for step in steps]


def _on_quadratic(place: str, error_OK: Tensor, energies_K: Tensor) -> OneStep:
    """``error`` is W minus the solution, in the eigenbasis."""
    gradient_OK = error_OK * energies_K
    direction_OK, nuclear = polar_factor(gradient_OK)

    def loss(at_OK: Tensor) -> float:
        return float((at_OK.square() * energies_K).sum() / 2)

    before = loss(error_OK)
    return OneStep(
        place,
        nuclear_rank(torch.linalg.svdvals(gradient_OK)).item(),
        float(energies_K.sum() / energies_K[-1]),
        before - loss(error_OK - gradient_OK / energies_K[-1]),
        before - loss(error_OK - direction_OK * nuclear / energies_K.sum()),
    )


@torch.no_grad()
def on_model(
    weights: Mapping[str, nn.Parameter], blocks: Mapping[str, BlockCondition], loss: Callable[[], float]
) -> list[OneStep]:
    """Each named weight moved alone, from the point where its ``.grad`` and its block's condition were measured.

    ``loss`` is that of the same batch; it is called some forty times a weight. Weights end as they were.
    """
    before = loss()
    found = []
    for name, weight in weights.items():
        assert weight.grad is not None
        directions = weight.grad, polar_factor(weight.grad)[0]
        euclidean, spectral = (before - _lowest(weight, direction, loss) for direction in directions)
        found.append(OneStep(name, blocks[name].nuclear_rank, blocks[name].stable_rank, euclidean, spectral))
    return found


def _lowest(weight: nn.Parameter, direction: Tensor, loss: Callable[[], float]) -> float:
    """The lowest loss along a direction; no step at all counts too."""
    start = weight.detach().clone()
    unit = direction * (start.norm() / direction.norm())

    def after(power: float) -> float:
        weight.copy_(start - 2.0**power * unit)
        return loss()

    try:
        powers = [float(torch.tensor(length).log2()) for length in LENGTHS]
        losses = [after(power) for power in powers]
        best = min(range(len(powers)), key=losses.__getitem__)
        refined = minimize_scalar(
            after, bounds=(powers[best] - 1, powers[best] + 1), method="bounded", options={"maxiter": REFINEMENTS}
        )
        weight.copy_(start)
        return min(loss(), losses[best], float(refined.fun))
    finally:
        weight.copy_(start)
