"""Two stored factors and the rules they must meet to be an update ``s B A``; reading them.

Legend: O output features, I input features (of a convolution: times the kernel), R rank.

Contract: factors keep their dtype and are never multiplied. A convolution's are flattened to (O, R) and (R, I), whose
product is exactly PEFT's kernel update.

A rank that contradicts the settings is refused, as PEFT refuses to load it: the factors are there, but the scale
``alpha / r`` is not known.

Left out on purpose: grouped convolutions, whose update is no plain product and which PEFT cannot merge either.
"""

import math
from dataclasses import dataclass

import torch

from stablerank.errors import ModelError
from stablerank.probes.sources.stored import StoredTensor
from stablerank.spectral.operators import Factored


@dataclass(frozen=True)
class StoredFactors:
    """The stored ``B (O, R)`` and ``A (R, I)`` of one module, and whether the weight is stored as (I, O).

    Raises:
        ModelError: they do not chain.
    """

    module: str
    b: StoredTensor
    a: StoredTensor
    transposed: bool

    def __post_init__(self) -> None:
        b, a = self.b.shape, self.a.shape
        if len(a) < 2 or len(b) < 2:
            raise ModelError(
                f"{self.module} has factors of shapes {b} and {a} where matrices are needed: they look like shards, so "
                "gather them before saving the adapter."
            )
        if math.prod(b[1:]) != a[0]:
            grouped = len(b) > 2 and a[0] % math.prod(b[1:]) == 0
            why = "a grouped convolution, which PEFT cannot merge either" if grouped else "save the adapter again"
            raise ModelError(f"{self.module} has factors B {b} and A {a} that do not chain: {why}.")

    @property
    def rank(self) -> int:
        """``R``."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The update's shape in the orientation of the stored weight."""
        rows, columns = self.b.shape[0], math.prod(self.a.shape[1:])
        return (columns, rows) if self.transposed else (rows, columns)

    def require_middle(self, middle: StoredTensor | None) -> None:
        """Refuse a diagonal between the factors that has not one entry a rank.

        Raises:
            ModelError: the sizes differ.
        """
        if middle is not None and math.prod(middle.shape) != self.rank:
            raise ModelError(
                f"{self.module} has factors of rank {self.rank} but a diagonal of shape {middle.shape}: "
                "save the adapter again."
            )

    def require_rank(self, rank: int) -> None:
        """Refuse factors of another rank than the settings give.

        Raises:
            ModelError: the ranks differ.
        """
        if self.rank != rank:
            raise ModelError(
                f"{self.module} has factors of rank {self.rank}, but adapter_config.json gives it rank {rank}, so its "
                "scale is unknown and PEFT refuses to load it: mend r or rank_pattern."
            )


def read_factored(
    factors: StoredFactors, scale: float, middle: StoredTensor | None = None, first: StoredFactors | None = None
) -> Factored:
    """``s B A``, ``s B diag(middle) A`` (fp64), or ``s (B A - B0 A0)`` as one product of rank 2 R."""
    b_OR, a_RI = factors.b.read().flatten(1), factors.a.read().flatten(1)
    if middle is not None:
        a_RI = middle.read().double().reshape(-1, 1) * a_RI.double()
    if first is not None:
        b_OR = torch.cat([b_OR, first.b.read().flatten(1)], dim=1)
        a_RI = torch.cat([a_RI, -first.a.read().flatten(1)], dim=0)
    return Factored(a_RI.mT, b_OR.mT, scale) if factors.transposed else Factored(b_OR, a_RI, scale)
