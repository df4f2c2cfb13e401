"""Two stored tensors read side by side in fp64, a bounded block at a time: the memory rule of the entrywise measures.

Legend: N entries of a block.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ENTRIES = 2**20
"""8 MiB in fp64: a handful of temporaries stay under 100 MiB however large the tensor."""


def flat_blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """The entries of a tensor in row order, as views where it is contiguous."""
    return torch.split(tensor.reshape(-1), BLOCK_ENTRIES)


def paired_blocks(after: Tensor, before: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks ``(N,), (N,)`` of both tensors in one order, in fp64, on the device of ``after``.

    Raises:
        ValueError: the shapes differ; at the call, not at the first block.
    """
    if after.shape != before.shape:
        raise ValueError(
            f"An update needs two tensors of one shape, but after is {tuple(after.shape)} and before is "
            f"{tuple(before.shape)}: compare a parameter with its own earlier state."
        )
    pairs = zip(flat_blocks(after), flat_blocks(before), strict=True)
    return ((after_N.double(), before_N.to(after_N.device).double()) for after_N, before_N in pairs)
