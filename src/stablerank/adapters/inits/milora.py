"""MiLoRA: the first product is the tail of the weight, ``s B0 A0`` = its r smallest singular components.

Numerics: exact, whatever ``svd`` says: no sketch sees the tail. Values below about 1e-8 sigma_1 are noise.

Source: Wang et al., MiLoRA (2406.09044), and its code, which divides the values by the scale as PiSSA does.
"""

from collections.abc import Mapping
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor

from stablerank.adapters.inits.components import component_factors, component_triplets


def milora_factors(module: Linear, adapter: str, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``B0 = U_-r (S_-r / s)^(1/2)`` and ``A0 = (S_-r / s)^(1/2) V_-r^T`` in fp32."""
    b_OR, a_RI = component_factors(
        module,
        adapter,
        {"component": "tail"},
        lambda weight_OI, rank: component_triplets(weight_OI, rank, "tail", "exact"),
    )
    root = module.scaling[adapter] ** -0.5
    return b_OR * root, a_RI * root
