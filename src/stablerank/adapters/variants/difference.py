"""The frozen difference: ``h = W x + s (B A x - B0 A0 x)`` on the untouched base.

Legend: O output features, I input features, R rank.

Contract: B and A train from the first factors B0 and A0, which stay as a frozen copy. At step 0 both products are the
same numbers, so the update is exactly zero in every dtype, for any scale, on a quantised base too; the base is never
written, so "adapter off" is the model as it was loaded. With weight decay B and A are drawn to zero, and so the update
to ``-s B0 A0``: train these methods without it.

Cost: two thin products more than LoRA in the forward, and the frozen factors (as large as the trained ones) in memory.

Source: PiSSA (2404.02948), MiLoRA (2406.09044) and GeoRA (2601.09361) subtract ``s B0 A0`` from the base instead, which
is the same function in exact arithmetic; in bf16 the residual is rounded, so that its step 0 is not the base.

Left out on purpose: that residual form for training (export_residual.py writes it).
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn.functional import linear

from stablerank.adapters.inits.methods import INITS
from stablerank.adapters.variants.base import SpectralVariant, add_factor, has_values, set_factor


class DifferenceVariant(SpectralVariant):
    """LoRA that starts from given factors and counts its update from there."""

    def init(self, module: Linear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        """Draw the first factors, or copy those of another adapter of the same method on this layer."""
        a, b = module.lora_A[adapter_name], module.lora_B[adapter_name]
        if not hasattr(module, "first_factors"):
            module.first_factors = {}
        module.first_factors.pop(adapter_name, None)
        if not has_values(module, adapter_name, config):
            add_factor(module, "A0", adapter_name, tuple(a.weight.shape), trained=False)
            add_factor(module, "B0", adapter_name, tuple(b.weight.shape), trained=False)
            return
        origin = (config.spectral, module.r[adapter_name], module.scaling[adapter_name])
        twin = _twin(module, origin)
        if twin is not None:
            b_OR, a_RI = module.lora_B0[twin].weight, module.lora_A0[twin].weight
        else:
            b_OR, a_RI = INITS[config.spectral["method"]](module, adapter_name, config.spectral)
        module.first_factors[adapter_name] = origin
        for factor, name, value in ((a, "A0", a_RI), (b, "B0", b_OR)):
            set_factor(factor, value)
            add_factor(module, name, adapter_name, value, trained=False)

    def forward(self, module: Linear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """``result + s (B A x - B0 A0 x)``."""
        x = module.lora_dropout[active_adapter](x)
        trained = module.lora_B[active_adapter](module.lora_A[active_adapter](x))
        b0_OR, a0_RI = _first(module, active_adapter)
        # Not one product with stacked factors: only equal products cancel to exactly zero.
        first = linear(linear(x, a0_RI), b0_OR)
        return result + (trained - first) * module.scaling[active_adapter]

    def delta(self, module: Linear, adapter: str) -> Tensor:
        """``s (B A - B0 A0)``."""
        with torch.no_grad():
            b_OR, a_RI = module.lora_B[adapter].weight, module.lora_A[adapter].weight
            b0_OR, a0_RI = _first(module, adapter)
            return (b_OR @ a_RI - b0_OR @ a0_RI) * module.scaling[adapter]

    @torch.no_grad()
    def factors(self, module: Linear, adapter: str) -> tuple[Tensor, Tensor]:
        """``[B, -B0]`` and ``[A; A0]``, of rank 2 R."""
        b_OR, a_RI = module.lora_B[adapter].weight, module.lora_A[adapter].weight
        b0_OR, a0_RI = _first(module, adapter)
        return torch.cat((b_OR, -b0_OR), dim=1), torch.cat((a_RI, a0_RI))


def _first(module: Linear, adapter: str) -> tuple[Tensor, Tensor]:
    """B0 and A0 in the dtype of what trains: TRL casts that alone to bf16 on a quantised base."""
    dtype = module.lora_A[adapter].weight.dtype
    return module.lora_B0[adapter].weight.to(dtype), module.lora_A0[adapter].weight.to(dtype)


def _twin(module: Linear, origin: tuple[Any, ...]) -> str | None:
    """Another adapter of the layer whose first factors have the same origin, settings, rank and scale."""
    known = module.first_factors.items()
    return next((name for name, other in known if other == origin and name in module.lora_A0), None)
