"""OLoRA and CorDA: PEFT's own initialisers, run as they are on a base that they cannot touch.

Contract: PEFT writes the residual ``W - s B0 A0`` into the base. Here it finds a copy of the weight in the layer,
dequantised where it must be: the base's own parameter is never in its hands, and is back afterwards, also after an
error.

Source: OLoRA (Buyukakyuz 2406.01775, QR); CorDA (Yang et al. 2406.05223, needs calibration data).
"""

from collections.abc import Callable, Mapping
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from stablerank.adapters.variants.base import base_weight
from stablerank.errors import ModelError


def olora_factors(module: Linear, adapter: str, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """``B0 = Q_r`` and ``A0 = R_r`` of ``W = Q R``, by ``olora_init``.

    Raises:
        ModelError: the rank exceeds a side of the weight.
    """
    base = module.get_base_layer()
    rank, smaller = module.r[adapter], min(module.in_features, module.out_features)
    if rank > smaller:
        raise ModelError(
            f"Rank {rank} exceeds the smaller side of a {type(base).__name__} of {module.out_features} by "
            f"{module.in_features}: lower `r`, or leave this layer out with `exclude_modules` or `rank_pattern`."
        )
    return _on_a_copy(module, adapter, lambda: module.olora_init(adapter))


def corda_factors(module: Linear, adapter: str, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The factors of ``corda_init``, from what ``preprocess_corda`` left on the layer.

    Raises:
        ModelError: ``preprocess_corda`` has not been run.
    """
    if not hasattr(module.get_base_layer(), "eigens"):
        raise ModelError(
            f"CorDA needs the covariances of the inputs of a layer of {module.out_features} by {module.in_features}, "
            "and there are none: run `preprocess_corda` of peft.tuners.lora.corda with calibration data first."
        )
    return _on_a_copy(module, adapter, lambda: module.corda_init(adapter, "corda"))


def _on_a_copy(module: Linear, adapter: str, run: Callable[[], None]) -> tuple[Tensor, Tensor]:
    base = module.get_base_layer()
    weight = base.weight
    base.weight = nn.Parameter(base_weight(module).clone(), requires_grad=False)
    try:
        run()
    finally:
        base.weight = weight
    b_OR, a_RI = module.lora_B[adapter].weight.detach(), module.lora_A[adapter].weight.detach()
    return b_OR.float().contiguous(), a_RI.float().contiguous()
