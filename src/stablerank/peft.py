"""One import, and PEFT reads, trains and saves our adapters: ``import stablerank.peft``.

In any PEFT or TRL script::

    from stablerank.peft import GeoraSpec
    trainer = GRPOTrainer(..., peft_config=GeoraSpec(r=16).peft_config())
"""

from stablerank.adapters.config import SpectralLoraConfig

__all__ = ["SpectralLoraConfig"]
