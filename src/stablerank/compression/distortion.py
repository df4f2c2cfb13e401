"""What compression did to each update: its error, its stable rank before and after, and the bounds that tie them.

Legend: O output features, I input features, R rank.

Definitions, W the update before and Q after, E = Q - W::

    error = ||E||_F / ||W||_F
    (||W||_F - ||E||_F)^2 / (||W||_2 + ||E||_2)^2 <= st(Q) <= (||W||_F + ||E||_F)^2 / (||W||_2 - ||E||_2)^2

The bounds are the triangle inequality in both norms; the upper one needs ||E||_2 < ||W||_2 and is infinite otherwise,
the lower one is at least 1. The scale of the module cancels and is left out. A DoRA is measured by its direction
``B A``, because the rest needs the base.

Numerics: a LoRA exactly, in fp64, from the core of its factors (E is a product of rank 2 R); a SineLoRA from its dense
update, certified to 1e-3. In the bounds each norm stands at the end of its interval that widens them.

Source: METHODS.md 4.2.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stablerank.compression.factors import matrices, modules, sine_wave
from stablerank.spectral.certified import Top, top_of_spectrum
from stablerank.spectral.operators import Dense, Difference, Factored


@dataclass(frozen=True)
class UpdateLoss:
    """One module's loss; a zero update has NaN everywhere."""

    module: str
    error: float
    """``||E||_F / ||W||_F``."""
    norm_ratio: float
    """``||Q||_F / ||W||_F``: below 1 where compression shrinks the update, as means of values do."""
    stable_rank_before: float
    stable_rank_after: float
    lower: float
    upper: float


@torch.no_grad()
def update_losses(
    config: Mapping[str, Any],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    config_after: Mapping[str, Any] | None = None,
) -> Iterator[UpdateLoss]:
    """The loss of each module of an adapter, of which ranks may differ before and after."""
    for module, (b_name, a_name) in modules(before).items():
        pairs = [matrices(tensors[b_name], tensors[a_name]) for tensors in (before, after)]
        yield _loss(module, *(_tops(config, config_after or config, *pairs)))


def stable_rank_bounds(fro: float, spectral: float, error_fro: float, error_spectral: float) -> tuple[float, float]:
    """The interval for ``st(Q)`` from the norms of W and of E."""
    lower = max(1.0, (max(fro - error_fro, 0.0) / (spectral + error_spectral)) ** 2) if fro > 0 else 1.0
    gap = spectral - error_spectral
    return lower, ((fro + error_fro) / gap) ** 2 if gap > 0 else math.inf


def dense_update(config: Mapping[str, Any], b_OR: Tensor, a_RI: Tensor) -> Tensor:
    """``B A``, or ``sin(omega B A) / gain``, in fp32 and without the module's scale."""
    wave = sine_wave(config, a_RI)
    if wave is None:
        return b_OR.float() @ a_RI.float()
    omega, gain = wave
    return ((b_OR.float() * omega) @ a_RI.float()).sin_().div_(gain)


def _tops(
    config: Mapping[str, Any],
    config_after: Mapping[str, Any],
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
) -> tuple[Top, Top, Top]:
    """Norms of W, Q and E."""
    if not config.get("spectral") and not config_after.get("spectral"):
        (b, a), (b_after, a_after) = before, after
        both = Factored(torch.cat([b_after.double(), -b.double()], 1), torch.cat([a_after.double(), a.double()]))
        return tuple(map(top_of_spectrum, (Factored(b, a), Factored(b_after, a_after), both)))  # type: ignore[return-value]
    w_OI, q_OI = dense_update(config, *before), dense_update(config_after, *after)
    return top_of_spectrum(Dense(w_OI)), top_of_spectrum(Dense(q_OI)), top_of_spectrum(Difference(q_OI, w_OI))


def _loss(module: str, before: Top, after: Top, error: Top) -> UpdateLoss:
    fro, spectral = before.frobenius_norm(), before.spectral_norm()
    error_fro, error_spectral = error.frobenius_norm(), error.spectral_norm()
    if not fro.value > 0:
        return UpdateLoss(module, *[math.nan] * 6)
    lower, _ = stable_rank_bounds(fro.lower, spectral.upper, error_fro.upper, error_spectral.upper)
    _, upper = stable_rank_bounds(fro.upper, spectral.lower, error_fro.upper, error_spectral.upper)
    ranks = before.stable_rank().value, after.stable_rank().value
    ratios = error_fro.value / fro.value, after.frobenius_norm().value / fro.value
    return UpdateLoss(module, *ratios, *ranks, lower, upper)
