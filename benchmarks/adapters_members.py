"""The members that the adapter benchmarks compare: one default setting each, on the embedded student.

Learning rates were checked on validation with one exploratory seed (`adapters_training.py --tune 1`) and changed where
a member did badly; everything else is the method's default. The student has no biases, so BitFit adds them.
"""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from stablerank.adapters.specs import AdapterSpec


@dataclass(frozen=True)
class Member:
    """An adapter section and the learning rates of its default recipe."""

    adapter: dict[str, Any]
    grpo: float
    clm: float

    @property
    def spec(self) -> AdapterSpec:
        spec: AdapterSpec = TypeAdapter(AdapterSpec).validate_python(self.adapter)
        return spec

    @property
    def override(self) -> str:
        """The section as an override of a recipe: JSON is YAML."""
        return f"adapter={json.dumps(self.adapter)}"


MEMBERS = {
    "LoRA": Member({"kind": "lora"}, 1e-3, 1e-3),
    "rsLoRA": Member({"kind": "rslora"}, 1e-3, 1e-3),
    "DoRA": Member({"kind": "dora"}, 1e-3, 1e-3),
    "EVA": Member({"kind": "eva"}, 1e-3, 1e-3),
    "PiSSA": Member({"kind": "pissa"}, 5e-4, 5e-4),
    "MiLoRA": Member({"kind": "milora"}, 1e-3, 1e-3),
    "GeoRA": Member({"kind": "geora"}, 1e-3, 1e-3),
    "OLoRA": Member({"kind": "olora"}, 5e-4, 5e-4),
    "CorDA": Member({"kind": "corda"}, 5e-4, 5e-4),
    "PoLAR": Member({"kind": "polar", "alpha": 32}, 5e-3, 5e-3),
    "SineLoRA": Member({"kind": "sinelora", "omega": 200}, 1e-4, 1e-4),
    "BitFit": Member({"kind": "bitfit", "biases": "added"}, 1e-2, 1e-2),
    "SparseFT": Member({"kind": "sparse"}, 2e-4, 2e-4),
    "full": Member({"kind": "full"}, 2e-4, 2e-4),
}
