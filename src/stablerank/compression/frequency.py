"""A sine put on a LoRA after its training: which frequency and gain give the update back best.

Legend: O output features, I input features, F frequencies.

Definition: W = B A is the update before compression and P the product of the compressed factors. For each frequency the
gain is the one that least squares finds over all modules together, and the error is what is left::

    S = sin(omega P)        1 / gain = <S, W> / <S, S>        error = ||S / gain - W||_F / ||W||_F

As omega goes to 0, S / omega goes to P: with gain 1 / omega that is the LoRA itself, scaled as least squares likes
best. A frequency is told as a phase, omega times the root mean square of P's entries, so that one grid serves adapters
of every size. A sine that helps has an error below ``linear``, the same fit without a sine.

Numerics: fp32 entries, sums in fp64. Cost: a dense update a module and a sine of it a frequency.

Source: METHODS.md 4.1 and 4.4. SineLoRA itself trains under its sine; this asks what the sine alone does.

Left out on purpose: a frequency a module, which one configuration cannot hold; a search on a task's score.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stablerank.adapters.config import NEEDS_US
from stablerank.compression.factors import SINE, modules
from stablerank.errors import ModelError

PHASES = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class FrequencyFit:
    """One frequency, its best gain, and what is left."""

    phase: float
    omega: float
    gain: float
    error: float


@dataclass(frozen=True)
class FrequencySearch:
    """Every frequency tried, and the fit without a sine."""

    fits_F: tuple[FrequencyFit, ...]
    linear: float

    @property
    def best(self) -> FrequencyFit:
        """The fit with the least error."""
        return min(self.fits_F, key=lambda fit: fit.error)


@torch.no_grad()
def search_frequency(
    config: Mapping[str, Any],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    phases: Sequence[float] = PHASES,
) -> FrequencySearch:
    """Fit a sine of ``after`` to the product of ``before``.

    Raises:
        ModelError: no plain LoRA of linear layers, or an update that is zero.
    """
    names = _linear_modules(config, before)
    size, count, energy = 0.0, 0, 0.0
    linear = _Fit()
    for pair in names:
        w_OI, p_OI = _product(before, *pair), _product(after, *pair)
        size, count = size + _dot(p_OI, p_OI), count + p_OI.numel()
        energy += _dot(w_OI, w_OI)
        linear.add(p_OI, w_OI)
    if not size > 0 or not energy > 0:
        raise ModelError("Every update of the adapter is zero, so there is nothing to fit a sine to; train it first.")
    omegas = [phase / math.sqrt(size / count) for phase in phases]
    fits = [_Fit() for _ in omegas]
    for pair in names:
        w_OI, p_OI = _product(before, *pair), _product(after, *pair)
        for fit, omega in zip(fits, omegas, strict=True):
            fit.add((p_OI * omega).sin_(), w_OI)
    found = zip(phases, omegas, fits, strict=True)
    return FrequencySearch(
        tuple(FrequencyFit(phase, omega, fit.gain, fit.error(energy)) for phase, omega, fit in found),
        linear.error(energy),
    )


def with_sine(config: Mapping[str, Any], fit: FrequencyFit) -> dict[str, Any]:
    """The configuration of the same factors under that sine, a SineLoRA."""
    wave = {"method": SINE, "omega": fit.omega, "gain": fit.gain}
    return {**config, "spectral": wave, "init_lora_weights": NEEDS_US}


class _Fit:
    """The sums of a least-squares fit of one factor."""

    def __init__(self) -> None:
        self.cross = self.square = 0.0

    def add(self, shape_OI: Tensor, target_OI: Tensor) -> None:
        self.cross += _dot(shape_OI, target_OI)
        self.square += _dot(shape_OI, shape_OI)

    @property
    def gain(self) -> float:
        return self.square / self.cross if self.cross > 0 else math.inf

    def error(self, energy: float) -> float:
        explained = self.cross**2 / self.square if self.square > 0 and self.cross > 0 else 0.0
        return math.sqrt(max(1 - explained / energy, 0.0))


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.double().flatten(), other.double().flatten()))


def _product(tensors: Mapping[str, Tensor], b_name: str, a_name: str) -> Tensor:
    return tensors[b_name].float() @ tensors[a_name].float()


def _linear_modules(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    names = list(modules(tensors).values())
    is_plain = not (config.get("spectral") or config.get("use_dora") or config.get("target_parameters"))
    if not is_plain or any(tensors[name].dim() != 2 or "embedding" in name for pair in names for name in pair):
        raise ModelError("A sine can be put on a plain LoRA of linear layers only; leave `--sine` out.")
    return names
