"""PiSSA: the first product is the head of the weight, ``s B0 A0 = U_r S_r V_r^T``.

Source: Meng, Wang & Zhang, PiSSA (2404.02948); the values are divided by the scale before the root, as PEFT does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from stablerank.adapters.variants.base import base_weight


def pissa_factors(module: Linear, adapter: str, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``B0 = U_r (S_r / s)^(1/2)`` and ``A0 = (S_r / s)^(1/2) V_r^T`` in fp32."""
    rank = module.r[adapter]
    u, values, vh = torch.linalg.svd(base_weight(module).float(), full_matrices=False)
    root_R = (values[:rank] / module.scaling[adapter]).sqrt()
    return u[:, :rank] * root_R, root_R[:, None] * vh[:rank]
