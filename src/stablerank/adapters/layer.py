"""PEFT's LoRA layer with our methods in it, and with an unmerge that gives the base back bit by bit.

Contract: a linear layer of any LoRA-type adapter, ours or PEFT's own. Merging keeps a copy of the weight (and bias) as
it was and unmerging restores it: PEFT subtracts the update from the rounded sum instead, and a bf16 base drifts
(METHODS.md 9.9). The copy costs the memory of the adapted weights while they are merged.

Quantised linear layers take our methods, whose forward only adds to the base layer's; they cannot be merged in place.
Without a method of ours a quantised layer is left to PEFT's own dispatch.

Left out on purpose: embeddings, convolutions and expert stacks, which PEFT refuses for an unknown variant.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.layer import Linear, LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import get_bnb_param_type
from torch import Tensor, nn

from stablerank.adapters.variants.base import SpectralVariant, hold_layout, is_quantised
from stablerank.adapters.variants.dora import DoraVariant
from stablerank.adapters.variants.methods import VARIANTS
from stablerank.errors import ModelError


class SpectralLinear(Linear):
    """A LoRA linear layer that knows our variants."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        """PEFT's variants, with a DoRA that starts from the base exactly; ours are resolved by name."""
        return {**super().lora_variants, ("use_dora",): DoraVariant, ("spectral",): None}

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """The variant that a configuration asks for."""
        super().resolve_lora_variant(config=config, **kwargs)  # refuses a combination with another variant
        spectral = getattr(config, "spectral", None)
        return VARIANTS[spectral["method"]]() if spectral else super().resolve_lora_variant(config=config, **kwargs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What merging adds to the weight, in the adapter's dtype."""
        variant = self.lora_variant.get(adapter)
        if isinstance(variant, SpectralVariant):
            return variant.delta(self, adapter)
        delta: Tensor = super().get_delta_weight(adapter)
        return delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge as PEFT does, and keep the weight as it was.

        Raises:
            ModelError: the base is quantised.
        """
        base = self.get_base_layer()
        if is_quantised(base):
            raise ModelError(
                f"A {type(base).__name__} cannot be merged into: its weight is quantised and would be rounded again; "
                "dequantise the base with `model.dequantize()`, or export the adapter as plain LoRA."
            )
        untouched = None if self.merged else _copies(base)
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)
        if untouched is not None and self.merged:
            self._untouched = untouched

    def unmerge(self) -> None:
        """Put the weight of before the merge back, bit by bit."""
        if not self.merged:
            return
        self.merged_adapters.clear()
        base = self.get_base_layer()
        with torch.no_grad():
            for name, value in self._untouched.items():
                getattr(base, name).copy_(value)
        del self._untouched


def spectral_linear(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> SpectralLinear | None:
    """Our layer for a linear module, or None for what PEFT dispatches itself: parameters, and quantised plain LoRA.

    Raises:
        ModelError: bitsandbytes has repacked the weight for inference on a CPU, or it is an 8-bit one under DoRA there.
    """
    if kwargs.get("parameter_name") is not None:
        return None
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    hold_layout(base)
    if config.use_dora and get_bnb_param_type(base.weight) == "8bit" and base.weight.device.type == "cpu":
        raise ModelError(
            f"PEFT's DoRA drops the scales of a {type(base).__name__} on a CPU at its first forward; load the base in "
            "4 bits or unquantised, or train LoRA."
        )
    if is_quantised(base) and not getattr(config, "spectral", None):
        return None
    return SpectralLinear(target, adapter_name, config=config, **kwargs)


def _copies(base: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in base.named_parameters(recurse=False)}
