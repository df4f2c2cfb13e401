"""Random-feature regression: the gradient's nuclear rank over time against the stable rank of the features.

Legend: D inputs, K features, O outputs, N samples.

Contract: features ``A = act(W_1 X) (K, N)``, Gaussian W_1 and X; realisable targets ``Y = W* A``; gradient descent from
``W = 0`` on ``|W A - Y|_F^2 / (2 N)`` with the step ``1 / L_F``. With ``H = A A^T / N`` the gradient after t steps is
exactly ``-W* (I - H / L_F)^t H``, so that any t costs one product and nothing is simulated. `noise_to_signal` is
``E|z|^2 / |E z|^2`` of one feature, which bounds st(A) from above for many samples (theorem 2.6).

Numerics: fp64. Source: Davis, Drusvyatskiy (2512.04299), sections 2 and 3, figure 12; METHODS.md 5.3, 5.4.

Spiked features ``A = sqrt(N) sum_i sqrt(lambda_i) u_i v_i^T + Gaussian`` put eigenvalues ``d^e`` over a bulk of order
one (`SPIKES`): with the step ``1 / L_F`` the spikes are learnt after some ``d^(1/2) log d`` steps and the bulk not
before ``d`` steps. Between the two, `window`, theorem 3.6 promises a nuclear rank of order d, with st(A) of order one.

Left out on purpose: spectral descent itself, whose gradient has no closed form.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, silu

from stablerank.spectral.functionals import nuclear_rank

ABSOLUTE, RELU, SQUARED_RELU = math.pi / 2, math.pi, 6.0
"""Noise-to-signal ratios of Gaussian pre-activations."""


def leaky_relu(negative: float, positive: float) -> float:
    """The ratio for slopes p below zero and q above: ``pi (p^2 + q^2) / (p - q)^2``."""
    return math.pi * (negative**2 + positive**2) / (negative - positive) ** 2


def gelu_bound(variance: float) -> float:
    """A bound for GELU at the smallest pre-activation variance: ``2 pi (1 + v) / v``."""
    return 2 * math.pi * (1 + variance) / variance


ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda x_KN, gate_KN: relu(x_KN),
    "squared_relu": lambda x_KN, gate_KN: relu(x_KN).square(),
    "swiglu": lambda x_KN, gate_KN: silu(gate_KN) * x_KN,
}


@dataclass(frozen=True)
class Path:
    """One descent."""

    stable_rank: float
    """Of the features."""
    nuclear_rank: list[float]
    """Of the gradient after each of the asked numbers of steps."""


def features(activation: str, width: int, seed: int) -> Tensor:
    """A, (K, N): D = K / 2 inputs and N = 2 K samples."""
    draw = torch.Generator().manual_seed(seed)
    inputs = width // 2
    x_DN, first_KD, gate_KD = (_normal(*shape, draw) for shape in ((inputs, 2 * width), *[(width, inputs)] * 2))
    return ACTIVATIONS[activation](first_KD @ x_DN / inputs**0.5, gate_KD @ x_DN / inputs**0.5)


SPIKES = (1.0, 0.75, 0.5)
"""Exponents of the spikes' eigenvalues in the dimension: the largest is u, the smallest l."""


def spiked_features(width: int, seed: int) -> Tensor:
    """A, (K, N) with N = 4 K."""
    draw, samples = torch.Generator().manual_seed(seed), 4 * width
    left_KR, right_NR = (torch.linalg.qr(_normal(size, len(SPIKES), draw)).Q for size in (width, samples))
    sizes_R = (samples * width ** torch.tensor(SPIKES, dtype=torch.float64)).sqrt()
    return left_KR * sizes_R @ right_NR.T + _normal(width, samples, draw)


def bulk_features(width: int, seed: int) -> Tensor:
    """Their control: the bulk alone, of the same size."""
    return _normal(width, 4 * width, torch.Generator().manual_seed(seed))


def window(width: int) -> tuple[int, int]:
    """From where the smallest spike is learnt to where the bulk begins to be, in steps; both constants 1."""
    largest, smallest = max(SPIKES), min(SPIKES)
    return math.ceil(width ** (largest - smallest) * math.log(width)), math.floor(width**largest)


def descend(activation: str, width: int, seed: int, steps: Sequence[int]) -> Path:
    """The nuclear rank of the gradient along gradient descent, K outputs."""
    return descend_on(features(activation, width, seed), seed, steps)


def descend_on(a_KN: Tensor, seed: int, steps: Sequence[int]) -> Path:
    """The same of given features; ``seed`` draws the teacher."""
    width = len(a_KN)
    energies_K, basis_KK = torch.linalg.eigh(a_KN @ a_KN.T / a_KN.shape[1])
    teacher_OK = _normal(width, width, torch.Generator().manual_seed(seed + 1000)) @ basis_KK
    shrink_K = 1 - energies_K / energies_K[-1]
    spectra = [torch.linalg.svdvals(teacher_OK * (shrink_K**step * energies_K)) for step in steps]
    ranks = [nuclear_rank(values_K).item() for values_K in spectra]
    return Path(float(energies_K.sum() / energies_K[-1]), ranks)


def _normal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64)
