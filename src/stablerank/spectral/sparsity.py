"""Update sparsity: how many entries of a weight did not move, by a relative tolerance or to the bit.

Legend: N entries of a block.

Contract (METHODS.md 9.9-9.10; arXiv 2606.07082): with tolerance ``eta``, an entry moved if
``|w+ - w0| > eta max(|w+|, |w0|)``. Both tensors have to be in the dtype of training: neighbouring bf16 numbers are
0.4 to 0.8 % apart, so eta = 1e-3 sees every bf16 step and any rounding of an fp32 master weight is invisible before it.
A frozen tensor (no entry differs at all) gives NaN, not 1: it was not trained, and would pass for the sparsest update.
A tensor that holds a non-finite entry gives NaN.

Numerics: fp64 differences, in blocks (blocks.py): exact for bf16, fp16 and fp32. Cost one pass over both tensors.

The floor is no number: bf16 alone makes small updates look sparse (gate III of arXiv 2511.08567). Read sparsity beside
the representable fraction (representable.py).

Left out on purpose: sparsity of factored updates, whose entries are never formed.
"""

import math

import torch
from torch import Tensor

from stablerank.spectral.blocks import paired_blocks


@torch.no_grad()
def update_sparsity(after: Tensor, before: Tensor, eta: float = 1e-3) -> float:
    """``1 - |{|w+ - w0| > eta max(|w+|, |w0|)}| / N`` of two tensors of one shape.

    Raises:
        ValueError: the shapes differ, or ``eta`` is negative.
    """
    if not eta >= 0:
        raise ValueError(f"Update sparsity needs a tolerance eta of at least 0, but eta={eta}: pass 1e-3 or 0.")
    still, differing = 0, False
    for after_N, before_N in paired_blocks(after, before):
        distance_N = (after_N - before_N).abs()
        if not distance_N.isfinite().all():
            return math.nan
        still += int((distance_N <= eta * torch.maximum(after_N.abs(), before_N.abs())).sum())
        differing = differing or bool(distance_N.any())
    return still / after.numel() if differing else math.nan


@torch.no_grad()
def bit_sparsity(after: Tensor, before: Tensor, dtype: torch.dtype = torch.bfloat16) -> float:
    """The share of entries that are the same number once both are rounded to ``dtype``; NaN as in the module header.

    Raises:
        ValueError: the shapes differ.
    """
    if math.isnan(update_sparsity(after, before, 0.0)):
        return math.nan
    return 1 - torch.count_nonzero(update_mask(after, before, dtype)).item() / after.numel()


@torch.no_grad()
def update_mask(after: Tensor, before: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Where the two tensors differ after rounding to ``dtype``: a boolean tensor of their shape, one byte an entry.

    Raises:
        ValueError: the shapes differ.
    """
    blocks = [after_N.to(dtype) != before_N.to(dtype) for after_N, before_N in paired_blocks(after, before)]
    return torch.cat(blocks).reshape(after.shape)
