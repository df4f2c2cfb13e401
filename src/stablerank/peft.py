"""One import, and PEFT reads, trains and saves our adapters: ``import stablerank.peft``.

In any PEFT or TRL script::

    from stablerank.peft import GeoraSpec, guard_reference
    trainer = GRPOTrainer(..., peft_config=GeoraSpec(r=16).peft_config())
    guard_reference(trainer)

EVA, CorDA and what trains in place are put on a model by `prepare_adapter`; PoLAR needs ``LandingCallback`` beside it.
"""

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.adapters.export import export_lora
from stablerank.adapters.prepare import prepare_adapter
from stablerank.adapters.reference import ReferenceReport, guard_reference
from stablerank.adapters.residual import unsafe_initialiser
from stablerank.adapters.specs import (
    BitfitSpec,
    CordaSpec,
    DoraSpec,
    EvaSpec,
    FullSpec,
    GeoraSpec,
    LoraSpec,
    MiloraSpec,
    OloraSpec,
    PissaSpec,
    PolarSpec,
    RsloraSpec,
    SavedSpec,
    SineSpec,
    SparseSpec,
)
from stablerank.training.landing_callback import LandingCallback

__all__ = [
    "BitfitSpec",
    "CordaSpec",
    "DoraSpec",
    "EvaSpec",
    "FullSpec",
    "GeoraSpec",
    "LandingCallback",
    "LoraSpec",
    "MiloraSpec",
    "OloraSpec",
    "PissaSpec",
    "PolarSpec",
    "ReferenceReport",
    "RsloraSpec",
    "SavedSpec",
    "SineSpec",
    "SparseSpec",
    "SpectralLoraConfig",
    "export_lora",
    "guard_reference",
    "prepare_adapter",
    "unsafe_initialiser",
]
