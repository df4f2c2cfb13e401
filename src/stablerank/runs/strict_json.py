"""Values as strict JSON has them."""

import math
from typing import Any


def strict(value: Any) -> Any:
    """The same with None for every number that is not finite, and lists for tuples, however deep it lies."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(inner) for key, inner in value.items()}
    return [strict(inner) for inner in value] if isinstance(value, list | tuple) else value
