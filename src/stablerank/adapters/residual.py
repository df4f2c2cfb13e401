"""Initialisers of PEFT that write into the base, and the residual base that they should have left behind.

Legend: O output features, I input features, R rank.

Contract: ``pissa``, ``pissa_niter_N``, ``olora``, ``corda`` and ``lora_ga`` replace a weight W by ``W - s B0 A0`` and
start from B0 and A0, so the policy is W again but "adapter off" is not. `Residual` holds one such layer beside the W
that is stored, says how far the best residual is from W, and writes it.

Numerics: the residual is computed in fp32 and rounded once to the dtype of the base; in fp32 the sum misses W by some
1e-7 of its norm, in bf16 by some 1e-3.

Left out on purpose: ``loftq`` and ``kasa_config``, which change the base for good: what they leave is no residual.
"""

from dataclasses import dataclass

import torch
from peft import PeftConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

_RESIDUAL = ("pissa", "olora", "corda", "lora_ga")


def unsafe_initialiser(config: PeftConfig) -> str | None:
    """The initialiser of a configuration that writes into the base when PEFT wraps a model, or None."""
    if residual := residual_initialiser(config):
        return residual
    if getattr(config, "kasa_config", None):
        return "kasa"
    return "loftq" if getattr(config, "init_lora_weights", True) == "loftq" else None


def residual_initialiser(config: PeftConfig) -> str | None:
    """The initialiser of a configuration that leaves ``W - s B0 A0`` in the base, or None."""
    name = str(getattr(config, "init_lora_weights", True)).lower()
    return name if name.startswith(_RESIDUAL) else None


@dataclass(frozen=True)
class Residual:
    """One layer with a residual base, and the weight it was made from."""

    name: str
    layer: LoraLayer
    stored: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight of the base as it stands."""
        weight: Tensor = self.layer.get_base_layer().weight.data
        return weight

    def wanted(self) -> Tensor:
        """``W - s B A`` for the factors of the adapter "default", in the dtype of the base."""
        return (self._whole() - self._product()).to(self.weight.dtype)

    def error(self) -> float:
        """How far the wanted residual plus the product is from W, relative to W's Frobenius norm."""
        whole = self._whole()
        return float((self.wanted().float() + self._product() - whole).norm() / whole.norm())

    def strangeness(self, initialisations: int) -> float:
        """The share of W's norm that first factors do not explain: near 0 for an adapter that never trained.

        What the base lacks beyond the adapter's own product must be the products of the further
        ``initialisations``, which have rank R each; a trained adapter leaves more.
        """
        whole = self._whole()
        lacking_OI = whole - self.weight.float() - self._product()
        rank = self.layer.r["default"] * initialisations
        if rank:
            lacking_OI = lacking_OI - _head(lacking_OI, rank)
        return float(lacking_OI.norm() / whole.norm())

    def write(self) -> None:
        """Put the wanted residual into the base."""
        self.weight.copy_(self.wanted())

    def _whole(self) -> Tensor:
        return self.stored.to(self.weight.device, torch.float32)

    def _product(self) -> Tensor:
        product: Tensor = self.layer.get_delta_weight("default").detach()
        return product.float()


def _head(matrix_OI: Tensor, rank: int) -> Tensor:
    """The matrix itself where its rank is at most ``rank``, else less: a random projection (Halko et al. 2011)."""
    generator = torch.Generator().manual_seed(0)
    start_IR = torch.randn(matrix_OI.shape[1], rank, generator=generator).to(matrix_OI.device)
    # One power step keeps the rounding noise, which has full rank, out of the range.
    basis_OR = torch.linalg.qr(matrix_OI @ (matrix_OI.T @ (matrix_OI @ start_IR))).Q
    return basis_OR @ (basis_OR.T @ matrix_OI)
