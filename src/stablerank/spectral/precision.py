"""The floor under every accumulation of this room: fp32, or fp64 where the input has it."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The same values in fp32 (fp16, bf16, fp8 and integers) or in fp64 (fp64); no copy where nothing changes."""
    # torch.promote_types refuses fp8.
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
