"""PoLAR: ``W' = W + s X Theta Y^T`` with orthonormal X and Y: the update's singular values are those of s Theta.

Legend: O output features, I input features, R rank.

Contract: ``lora_B`` is X (O, R), ``lora_A`` is Y^T (R, I), both drawn orthonormal; ``lora_S`` is Theta. ``theta`` says
what Theta is: ``free`` (R, R) or ``diagonal`` (kept as one row), both zero at first, so that the update is exactly zero
and only Theta has a gradient at step 0; or ``identity``, no Theta at all, where the first product is subtracted as in
difference.py. X and Y are orthonormal at the start and stay so only by the landing field of `attach_landing`
(optimisers/landing.py), without weight decay. They are kept in fp32: bf16 resolves ``X^T X - I`` to 1e-2 at best.

Numerics: the singular values of the update are those of ``s Theta`` up to the drift ``|X^T X - I|``. With ``identity``
they are all ``s`` by construction, so that the stable rank of ``s X Y^T`` is R whatever was learnt; read that of the
difference instead.

Cost: an R-by-R product more than LoRA; ``identity`` costs what difference.py costs.

Source: Lion, Zhang, Li & He, PoLAR (2506.03133, NeurIPS 2025); forms of Theta as in the authors' code, kcc-lion/polar.

Left out on purpose: retraction of X and Y after each step (the landing field replaces it), and the authors' Gaussian
start off the manifold.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from stablerank.adapters.variants.base import SpectralVariant, add_factor, has_values, set_factor
from stablerank.adapters.variants.difference import DifferenceVariant
from stablerank.errors import ModelError

THETAS = ("free", "diagonal", "identity")

_DIFFERENCE = DifferenceVariant()


class PolarVariant(SpectralVariant):
    """LoRA between two orthonormal bases, with the values in a small matrix of their own."""

    def init(self, module: Linear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        """Draw X and Y, and put Theta (or the frozen first factors) beside them.

        Raises:
            ModelError: the rank is larger than a side of the weight, or ``theta`` is none of `THETAS`.
        """
        rank, x, y = module.r[adapter_name], module.lora_B[adapter_name], module.lora_A[adapter_name]
        theta = _theta_form(config)
        _check_rank(rank, y.in_features, x.out_features)
        drawn = has_values(module, adapter_name, config)
        if drawn:
            set_factor(x, _orthonormal(x.weight))
            set_factor(y, _orthonormal(y.weight))
        if theta == "identity":
            for name, factor in (("A0", y), ("B0", x)):
                first = factor.weight if drawn else tuple(factor.weight.shape)
                add_factor(module, name, adapter_name, first, trained=False)
            return
        shape = (rank, rank) if theta == "free" else (1, rank)
        add_factor(module, "S", adapter_name, torch.zeros(shape) if drawn else shape, trained=True)

    def forward(self, module: Linear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """``result + s X Theta Y^T x``."""
        if _is_identity(module, active_adapter):
            return _DIFFERENCE.forward(module, active_adapter, x, result, **kwargs)
        hidden_R = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        theta = module.lora_S[active_adapter]
        hidden_R = theta(hidden_R) if _is_square(theta, module.r[active_adapter]) else hidden_R * theta.weight[0]
        return result + module.lora_B[active_adapter](hidden_R) * module.scaling[active_adapter]

    def delta(self, module: Linear, adapter: str) -> Tensor:
        """``s X Theta Y^T``."""
        if _is_identity(module, adapter):
            return _DIFFERENCE.delta(module, adapter)
        b_OR, a_RI = self.factors(module, adapter)
        return b_OR @ a_RI * module.scaling[adapter]

    @torch.no_grad()
    def factors(self, module: Linear, adapter: str) -> tuple[Tensor, Tensor]:
        """``X`` and ``Theta Y^T``."""
        if _is_identity(module, adapter):
            return _DIFFERENCE.factors(module, adapter)
        b_OR, a_RI = module.lora_B[adapter].weight.detach(), module.lora_A[adapter].weight.detach()
        theta = module.lora_S[adapter]
        scaled_RI = theta.weight @ a_RI if _is_square(theta, module.r[adapter]) else theta.weight[0][:, None] * a_RI
        return b_OR, scaled_RI


def stiefel_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained X (O, R) and Y^T (R, I) of every PoLAR adapter, by their names in the model.

    The last part but one of a name is the adapter's.
    """
    layers = [(place, module) for place, module in model.named_modules() if isinstance(module, Linear)]
    return {
        f"{place}.{room}.{adapter}.weight": factor
        for place, module in layers
        for adapter, variant in module.lora_variant.items()
        for room in ("lora_A", "lora_B")
        if isinstance(variant, PolarVariant) and (factor := getattr(module, room)[adapter].weight).requires_grad
    }


def _theta_form(config: LoraConfig) -> str:
    theta: str = config.spectral.get("theta", "free")
    if theta not in THETAS:
        raise ModelError(f"PoLAR has no theta {theta!r}; set `theta` to one of {', '.join(THETAS)}.")
    return theta


def _check_rank(rank: int, inputs: int, outputs: int) -> None:
    if rank > min(inputs, outputs):
        raise ModelError(
            f"PoLAR's rank {rank} is more than a {outputs}-by-{inputs} weight has orthonormal directions; lower `r` to "
            f"at most {min(inputs, outputs)}, or take the layer out of `target_modules`."
        )


def _orthonormal(like: Tensor) -> Tensor:
    return nn.init.orthogonal_(torch.empty(like.shape, dtype=torch.float32, device=like.device))


def _is_identity(module: Linear, adapter: str) -> bool:
    return adapter not in getattr(module, "lora_S", {})


def _is_square(theta: nn.Linear, rank: int) -> bool:
    return bool(theta.out_features == rank)
