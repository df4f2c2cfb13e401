"""The gradient of every example of a fixed panel: how large, how alike, and of what rank.

Legend: E examples, W weights (one matrix each), K values of a spectrum.

Contract: gradients of whole weights, ``dL/dW`` at the weight that the model answers with, whether it trains, is frozen
or lies under an adapter, so that checkpoints of every way of training compare. A weight is the matrix of a linear layer
inside the blocks. The losses are called in order, twice each, with the model in evaluation mode; mode, ``.grad``,
``requires_grad`` and random states are as before afterwards.

- ``norm_E`` and ``cosine_E``: of all weights together, the cosine with the mean over the panel.
- ``noise_scale``: ``tr(Sigma) / |G|^2``, in examples (McCandlish et al. 2018, 1812.06162, equation 2.9), from unbiased
  estimates of both: Sigma by E - 1, and ``|G|^2 = |mean|^2 - tr(Sigma) / E``. NaN where the latter is not positive: the
  panel is too small to tell the gradient from its noise.
- stable and nuclear rank of every example's gradient, and of the panel's mean; NaN for a gradient of zero.

An example of N tokens has a gradient of rank N at most, and the mean of E examples of E N: compare ranks of one kind
across checkpoints and objectives of like length, never an example's with the mean's.

Numerics: gradients in the model's dtype; norms, products and spectra in fp64.

Cost: two backward passes an example, ``E + 1`` decompositions a weight; kept: two copies of the weights' size.

Left out on purpose: embeddings and heads, whose rows are tokens; quantised weights, which have no gradient.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stablerank.errors import DataError, ModelError
from stablerank.probes.gradients import IN_BLOCKS
from stablerank.probes.hooks import LINEAR, choose, row_name
from stablerank.spectral.functionals import nuclear_rank, stable_rank

Floats = NDArray[np.float64]
_RANKS = {"stable_rank": stable_rank, "nuclear_rank": nuclear_rank}


@dataclass(frozen=True)
class PanelGradients:
    """What the gradients of a panel are like at one checkpoint."""

    names: tuple[str, ...]
    """Of the weights."""
    norm_E: Floats
    cosine_E: Floats
    noise_scale: float
    example_ranks_WE: Mapping[str, Floats]
    """``stable_rank`` and ``nuclear_rank`` of each example's gradient."""
    mean_ranks_W: Mapping[str, Floats]
    """The same of the mean gradient."""


def panel_gradients(
    model: nn.Module, losses: Sequence[Callable[[], Tensor]], modules: str = IN_BLOCKS
) -> PanelGradients:
    """Read the panel whose i-th loss is ``losses[i]()``, a scalar of ``model``.

    ``modules`` is a regular expression over names of linear layers.

    Raises:
        DataError: fewer than two examples.
        ModelError: no linear layer matches, or one of them has no weight to differentiate.
    """
    if len(losses) < 2:
        raise DataError(f"a panel of {len(losses)} example has no spread of gradients; give two or more.")
    weights = _weights(model, modules)
    with _differentiable(model, weights.values()):
        sums_W, square_E, ranks_EW = _first_pass(weights, losses)
        mean_W = [total / len(losses) for total in sums_W]
        inner_E = np.array([_inner(_gradient(weights, loss), mean_W) for loss in losses])
    mean_square = _inner(mean_W, mean_W)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine_E = inner_E / np.sqrt(square_E * mean_square)
    return PanelGradients(
        names=tuple(row_name(name) for name in weights),
        norm_E=np.sqrt(square_E),
        cosine_E=cosine_E,
        noise_scale=noise_scale(square_E, mean_square),
        example_ranks_WE={name: np.array([row[name] for row in ranks_EW]).T for name in _RANKS},
        mean_ranks_W=_ranks(mean_W),
    )


def noise_scale(square_E: Floats, mean_square: float) -> float:
    """From the squared norms of single gradients and that of their mean; see the module header."""
    count = len(square_E)
    spread = max(0.0, float(square_E.sum()) - count * mean_square) / (count - 1)
    signal = mean_square - spread / count
    return spread / signal if signal > 0 else math.nan


def _first_pass(
    weights: Mapping[str, Tensor], losses: Sequence[Callable[[], Tensor]]
) -> tuple[list[Tensor], Floats, list[dict[str, Floats]]]:
    """Sums of the gradients, their squared norms, and the ranks of each."""
    sums_W = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights.values()]
    squares, ranks = list[float](), list[dict[str, Floats]]()
    for loss in losses:
        gradient_W = _gradient(weights, loss)
        for total, gradient in zip(sums_W, gradient_W, strict=True):
            total += gradient
        squares.append(_inner(gradient_W, gradient_W))
        ranks.append(_ranks(gradient_W))
    return sums_W, np.array(squares), ranks


def _gradient(weights: Mapping[str, Tensor], loss: Callable[[], Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss(), list(weights.values()), materialize_grads=True)
    return [gradient.double() for gradient in found]


def _inner(one_W: Sequence[Tensor], other_W: Sequence[Tensor]) -> float:
    return math.fsum((one * other).sum().item() for one, other in zip(one_W, other_W, strict=True))


def _ranks(gradient_W: Sequence[Tensor]) -> dict[str, Floats]:
    spectra = [torch.linalg.svdvals(gradient) for gradient in gradient_W]
    return {name: np.array([_rank(rank, values_K) for values_K in spectra]) for name, rank in _RANKS.items()}


def _rank(rank: Callable[[Tensor], Tensor], values_K: Tensor) -> float:
    return rank(values_K).item() if values_K[0] > 0 else math.nan


def _weights(model: nn.Module, modules: str) -> Mapping[str, Tensor]:
    found = {name: module.get_parameter("weight") for name, module in choose(model, LINEAR, modules).items()}
    for name, weight in found.items():
        if not weight.is_floating_point():
            raise ModelError(
                f"{name} holds {weight.dtype} numbers, which have no gradient; load the model without quantisation."
            )
    return found


@contextmanager
def _differentiable(model: nn.Module, weights: Iterable[Tensor]) -> Iterator[None]:
    """Evaluation mode, with gradients to these weights."""
    was_training, before = model.training, [(weight, weight.requires_grad) for weight in weights]
    model.eval()
    try:
        for weight, _ in before:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, was in before:
            weight.requires_grad_(was)
        model.train(was_training)
