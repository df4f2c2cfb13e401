"""The floor under every accumulation of this room: fp32, or fp64 where the input has it."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The same values in fp32 (fp16, bf16 and integers) or in fp64 (fp64); no copy where nothing changes."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
