"""Which initialiser a method's name stands for."""

from collections.abc import Callable, Mapping
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor

from stablerank.adapters.inits.by_peft import corda_factors, olora_factors
from stablerank.adapters.inits.geora import geora_factors
from stablerank.adapters.inits.milora import milora_factors
from stablerank.adapters.inits.pissa import pissa_factors

Init = Callable[[Linear, str, Mapping[str, Any]], tuple[Tensor, Tensor]]
"""``(layer, adapter, settings)`` to the first factors ``B0 (O, R)`` and ``A0 (R, I)``."""

INITS: dict[str, Init] = {
    "pissa": pissa_factors,
    "milora": milora_factors,
    "geora": geora_factors,
    "olora": olora_factors,
    "corda": corda_factors,
}
