"""What our PEFT variants share: frozen factors beside the trained ones, and a merge rounded once.

Legend: O output features, I input features, R rank.

Contract: a variant is stateless and defines `init`, `forward` and `delta`. Factors are ``nn.Linear`` modules in
dictionaries named ``lora_*``: PEFT saves, loads, moves and casts these, and TRL copies them to its reference adapter.
Trained ones stand in ``adapter_layer_names``, which PEFT makes trainable with the adapter; frozen ones in
``other_param_names``, which it never does. Factors are kept in fp32 on a bf16 base.

Numerics: a merge adds in fp32 and rounds once to the dtype of the base.
"""

from abc import abstractmethod
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear, LoraVariant
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight, get_bnb_param_type
from torch import Tensor, nn
from torch.nn.utils import skip_init

from stablerank.errors import ModelError


class SpectralVariant(LoraVariant):
    """A method of ours as PEFT calls it."""

    @abstractmethod
    def init(self, module: Linear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        """Make the factors of one layer; where ``config.is_saved`` or on the meta device, only their room."""

    @abstractmethod
    def forward(self, module: Linear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """The layer's output: ``result`` of the base layer plus the update's share."""

    @abstractmethod
    def delta(self, module: Linear, adapter: str) -> Tensor:
        """The update ``(O, I)`` in the factors' dtype, scale included."""

    def factors(self, module: Linear, adapter: str) -> tuple[Tensor, Tensor] | None:
        """``B (O, K)`` and ``A (K, I)`` whose product times the scale is the update; None where it is no product."""
        return None

    def merge_safe(self, module: Linear, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The merged weight as a new tensor, summed in fp32 and rounded once."""
        delta_OI = self.delta(module, active_adapter)
        return (orig_weight.to(delta_OI.dtype) + delta_OI).to(orig_weight.dtype)

    def merge_unsafe(self, module: Linear, active_adapter: str, orig_weight: Tensor) -> None:
        """Merge in place."""
        orig_weight.data.copy_(self.merge_safe(module, active_adapter, orig_weight.data))


def add_factor(module: Linear, name: str, adapter: str, weight: Tensor | tuple[int, int], *, trained: bool) -> None:
    """Put a factor ``lora_<name>`` into the layer: a tensor, or the shape of one still to be loaded."""
    room = f"lora_{name}"
    if not hasattr(module, room):
        setattr(module, room, nn.ModuleDict())
        listing = "adapter_layer_names" if trained else "other_param_names"
        setattr(module, listing, (*getattr(module, listing), room))
    like = module.lora_A[adapter].weight
    rows, columns = weight.shape if isinstance(weight, Tensor) else weight
    factor: nn.Linear = skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, columns, rows, bias=False, device=like.device, dtype=like.dtype
    )
    factor.weight.requires_grad_(trained)
    if isinstance(weight, Tensor):
        set_factor(factor, weight)
    getattr(module, room)[adapter] = factor


def set_factor(factor: nn.Linear, weight: Tensor) -> None:
    """Give a factor its first value, in the value's own dtype: PEFT casts what it makes to a bf16 base's."""
    factor.weight.data = weight.detach().to(factor.weight.device, copy=True, memory_format=torch.contiguous_format)


def has_values(module: Linear, adapter: str, config: LoraConfig) -> bool:
    """Whether the layer has weights to start from: false while PEFT only makes room for a saved adapter."""
    is_meta = module.lora_A[adapter].weight.is_meta or module.get_base_layer().weight.is_meta
    return not (config.is_saved or is_meta)


def is_quantised(base: nn.Module) -> bool:
    """Whether a layer's weight is not a plain floating-point matrix."""
    weight = getattr(base, "weight", None)
    return weight is None or bool(get_bnb_param_type(weight)) or not weight.is_floating_point() or weight.ndim != 2


@torch.no_grad()
def base_weight(module: Linear) -> Tensor:
    """The base's weight ``(O, I)``, dequantised where it must be, in its own floating-point dtype."""
    base = module.get_base_layer()
    if get_bnb_param_type(base.weight):  # PEFT's general function costs an 8-bit layer its scales on a CPU
        weight: Tensor = dequantize_bnb_weight(base.weight, state=getattr(base, "state", None))
    else:
        weight = dequantize_module_weight(base)
    return weight.detach()


def hold_layout(base: nn.Module) -> None:
    """Keep a 4-bit weight in the layout that can be dequantised and differentiated.

    On a CPU with AVX512-BF16, bitsandbytes repacks it in place at its first inference, for a kernel without gradient;
    a state dict taken after that holds wrong scales.

    Raises:
        ModelError: that has happened.
    """
    state = getattr(getattr(base, "weight", None), "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise ModelError(
            f"bitsandbytes has repacked this {type(base).__name__} for inference on this CPU, where no gradient passes "
            "it; load the model again and put the adapter on before its first forward."
        )
    if hasattr(base, "support_avx512bf16_for_cpu"):
        base.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
