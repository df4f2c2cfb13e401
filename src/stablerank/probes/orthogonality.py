"""How far the factors of a PoLAR adapter have drifted from orthonormal.

Legend: O output features, I input features, R rank.

Contract: one row a PoLAR layer, ``orthogonality_drift``: the larger of ``||X^T X - I||_F`` and ``||Y^T Y - I||_F``. The
singular values of the update are those of ``s Theta`` as far as the drift is small. It has no null: orthonormal factors
have 0. Other adapters have no rows.

Numerics: fp64, of the factors as they are stored; O((O + I) R^2) a layer.
"""

from peft.tuners.lora.layer import Linear
from torch import nn

from stablerank.adapters.variants.polar import PolarVariant
from stablerank.optimisers.landing import drift
from stablerank.probes.evaluate import estimated
from stablerank.probes.rows import Moment, geometry_row
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.nulls import NO_NULL


def measure_orthogonality(
    model: nn.Module, *, run: str, seed: int, step: int, adapter: str = "default"
) -> list[GeometryRow]:
    """The drift of every PoLAR layer, in the model's order."""
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, Linear) and isinstance(layer.lora_variant.get(adapter), PolarVariant)
    ]
    moment = Moment(run, seed, step)
    return [
        geometry_row(name, "update", "orthogonality_drift", estimated(_drift(layer, adapter)), NO_NULL, moment)
        for name, layer in layers
    ]


def _drift(layer: Linear, adapter: str) -> float:
    factors = (layer.lora_B[adapter].weight, layer.lora_A[adapter].weight)
    return max(drift(factor.double()).item() for factor in factors)
