"""PiSSA: the first product is the head of the weight, ``s B0 A0 = U_r S_r V_r^T``.

Source: Meng, Wang & Zhang, PiSSA (2404.02948); the values are divided by the scale before the root, as PEFT does.
"""

from collections.abc import Mapping
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor

from stablerank.adapters.inits.components import component_factors, component_triplets


def pissa_factors(module: Linear, adapter: str, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``B0 = U_r (S_r / s)^(1/2)`` and ``A0 = (S_r / s)^(1/2) V_r^T`` in fp32; ``svd`` as in components.py."""
    svd = settings.get("svd", "randomised")
    b_OR, a_RI = component_factors(
        module,
        adapter,
        {"component": "head", "svd": svd},
        lambda weight_OI, rank: component_triplets(weight_OI, rank, "head", svd),
    )
    root = module.scaling[adapter] ** -0.5
    return b_OR * root, a_RI * root
