"""The PEFT configuration of adapters that PEFT does not know, and its place in PEFT's own registry.

Contract: `SpectralLoraConfig` is a `LoraConfig` with one field more, ``spectral``: a method's name and settings, plain
data. Without it the configuration behaves, saves and loads as PEFT's own. Importing this module makes it PEFT's
configuration class for LoRA, so that ``PeftModel.from_pretrained``, ``load_adapter`` and a trainer's resume read our
adapters too (``import stablerank.peft`` is the user's one import).

What is saved can be read by us or be refused by others, never be read wrongly: stock PEFT ignores a field it does not
know and would load the factors as a plain LoRA, so ``init_lora_weights`` is saved as a name that no PEFT has, which
stock PEFT refuses with the sentence `NEEDS_US`. An adapter that stock PEFT can express is exported (export.py).

Left out on purpose: a `PeftType` of our own, which PEFT admits only by changing its enum.
"""

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from stablerank.adapters.layer import spectral_linear

NEEDS_US = "of stablerank: this is no plain LoRA; `import stablerank.peft` before loading it, or export it as LoRA"


@dataclass
class SpectralLoraConfig(LoraConfig):
    """LoRA's configuration with a method of ours."""

    spectral: dict[str, Any] | None = field(
        default=None,
        metadata={"is_lora_variant": True, "help": "A method of stablerank and its settings, as `peft_config` writes."},
    )

    def __post_init__(self) -> None:
        """Register our layer for linear modules; a saved adapter draws no first factors, it has them."""
        self.is_saved = getattr(self, "init_lora_weights", True) == NEEDS_US
        if self.is_saved:
            self.init_lora_weights = True
        super().__post_init__()
        self._register_custom_module({nn.Linear: spectral_linear})

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what stock PEFT would misread carries the sentence that makes it refuse."""
        settings: dict[str, Any] = super().to_dict()
        if self.spectral is None:
            del settings["spectral"]
            return settings
        return {**settings, "init_lora_weights": NEEDS_US}


PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] = SpectralLoraConfig
