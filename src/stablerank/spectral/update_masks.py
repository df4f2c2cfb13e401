"""Which entries an update chose: principal and low-magnitude masks of the base, and their overlap with the update.

Legend: O output features, I input features, K rank of the reconstruction, N entries of a block.

Contract (METHODS.md 9.9-9.10): the principal mask holds the ``alpha`` largest entries of ``|U_K S_K V_K^T|``, the
low-magnitude mask the ``alpha`` smallest of ``|W0|``, both by a threshold of that one matrix. Entries tied with the
threshold all belong (bf16 weights tie by the thousand), so a mask may hold more than ``alpha``; the null uses its real
density. A base that is zero or not finite has empty masks, and an overlap with an empty mask is NaN.

The overlap ``|M and R| / |M|`` is the share of moved entries that fall into the reference mask. Its null is a mask of
as many entries drawn at random: hypergeometric, mean = density of R, exact quantiles, kind ``random_mask``. bf16
storage alone drives small updates into small weights: a low-magnitude overlap above its null is no evidence of a choice
made by training unless the representable fraction is high (representable.py).

Numerics: magnitudes are compared in fp32 (the reconstruction itself is fp64), where non-negative numbers sort as their
bit patterns. The threshold is found exactly and over blocks, so memory stays bounded (``torch.quantile`` refuses more
than 2^24 entries): of a reconstruction by two histograms of 16 bits each, three passes that each rebuild it, O(O I K);
of a tensor in memory by a bracket from a sample and a selection inside it, four light passes of numpy on the CPU.

Left out on purpose: one threshold for a whole model.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom
from torch import Tensor

from stablerank.spectral.blocks import BLOCK_ENTRIES, flat_blocks
from stablerank.spectral.nulls import Null
from stablerank.spectral.subspaces import singular_subspaces

Bits = NDArray[np.int32]

_HALF = 2**16
_INFINITE = 0x7F800000
"""The pattern of infinity in fp32; those of NaN are larger."""
_STRIDE = 61
"""Every so many entries are looked at to bracket a threshold; prime, so that no row length is in step with it."""


@torch.no_grad()
def principal_mask(weight_OI: Tensor, k: int, alpha: float) -> Tensor:
    """The ``alpha`` largest entries of the rank-``k`` reconstruction of a weight, as a boolean ``(O, I)``.

    Raises:
        ValueError: not a matrix, ``k`` outside ``1..min(O, I)``, or ``alpha`` outside (0, 1].
    """
    count = _count(alpha, weight_OI.numel())
    head = singular_subspaces(weight_OI, k)
    if math.isnan(head.gap):
        return torch.zeros_like(weight_OI, dtype=torch.bool)
    rows = torch.split(head.u_OK * head.values_K, max(1, BLOCK_ENTRIES // weight_OI.shape[1]))

    def blocks() -> Iterator[Tensor]:
        return (_pattern(block @ head.v_IK.mT) for block in rows)

    threshold = _kth_smallest(blocks, weight_OI.numel() - count + 1)
    return torch.cat([bits >= threshold for bits in blocks()]).reshape(weight_OI.shape)


@torch.no_grad()
def low_magnitude_mask(weight: Tensor, alpha: float) -> Tensor:
    """The ``alpha`` smallest entries of ``|W0|``, as a boolean tensor of its shape.

    Raises:
        ValueError: ``alpha`` outside (0, 1], or an empty weight.
    """
    count = _count(alpha, weight.numel())
    parts = flat_blocks(weight)
    patterns = [_array(parts[0])] if len(parts) == 1 else _Arrays(parts)
    largest = max(int(bits_N.max()) for bits_N in patterns)
    if not 0 < largest < _INFINITE:
        return torch.zeros_like(weight, dtype=torch.bool)
    threshold = _selected(patterns, count, weight.numel())
    mask = np.concatenate([bits_N <= threshold for bits_N in patterns])
    return torch.from_numpy(mask).to(weight.device).reshape(weight.shape)


def mask_overlap(update: Tensor, reference: Tensor) -> float:
    """``|M and R| / |M|`` of an update mask M and a reference mask R; NaN where one is empty.

    Raises:
        ValueError: the shapes differ or a mask is not boolean.
    """
    _require_masks(update, reference)
    moved, inside = _size(update), _size(update & reference)
    return inside / moved if moved and _size(reference) else math.nan


def mask_overlap_null(update: Tensor, reference: Tensor) -> Null:
    """The overlap of as many random entries as ``update`` holds; NaN where a mask is empty.

    Raises:
        ValueError: the shapes differ or a mask is not boolean.
    """
    _require_masks(update, reference)
    moved, inside = _size(update), _size(reference)
    if not (moved and inside):
        return Null(math.nan, math.nan, math.nan, "none")
    low, median, high = (hypergeom.ppf((0.025, 0.5, 0.975), update.numel(), inside, moved) / moved).tolist()
    return Null(median, low, high, "random_mask")


def _pattern(block: Tensor) -> Tensor:
    """The bits of ``|x|`` in fp32, flat: integers in the order of the magnitudes."""
    return block.float().abs().reshape(-1).view(torch.int32)


def _array(block: Tensor) -> Bits:
    return np.asarray(_pattern(block).cpu().numpy())


class _Arrays:
    """The patterns of many blocks, made anew at each reading: a second copy of a large tensor is never whole."""

    def __init__(self, parts: tuple[Tensor, ...]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Bits]:
        return map(_array, self._parts)


def _selected(patterns: Iterable[Bits], k: int, entries: int) -> int:
    """The k-th smallest pattern of tensors in memory: bracketed by a sample, then selected among what lies between.

    Exact: where the sample brackets it wrongly, the histograms find it.
    """
    sample_N = np.sort(np.concatenate([bits_N[::_STRIDE] for bits_N in patterns]))
    expected = k / entries * len(sample_N)
    margin = 4 * math.sqrt(expected + 1)
    low = sample_N[max(int(expected - margin), 0)]
    high = sample_N[min(int(expected + margin) + 1, len(sample_N) - 1)]
    below, between = 0, []
    for bits_N in patterns:
        is_low = bits_N < low
        below += int(np.count_nonzero(is_low))
        between.append(bits_N[(bits_N <= high) ^ is_low])
    between_N = np.concatenate(between)
    if below < k <= below + len(between_N):
        return int(np.partition(between_N, k - below - 1)[k - below - 1])
    return _kth_smallest(lambda: map(torch.from_numpy, patterns), k)


def _kth_smallest(blocks: Callable[[], Iterator[Tensor]], k: int) -> int:
    """The k-th smallest pattern, counted from 1: its upper 16 bits from one histogram, its lower from another."""
    upper, k = _bin(sum(torch.bincount(bits // _HALF, minlength=_HALF) for bits in blocks()), k)
    lower, _ = _bin(sum(_lower_histogram(bits, upper) for bits in blocks()), k)
    return upper * _HALF + lower


def _lower_histogram(bits_N: Tensor, upper: int) -> Tensor:
    return torch.bincount(bits_N[bits_N // _HALF == upper] % _HALF, minlength=_HALF)


def _bin(histogram: Tensor | int, k: int) -> tuple[int, int]:
    """The bin that holds the k-th smallest, and its rank within the bin."""
    reached = torch.as_tensor(histogram).cumsum(0)
    position = int(torch.searchsorted(reached, k))
    return position, k - (int(reached[position - 1]) if position else 0)


def _count(alpha: float, entries: int) -> int:
    if not 0 < alpha <= 1 or not entries:
        raise ValueError(
            f"A mask needs a share alpha in (0, 1] of at least one entry, but alpha={alpha} of {entries} entries: "
            "pass 0.3 or 0.5 of a non-empty weight."
        )
    return max(1, round(alpha * entries))


def _size(mask: Tensor) -> int:
    return int(torch.count_nonzero(mask))


def _require_masks(update: Tensor, reference: Tensor) -> None:
    if update.shape != reference.shape or update.dtype != torch.bool or reference.dtype != torch.bool:
        raise ValueError(
            f"An overlap needs two boolean masks of one shape, but they are {update.dtype} {tuple(update.shape)} and "
            f"{reference.dtype} {tuple(reference.shape)}: build both for the same weight."
        )
