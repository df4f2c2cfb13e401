"""Sparse regression by a deep network, each block taking a Euclidean or an exact spectral step by a rule.

Legend: D inputs, H hidden units, N samples.

Contract: the target is ``x_1 x_2 x_3`` of D Gaussian inputs, the network has three hidden layers of 4 D units without
biases (squared ReLU, or SwiGLU with a gate matrix a layer), the loss is ``|f - y|^2 / (2 N)`` over the whole batch. A
block with gradient G and input A moves by ``m_e G N / |A|_2^2`` or by ``m_s |G|_* polar(G) N / |A|_F^2``. Both steps
are stateless, so that a rule may choose anew at every step: ``condition`` takes the spectral one where
``nr(G) >= st(A)``, ``against`` where not, ``middle`` at the matrices between hidden layers, ``ends`` at the first and
the last. A course that leaves the finite numbers ends there, with infinite losses.

Numerics: fp64, one SVD a block and step. Source: Davis, Drusvyatskiy (2512.04299), section 5 and its code
(METHODS.md 5.4), which has ``middle`` alone, at D = 128 and N = 512.

Left out on purpose: minibatches, momentum.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from stablerank.optimisers.spectral_descent import polar_factor

HIDDEN_LAYERS, TEST_SAMPLES = 3, 4096
Rule = Callable[[str, float, float], bool]
RULES: dict[str, Rule] = {
    "euclidean": lambda block, nr, st: False,
    "spectral": lambda block, nr, st: True,
    "middle": lambda block, nr, st: block[1:] in ("2", "3"),
    "ends": lambda block, nr, st: block[1:] in ("1", "4"),
    "condition": lambda block, nr, st: nr >= st,
    "against": lambda block, nr, st: nr < st,
}
"""Whether a block takes the spectral step; a block is W or, of a gate, V with the number of its layer."""


@dataclass
class Course:
    """One training."""

    train: list[float] = field(default_factory=list)
    """Loss before each step, and after the last."""
    test: float = math.inf
    table: list[tuple[int, str, float, float]] = field(default_factory=list)
    """Step, block, nr(G), st(A), at the steps that were asked for."""
    spectral_share: float = 0.0
    """Of all block steps."""


def sample(inputs: int, samples: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian inputs ``(D, N)`` and targets ``(1, N)``."""
    x_DN = torch.randn(inputs, samples, generator=draw, dtype=torch.float64)
    return x_DN, x_DN[:3].prod(0, keepdim=True)


def network(inputs: int, gated: bool, seed: int) -> dict[str, Tensor]:
    """Weights as ``nn.Linear`` draws them, by block."""
    torch.manual_seed(seed)
    sizes = [inputs, *[4 * inputs] * HIDDEN_LAYERS, 1]
    weights = {}
    for layer, (before, after) in enumerate(pairwise(sizes), 1):
        for kind in "WV" if gated and after > 1 else "W":
            weights[f"{kind}{layer}"] = nn.Linear(before, after, bias=False, dtype=torch.float64).weight
    return weights


def forward(weights: dict[str, Tensor], x_DN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs ``(1, N)``, and the input of each block."""
    inputs: dict[str, Tensor] = {}
    for layer in range(1, HIDDEN_LAYERS + 1):
        inputs |= {block: x_DN for block in (f"W{layer}", f"V{layer}") if block in weights}
        up_HN = weights[f"W{layer}"] @ x_DN
        gate = weights.get(f"V{layer}")
        x_DN = relu(up_HN).square() if gate is None else silu(gate @ x_DN) * up_HN
    last = f"W{HIDDEN_LAYERS + 1}"
    return weights[last] @ x_DN, {**inputs, last: x_DN}


def train(
    rule: str,
    *,
    gated: bool,
    multipliers: tuple[float, float],
    seed: int,
    inputs: int,
    samples: int,
    steps: int,
    record: set[int],
) -> Course:
    """One course.

    Args:
        rule: of `RULES`.
        gated: SwiGLU instead of squared ReLU.
        multipliers: m of Euclidean and of spectral steps.
        seed: of samples and weights.
        inputs: D.
        samples: N.
        steps: how many.
        record: those whose table is kept.
    """
    draw = torch.Generator().manual_seed(seed)
    x_DN, y_1N = sample(inputs, samples, draw)
    weights, course, taken = network(inputs, gated, seed), Course(), 0
    for step in range(steps):
        outputs_1N, read = forward(weights, x_DN)
        loss = (outputs_1N - y_1N).square().sum() / (2 * samples)
        course.train.append(loss.item())
        if not math.isfinite(course.train[-1]):
            return course
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for block, gradient in zip(list(weights), gradients, strict=True):
            with torch.no_grad():
                moved, ranks, is_spectral = _step(RULES[rule], block, gradient, read[block].detach())
                weights[block].sub_(multipliers[is_spectral] * samples * moved)
            taken += is_spectral
            if step in record:
                course.table.append((step, block, *ranks))
    with torch.no_grad():
        course.train.append(float((forward(weights, x_DN)[0] - y_1N).square().mean() / 2))
        test_DN, target_1N = sample(inputs, TEST_SAMPLES, draw)
        course.test = float((forward(weights, test_DN)[0] - target_1N).square().mean() / 2)
    course.test = course.test if math.isfinite(course.test) else math.inf
    course.spectral_share = taken / (steps * len(weights))
    return course


def _step(rule: Rule, block: str, gradient: Tensor, a_KN: Tensor) -> tuple[Tensor, tuple[float, float], bool]:
    """The step without multiplier and N; both sides of the condition; which step it is."""
    direction, nuclear = polar_factor(gradient)
    energy = a_KN.square().sum()
    top = torch.linalg.eigvalsh(a_KN @ a_KN.T)[-1]
    ranks = float(nuclear.square() / gradient.square().sum()), float(energy / top)
    if rule(block, *ranks):
        return direction * (nuclear / energy), ranks, True
    return gradient / top, ranks, False
