"""DoRA as PEFT has it, started from the base exactly.

PEFT keeps the first magnitudes in the dtype of the base while it computes the norms they are divided by in fp32, so
that on a bf16 base the ratio is not one: step 0 is off by the rounding, up to 2^-9 of every row. Here they are fp32.

Source: Liu et al., DoRA (2402.09353); the forward and the merge are PEFT's.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant

from stablerank.adapters.variants.base import base_weight


class DoraVariant(DoraLinearVariant):
    """PEFT's DoRA with fp32 magnitudes."""

    @staticmethod
    def init(module: Linear, adapter_name: str, **kwargs: Any) -> None:
        """Make PEFT's magnitudes, then give them the norms of the weight's rows in fp32."""
        DoraLinearVariant.init(module, adapter_name, **kwargs)
        magnitude = module.lora_magnitude_vector[adapter_name]
        if not magnitude.weight.is_meta:
            # The update is zero at first, so these are the norms that the forward divides by, bit by bit.
            magnitude.weight.data = torch.linalg.norm(base_weight(module).float(), dim=1)
