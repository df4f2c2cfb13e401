"""What one adapted layer in memory changes: its update, its first product, and the weight under it.

Legend: O output features, I input features, R rank.

Contract: every matrix has the orientation of the stored weight. The update is counted from the untouched weight and
from the start of the adapter, so that of a frozen difference is ``s (B A - B0 A0)``. Products stay factored: LoRA and
rsLoRA of rank R, a difference of rank 2 R, PoLAR ``X (Theta Y^T)`` of rank R. SineLoRA and DoRA are dense and of full
rank; theirs are formed when they are measured, one at a time.

Numerics: factors and the sine are as the layer has them (fp32 by default). DoRA's row scales come from PEFT's own norm
in the factors' dtype, as in its forward, and the update ``(m / |W + s B A| - 1) W + m / |W + s B A| s B A`` from them
in fp64: exactly zero at step 0 on an fp32 base. On a bf16 base PEFT rounds the magnitudes to bf16 first, so DoRA's
update starts at about 2^-9 of the weight; that is what the layer computes, and what is measured.

Left out on purpose: convolutions, PEFT's expert stacks (``target_parameters``) and other variants (KaSA, aLoRA and
kin), whose update is not one matrix that PEFT would add.
"""

from collections.abc import Callable
from functools import partial

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from stablerank.adapters.variants.base import SpectralVariant, base_weight
from stablerank.errors import ModelError
from stablerank.spectral.operators import Dense, Factored

Build = Callable[[], Factored | Dense]


def layer_update(layer: LoraLayer, adapter: str) -> Build | None:
    """How to build the update of one layer, or None where it has none that can be measured.

    Building raises :class:`~stablerank.errors.ModelError` where a DoRA layer is merged.
    """
    if isinstance(layer, ParamWrapper):
        return None
    variant = layer.lora_variant.get(adapter)
    if adapter in layer.lora_embedding_A:
        return partial(_embedding, layer, adapter) if variant is None else None
    if adapter not in layer.lora_A or layer.lora_A[adapter].weight.ndim != 2:
        return None
    if isinstance(variant, SpectralVariant):
        return partial(_spectral, layer, variant, adapter)
    if isinstance(variant, DoraLinearVariant):
        return partial(_dora, layer, adapter)
    return partial(_product, layer, adapter) if variant is None else None


def layer_first_product(layer: LoraLayer, adapter: str) -> Factored | None:
    """``s B0 A0``, from which a frozen difference counts its update; None where the layer has none."""
    if adapter not in getattr(layer, "lora_B0", {}):
        return None
    b_OR, a_RI = layer.lora_B0[adapter].weight.detach(), layer.lora_A0[adapter].weight.detach()
    return Factored(b_OR, a_RI, layer.scaling[adapter])


def layer_weight(layer: LoraLayer) -> Tensor:
    """The weight under the adapter, dequantised where it must be.

    Raises:
        ModelError: an adapter is merged into it.
    """
    if layer.merged:
        raise ModelError(
            f"The adapter {', '.join(layer.merged_adapters)} is merged into its {type(layer.get_base_layer()).__name__}"
            " layer, so the weight is not the base's: call `model.unmerge_adapter()` before measuring."
        )
    return base_weight(layer)


def _product(layer: LoraLayer, adapter: str) -> Factored:
    b_OR, a_RI = layer.lora_B[adapter].weight.detach(), layer.lora_A[adapter].weight.detach()
    return _oriented(Factored(b_OR, a_RI, layer.scaling[adapter]), layer)


def _embedding(layer: LoraLayer, adapter: str) -> Factored:
    """PEFT's product has the embedding's features as rows, the stored weight has the tokens."""
    b_OR, a_RI = layer.lora_embedding_B[adapter].detach(), layer.lora_embedding_A[adapter].detach()
    return Factored(a_RI.mT, b_OR.mT, layer.scaling[adapter])


def _spectral(layer: LoraLayer, variant: SpectralVariant, adapter: str) -> Factored | Dense:
    factors = variant.factors(layer, adapter)
    if factors is None:
        return Dense(variant.delta(layer, adapter))
    b_OR, a_RI = factors
    return Factored(b_OR.detach(), a_RI.detach(), layer.scaling[adapter])


@torch.no_grad()
def _dora(layer: LoraLayer, adapter: str) -> Dense:
    delta_OI = layer.get_delta_weight(adapter)
    weight_OI = layer_weight(layer).to(delta_OI.dtype)
    magnitude: nn.Module = layer.lora_magnitude_vector[adapter]
    direction_OI = delta_OI.mT if _is_stored_transposed(layer) else delta_OI
    norm_O = magnitude.get_weight_norm(weight_OI, direction_OI, scaling=1)  # type: ignore[operator]
    row_scale = (magnitude.weight / norm_O).double()[:, None]
    row_scale = row_scale.mT if _is_stored_transposed(layer) else row_scale
    return Dense((row_scale - 1) * weight_OI.double() + row_scale * delta_OI.double())


def _oriented(product: Factored, layer: LoraLayer) -> Factored:
    return Factored(product.a_RI.mT, product.b_OR.mT, product.scale) if _is_stored_transposed(layer) else product


def _is_stored_transposed(layer: LoraLayer) -> bool:
    return bool(getattr(layer, "fan_in_fan_out", False))
