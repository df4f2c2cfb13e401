"""Fewer singular directions: each product ``B A`` cut to a rank, or to a share of its energy.

Legend: O output features, I input features, R rank, K directions kept.

Contract: the new factors are the best of their rank (Eckart and Young 1936), the square root of each singular value in
either of them, so that both are of one size when they are quantised. The scale of a module stays: alpha changes with
the rank. Of a SineLoRA the product inside the sine is cut; of a DoRA the direction.

Numerics: fp64, by thin QR of both factors and the SVD of an R-by-R core, O((O + I) R^2); written in fp32.

Left out on purpose: cutting by the loss (which needs data); moving rank between modules at a fixed total, which
``energy`` does by the spectrum.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stablerank.adapters.export import PREFIX, ranks_and_alphas
from stablerank.compression.factors import matrices, modules
from stablerank.errors import ModelError


@torch.no_grad()
def truncated(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, rank: int | None, energy: float | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of the adapter at a lower rank.

    Raises:
        ModelError: factors that do not form a product, as those of expert stacks or of grouped convolutions.
    """
    if config.get("target_parameters"):
        raise ModelError("The adapter has stacks of experts, which have no single rank to cut; drop rank and energy.")
    written, ranks, scales = dict(tensors), {}, {}
    for module, (b_name, a_name) in modules(tensors).items():
        b, a = tensors[b_name], tensors[a_name]
        b_OR, a_RI = matrices(b, a)
        if b_OR.shape[1] != a_RI.shape[0]:
            raise ModelError(f"The factors of {module} do not form a product, so its rank cannot be cut; drop that.")
        b_OK, a_KI = _cut(b_OR, a_RI, rank, energy)
        name = f"{PREFIX}{module.removeprefix(PREFIX)}"
        ranks[name], scales[name] = a_KI.shape[0], module_scale(config, module, a_RI.shape[0])
        written[b_name] = b_OK.reshape(len(b_OK), -1, *b.shape[2:]).contiguous()
        written[a_name] = a_KI.reshape(-1, *a.shape[1:]).contiguous()
    return {**config, **ranks_and_alphas(ranks, scales)}, written


def module_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` of rsLoRA, as PEFT finds it for a module."""
    # PEFT's own rule: the first pattern that the name ends with.
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, module.removeprefix(PREFIX)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _cut(b_OR: Tensor, a_RI: Tensor, rank: int | None, energy: float | None) -> tuple[Tensor, Tensor]:
    left_OR, b_core = torch.linalg.qr(b_OR.double())
    right_IR, a_core = torch.linalg.qr(a_RI.double().mT)
    u_RR, values_R, v_RR = torch.linalg.svd(b_core @ a_core.mT)
    kept = min(rank, len(values_R)) if rank is not None else _directions(values_R, energy or 1.0)
    roots_K = values_R[:kept].sqrt()
    b_OK, a_KI = left_OR @ u_RR[:, :kept] * roots_K, roots_K[:, None] * (v_RR[:kept] @ right_IR.mT)
    return b_OK.to(b_OR.dtype), a_KI.to(a_RI.dtype)


def _directions(values_R: Tensor, energy: float) -> int:
    """The fewest with that share of the squares, at least one."""
    shares_R = values_R.square().cumsum(0)
    wanted = energy * shares_R[-1] * (1 - 1e-12)
    return min(int((shares_R < wanted).sum()) + 1, len(values_R))
