"""SineLoRA: ``W' = W + s sin(omega B A) / g``, entry by entry, which lifts the rank of the update far above R.

Legend: N tokens, O output features, I input features, R rank, C output features of one chunk.

Contract: A and B start as LoRA's, so the update starts at exactly zero. The sine acts on the weights, in the forward
and in the merge alike. ``omega`` has no default and is never 0 (a zero update with zero gradients); the gain ``g`` is
``sqrt(I)`` unless given. Every entry of the update is at most ``s / g``. The update is no product of rank R, so that
there is no exact export as LoRA: merge it.

Numerics: the sine is computed in fp32 at least, for its phase ``omega B A`` exceeds what bf16 (or TF32, where a GPU is
told to use it) resolves; the product with the tokens is in their dtype, under autocast in autocast's. Relative to LoRA
the gradient of B is ``omega / g`` times as large, so that ``omega`` and the learning rate trade off.

Cost: a full product with the tokens, as the base layer has it, and a sine of each weight entry; the backward computes
the sine anew. The update is made `CHUNK` entries at a time and none of it is kept, so that the memory is LoRA's.

Source: Ji et al., SineLoRA (2403.19243, ICLR 2025); gain and start as in the authors' code, samy-ji/Sine-Low-Rank.

Left out on purpose: the sine of activations, as the authors' SinDoRA has it in the forward but not in the merge; a
second derivative; a learned omega.
"""

import math
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable

from stablerank.adapters.variants.base import SpectralVariant
from stablerank.errors import ModelError

CHUNK = 2**20
"""Entries of the update made at a time: 4 MiB in fp32."""


class SineVariant(SpectralVariant):
    """The sine of LoRA's product."""

    def init(self, module: Linear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        """Note frequency and gain on the layer, where PEFT notes the scale.

        Raises:
            ModelError: frequency or gain is not a positive number.
        """
        gain = config.spectral.get("gain")
        wave = {
            "omega": _positive("omega", config.spectral.get("omega")),
            "gain": math.sqrt(module.in_features) if gain is None else _positive("gain", gain),
        }
        if not hasattr(module, "sine_wave"):
            module.sine_wave = {}
            module.other_param_names = (*module.other_param_names, "sine_wave")
        module.sine_wave[adapter_name] = wave

    def forward(self, module: Linear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """``result + s sin(omega B A) / g x``."""
        x = module.lora_dropout[active_adapter](x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        b_OR, a_RI = module.lora_B[active_adapter].weight, module.lora_A[active_adapter].weight
        return result + sine_product(x, b_OR, a_RI, *_omega_and_amplitude(module, active_adapter))

    @torch.no_grad()
    def delta(self, module: Linear, adapter: str) -> Tensor:
        """``s sin(omega B A) / g`` in fp32 at least."""
        b_OR, a_RI = module.lora_B[adapter].weight, module.lora_A[adapter].weight
        omega, amplitude = _omega_and_amplitude(module, adapter)
        return _phase(b_OR, a_RI, omega).sin_().mul_(amplitude)


def sine_product(x: Tensor, b_OR: Tensor, a_RI: Tensor, omega: float, amplitude: float) -> Tensor:
    """``amplitude * x sin(omega B A)^T`` for ``x (..., I)``, as ``(..., O)`` in its dtype; differentiable once."""
    product_NO: Tensor = _SineProduct.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]), b_OR, a_RI, omega, amplitude
    )
    return product_NO.reshape(*x.shape[:-1], -1)


class _SineProduct(torch.autograd.Function):
    """Keeps the tokens and the factors; makes the update chunk by chunk, and anew in the backward."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, b_OR: Tensor, a_RI: Tensor, omega: float, amplitude: float) -> Tensor:
        ctx.save_for_backward(x_NI, b_OR, a_RI)
        ctx.omega, ctx.amplitude = omega, amplitude
        product_NO = x_NI.new_empty(len(x_NI), len(b_OR))
        with torch.autocast(x_NI.device.type, enabled=False):
            for rows in _chunks(b_OR, a_RI):
                delta_CI = _phase(b_OR[rows], a_RI, omega).sin_().mul_(amplitude)
                product_NO[:, rows] = x_NI @ delta_CI.to(x_NI.dtype).T
        return product_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, b_OR, a_RI = ctx.saved_tensors
        with_x, *with_factors = ctx.needs_input_grad[:3]
        # Read once: gradient checkpointing gives a saved tensor a single time.
        saved = (x_NI, b_OR, a_RI)
        grad_x_NI, grad_b_OR, grad_a_RI = (torch.zeros_like(value, dtype=_wide(value)) for value in saved)
        with torch.autocast(x_NI.device.type, enabled=False):
            for rows in _chunks(b_OR, a_RI):
                phase_CI = _phase(b_OR[rows], a_RI, ctx.omega)
                if any(with_factors):
                    grad_delta_CI = (grad_NO[:, rows].T @ x_NI).to(phase_CI.dtype)
                    grad_phase_CI = grad_delta_CI.mul_(phase_CI.cos()).mul_(ctx.amplitude * ctx.omega)
                    grad_b_OR[rows] = grad_phase_CI @ a_RI.to(grad_phase_CI.dtype).T
                    grad_a_RI += b_OR[rows].to(grad_phase_CI.dtype).T @ grad_phase_CI
                if with_x:
                    delta_CI = phase_CI.sin_().mul_(ctx.amplitude)
                    grad_x_NI += grad_NO[:, rows] @ delta_CI.to(grad_NO.dtype)
        return grad_x_NI.to(x_NI.dtype), grad_b_OR.to(b_OR.dtype), grad_a_RI.to(a_RI.dtype), None, None


def _chunks(b_OR: Tensor, a_RI: Tensor) -> list[slice]:
    """Rows of the update, `CHUNK` entries or one row at a time."""
    rows = max(1, CHUNK // a_RI.shape[1])
    return [slice(start, start + rows) for start in range(0, len(b_OR), rows)]


def _phase(b_CR: Tensor, a_RI: Tensor, omega: float) -> Tensor:
    wide = _wide(b_CR)
    return (b_CR.to(wide) * omega) @ a_RI.to(wide)


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _omega_and_amplitude(module: Linear, adapter: str) -> tuple[float, float]:
    wave = module.sine_wave[adapter]
    return wave["omega"], module.scaling[adapter] / wave["gain"]


def _positive(name: str, value: Any) -> float:
    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
        return float(value)
    raise ModelError(
        f"SineLoRA's {name} is {value!r}, but the update sin(omega B A) / gain needs a positive number; set `{name}` "
        "in the adapter's settings, such as omega 200."
    )
