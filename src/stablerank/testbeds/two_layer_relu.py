"""Gradient descent on the first layer of a (leaky) ReLU network, on nearly orthogonal data.

Legend: M neurons, N points, D features, S recorded steps.

Contract: ``f(x) = sum_j a_j phi(<w_j, x>)``, ``phi(z) = max(slope z, z)``, ``a_j = +-1 / sqrt(M)`` fixed, half of each
sign; logistic loss, full batches, a constant step or one divided by the loss (``normalised``). Recorded are the stable
ranks of W and of its halves W+ and W- (the neurons of each sign of a: the matrices of the theorem), the margin ratio
``min_i y_i f(x_i) / max_i y_i f(x_i)``, and the share of activation signs that changed since the last record.

The whole W of leaky ReLU does not tend to rank one: its halves tend to rank one each, along directions whose cosine has
magnitude ``2 slope / (1 + slope^2)``, so that ``st(W)`` tends to `whole_limit`.

Numerics: fp64. Every gradient lies in the span of the points, so that ``W_t = W_0 + C_t X`` holds exactly, and a step
works on ``C (M, N)`` and Gram matrices alone: O(M N^2) whatever D is. Stable ranks come from ``W W^T (M, M)``; only its
trace and its top eigenvalue are read. The loss-normalised step is computed from logarithms, for the loss underflows.

Source: Kou, Chen, Gu (2310.18935); METHODS.md 6. Points have about unit norm here; the paper's have norm sqrt(D).

Left out on purpose: training the second layer, biases, and test error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


@dataclass(frozen=True)
class World:
    """One setting."""

    slope: float = 0.1
    """Of the activation for negative inputs: 0 is ReLU."""
    neurons: int = 100
    points: int = 10
    features: int = 3136
    init: float = 1e-4
    """Standard deviation of the entries of W_0, and so of a first pre-activation."""
    common: float = 0.0
    """Share of every point's energy in one common direction: 0 is nearly orthogonal data."""
    step: float = 1.0
    normalised: bool = False
    """Whether steps are divided by the loss."""
    steps: int = 100_000
    records: int = 61


@dataclass(frozen=True)
class History:
    """What was recorded, each list as long as ``step``."""

    step: list[int]
    loss: list[float]
    st_whole: list[float]
    st_plus: list[float]
    st_minus: list[float]
    margin_ratio: list[float]
    """NaN while a point is on the wrong side."""
    changed_signs: list[float]


@dataclass
class _Net:
    """``W = start + coefficients @ points``, by its Gram matrices."""

    slope: float
    a_M: Tensor
    y_N: Tensor
    gram_NN: Tensor
    cross_MN: Tensor
    """``W_0 X^T``."""
    start_MM: Tensor
    """``W_0 W_0^T``."""
    coefficients_MN: Tensor

    def inputs(self) -> Tensor:
        """Pre-activations ``(M, N)``."""
        return self.cross_MN + self.coefficients_MN @ self.gram_NN

    def margins(self, z_MN: Tensor) -> Tensor:
        """``y f(x)``, (N,)."""
        return self.y_N * (self.a_M @ torch.maximum(self.slope * z_MN, z_MN))

    def weight_gram(self) -> Tensor:
        """``W W^T``, (M, M)."""
        mixed_MM = self.coefficients_MN @ self.cross_MN.T
        return self.start_MM + mixed_MM + mixed_MM.T + self.coefficients_MN @ self.gram_NN @ self.coefficients_MN.T


def last_decade(history: History, values: Sequence[float]) -> float:
    """The change of a value over the last factor of ten in steps, relative to where it began: by least squares."""
    log_S = np.log10(np.maximum(history.step, 1))
    late_S = log_S >= log_S[-1] - 1
    slope, start = np.polyfit(log_S[late_S] - log_S[-1] + 1, np.asarray(values)[late_S], 1)
    return float(slope / start)


def whole_limit(slope: float) -> float:
    """The stable rank that the whole first layer of a leaky network tends to."""
    return 2 * (1 + slope**2) / (1 + slope) ** 2


def orthogonality(points_ND: Tensor) -> float:
    """``min_i |x_i|^2 / (n max_{k != i} |<x_i, x_k>|)``: the constant of nearly orthogonal data, 1 and more."""
    gram_NN = points_ND @ points_ND.T
    off_NN = gram_NN.abs() - torch.diag(gram_NN.diagonal())
    return float((gram_NN.diagonal() / (len(gram_NN) * off_NN.amax(1))).min())


def data(world: World, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``(N, D)``, labels ``(N,)`` of +-1 with both present, and first weights ``(M, D)``."""
    draw = torch.Generator().manual_seed(seed)
    own_ND = _normal(world.points, world.features, draw) / math.sqrt(world.features)
    common_1D = _normal(1, world.features, draw) / math.sqrt(world.features)
    points_ND = math.sqrt(1 - world.common) * own_ND + math.sqrt(world.common) * common_1D
    half_N = torch.arange(world.points) % 2 * 2.0 - 1
    labels_N = half_N[torch.randperm(world.points, generator=draw)].double()
    return points_ND, labels_N, world.init * _normal(world.neurons, world.features, draw)


def train(world: World, seed: int) -> History:
    """Run gradient descent and record at steps that are even on a logarithmic axis."""
    net = _network(world, seed)
    due = {0, *torch.logspace(0, math.log10(world.steps), world.records).round().int().tolist()}
    history = History([], [], [], [], [], [], [])
    signs_MN = net.inputs() > 0
    for step in range(world.steps + 1):
        z_MN = net.inputs()
        margins_N = net.margins(z_MN)
        if step in due:
            _record(history, step, net, margins_N, (signs_MN != (z_MN > 0)).double().mean().item())
            signs_MN = z_MN > 0
        _descend(net, z_MN, margins_N, world)
    return history


def with_normalised_steps(world: World) -> World:
    """The same world with the loss-normalised step, which reaches the limit of the margins sooner."""
    return replace(world, normalised=True, steps=min(world.steps, 20_000))


def _network(world: World, seed: int) -> _Net:
    points_ND, labels_N, start_MD = data(world, seed)
    signs_M = torch.ones(world.neurons, dtype=torch.float64)
    signs_M[world.neurons // 2 :] = -1
    return _Net(
        world.slope,
        signs_M / math.sqrt(world.neurons),
        labels_N,
        points_ND @ points_ND.T,
        start_MD @ points_ND.T,
        start_MD @ start_MD.T,
        torch.zeros(world.neurons, world.points, dtype=torch.float64),
    )


def _descend(net: _Net, z_MN: Tensor, margins_N: Tensor, world: World) -> None:
    """``C -= step dL/dC``; the weight of a point is sigmoid(-margin), divided by the summed loss where normalised."""
    log_weight_N = logsigmoid(-margins_N)
    scale = -math.log(len(margins_N))
    if world.normalised:
        scale = -float(torch.logsumexp(_log_loss(margins_N), 0))
    weight_N = torch.exp(log_weight_N + scale) * net.y_N
    slopes_MN = torch.full_like(z_MN, world.slope).masked_fill_(z_MN > 0, 1.0)  # not where(): its scalars are fp32
    net.coefficients_MN += world.step * net.a_M[:, None] * slopes_MN * weight_N


def _log_loss(margins_N: Tensor) -> Tensor:
    """``log log(1 + exp(-margin))``, which is ``-margin`` to fp64 beyond 40."""
    return torch.where(margins_N > 40, -margins_N, softplus(-margins_N.clamp(max=40)).log())


def _record(history: History, step: int, net: _Net, margins_N: Tensor, changed: float) -> None:
    gram_MM = net.weight_gram()
    plus_M = net.a_M > 0
    low, high = margins_N.min().item(), margins_N.max().item()
    history.step.append(step)
    history.loss.append(softplus(-margins_N).mean().item())
    history.st_whole.append(_stable_rank(gram_MM))
    history.st_plus.append(_stable_rank(gram_MM[plus_M][:, plus_M]))
    history.st_minus.append(_stable_rank(gram_MM[~plus_M][:, ~plus_M]))
    history.margin_ratio.append(low / high if low > 0 else math.nan)
    history.changed_signs.append(changed)


def _stable_rank(gram_MM: Tensor) -> float:
    return float(gram_MM.trace() / torch.linalg.eigvalsh(gram_MM)[-1])


def _normal(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64)
