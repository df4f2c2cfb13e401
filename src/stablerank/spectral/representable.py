"""How much of an update survived storage: the cosine between the update intended and the one read back, squared.

Legend: N entries of a block, C classes of entries whose base weights share a binade, P samples.

Setting. ``W+ = round(W0 + d)`` in bf16 or fp16; what can be read back is ``D = W+ - W0``. With steps (ulp) of 2^-8 to
2^-7 relative, an update of 1e-3 of the weight's norm is mostly rounding: a rank-1 update keeps cosine 0.73 at 1e-3 and
0.27 at 1e-4, and its stable rank reads 1.6 and 8.8 (ECOSYSTEM.md 0.4). Every other number measured on D describes d
only as far as ``representable_fraction``, the estimate of ``cos^2(d, D)``, is near 1; below 0.5 rounding dominates.

Why not ``1 - sum ulp^2 / 12 / ||D||^2``. Uniform rounding noise is right only where entries are not on the grid before
the update, as for an fp32 base stored in bf16 afterwards, or where d is well above the step. Where W0 is itself a
stored tensor, it sits on the grid, and an entry with ``|d| < ulp / 2`` does not move at all: its noise is -d, not
uniform and not independent of d. On a rank-1 update of 1e-3 in bf16 the formula says 0.00, its restriction to moved
entries 0.94, the truth is 0.53. Both are wrong below 1e-2, so the base decides between two estimators:

- base off the grid of ``after``: the uniform formula, with ulp(w+).
- base on the grid: small weights are the ruler. The step is proportional to |w|, so the entries with the smallest
  weights take their d almost exactly. Entries are sorted into classes by the binade of w0; the ruler is the largest set
  of finest classes whose step does not exceed the rms of D within it. Its values, spread evenly over their own step and
  shrunk by Sheppard's correction, sample the law of d; rounding that sample to the step of each class gives the sums
  ``<d, D>``, ``||d||^2`` and ``||D||^2``, hence the cosine.

Domain. d must not depend on |w0|: true of low-rank and of Adam-like updates, false of weight decay alone. Within 10 %
relative of the truth on Gaussian, rank-1 and rank-8 updates of 1e-1 to 1e-4 on half a million entries, 15 % where only
a tenth of the entries was trained. Fewer than 100 ruler entries, as for norm weights near 1, give NaN: the update lies
below what this base can show. The container has to be the storage type: bf16 values cast to fp32 read as 1.

Numerics: fp64, in blocks, three passes, no whole copy; at most 2^16 ruler entries, drawn with a fixed seed. fp32 gives
1 to 1e-6 for all but the smallest updates. Zero updates and non-finite entries give NaN.

Left out on purpose: stochastic rounding (unbiased: the uniform formula's regime), denoising of the update.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stablerank.spectral.blocks import paired_blocks

FEWEST_SAMPLES = 100
MOST_SAMPLES = 2**16
_SPREAD = 8


@dataclass(frozen=True)
class Representable:
    """What storage left of an update."""

    fraction: float
    """Estimated ``cos^2`` between the intended update and the one read back, in [0, 1]; NaN if it cannot be told."""
    moved: float
    """Share of entries that differ at all; NaN for a zero update or a non-finite entry."""
    noise_energy: float
    """``sum ulp(w+)^2 / 12 / ||D||_F^2``, at most 1: the share that uniform rounding of every entry would explain."""


@dataclass(frozen=True, eq=False)
class _Classes:
    """Sums over the entries of each binade of the base, from the finest step to the coarsest; empty ones left out."""

    exponents_C: Tensor
    steps_C: Tensor
    entries_C: Tensor
    energies_C: Tensor


@torch.no_grad()
def representable_fraction(after: Tensor, before: Tensor) -> Representable:
    """Estimate, from two stored tensors of one shape, how much of the update between them rounding left intact.

    Raises:
        ValueError: the shapes differ, or ``after`` is not floating point.
    """
    _require_floating(after)
    dtype, moved, uniform, on_grid = after.dtype, 0, 0.0, True
    for after_N, before_N in paired_blocks(after, before):
        moved += int(torch.count_nonzero(after_N - before_N))
        uniform += _step(_exponent(after_N, dtype), dtype).square().sum().item() / 12
        on_grid = on_grid and bool((before_N.to(dtype).double() == before_N).all())
    classes = _classes(after, before)
    energy = classes.energies_C.sum().item()
    if moved == 0 or not math.isfinite(energy):
        return Representable(math.nan, math.nan, math.nan)
    noise = min(uniform / energy, 1.0)
    fraction = _cosine_sq(classes, after, before) if on_grid else 1 - noise
    return Representable(fraction, moved / after.numel(), noise)


def _classes(after: Tensor, before: Tensor) -> _Classes:
    dtype = after.dtype
    lowest = math.frexp(torch.finfo(dtype).smallest_normal)[1]
    bins = math.frexp(torch.finfo(dtype).max)[1] - lowest + 2
    totals_2C = torch.zeros(2, bins, dtype=torch.float64, device=after.device)
    for after_N, before_N in paired_blocks(after, before):
        bin_N = (_exponent(before_N, dtype) - lowest).clamp(max=bins - 1).long()
        totals_2C[0] += torch.bincount(bin_N, minlength=bins)
        totals_2C[1] += torch.bincount(bin_N, (after_N - before_N).square(), minlength=bins)
    exponents_C = totals_2C[0].nonzero()[:, 0]
    entries_C, energies_C = totals_2C[:, exponents_C]
    exponents_C = exponents_C + lowest
    return _Classes(exponents_C, _step(exponents_C, dtype), entries_C, energies_C)


def _cosine_sq(classes: _Classes, after: Tensor, before: Tensor) -> float:
    """``<d, D>^2 / (||d||^2 ||D||^2)`` with d sampled from the ruler and D its rounding to the step of each class."""
    mean_energies_C = classes.energies_C.cumsum(0) / classes.entries_C.cumsum(0)
    resolved = (classes.steps_C.square() <= mean_energies_C).nonzero()
    if not len(resolved) or classes.entries_C[: int(resolved[-1]) + 1].sum() < FEWEST_SAMPLES:
        return math.nan
    d_P = _ruler(after, before, int(classes.exponents_C[resolved[-1]]))
    inner, read_back = 0.0, 0.0
    for step, entries in zip(classes.steps_C, classes.entries_C.tolist(), strict=True):
        rounded_P = step * torch.round(d_P / step)
        inner += entries * torch.dot(d_P, rounded_P).item()
        read_back += entries * torch.dot(rounded_P, rounded_P).item()
    intended = classes.entries_C.sum().item() * torch.dot(d_P, d_P).item()
    return min(inner**2 / (intended * read_back), 1.0) if read_back > 0 else 0.0


def _ruler(after: Tensor, before: Tensor, coarsest: int) -> Tensor:
    """Samples of d from the entries whose base has an exponent of at most ``coarsest``."""
    pairs = list(_ruler_blocks(after, before, coarsest))
    d_N, step_N = torch.cat([d for d, _ in pairs]), torch.cat([step for _, step in pairs])
    offsets = (torch.arange(_SPREAD, device=d_N.device) + 0.5) / _SPREAD - 0.5
    d_P = (d_N[:, None] + step_N[:, None] * offsets).flatten()
    sheppard = d_N.square().mean() - step_N.square().mean() / 12
    return d_P * (sheppard / d_P.square().mean()).sqrt()


def _ruler_blocks(after: Tensor, before: Tensor, coarsest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Differences and steps of the ruler's entries, each block thinned at random to its share of ``MOST_SAMPLES``."""
    generator = torch.Generator(after.device).manual_seed(0)
    for after_N, before_N in paired_blocks(after, before):
        exponent_N = _exponent(before_N, after.dtype)
        chosen = (exponent_N <= coarsest).nonzero()[:, 0]
        most = math.ceil(MOST_SAMPLES * len(after_N) / after.numel())
        if len(chosen) > most:
            picks = torch.randint(len(chosen), (most,), generator=generator, device=after.device)
            chosen = chosen[picks]
        yield after_N[chosen] - before_N[chosen], _step(exponent_N[chosen], after.dtype)


def _exponent(values_N: Tensor, dtype: torch.dtype) -> Tensor:
    """The binade ``e`` of ``2^(e-1) <= |w| < 2^e``, no lower than that of the type's smallest normal number."""
    lowest = math.frexp(torch.finfo(dtype).smallest_normal)[1]
    return torch.frexp(values_N).exponent.masked_fill(values_N == 0, lowest).clamp(min=lowest)


def _step(exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of ``dtype`` in a binade."""
    return torch.ldexp(torch.full_like(exponents, torch.finfo(dtype).eps, dtype=torch.float64), exponents - 1)


def _require_floating(after: Tensor) -> None:
    if not after.dtype.is_floating_point:
        raise ValueError(
            f"The representable fraction needs a floating-point checkpoint, but after is {after.dtype}: dequantise "
            "both tensors to the type that the update was merged in."
        )
