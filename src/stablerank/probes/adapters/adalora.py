"""AdaLoRA: ``dW = alpha / (init_r + 1e-5) B diag(E) A``, of the rank that the budget left to each module.

Legend: O output features, I input features, R rank.

Numerics: ``diag(E) A`` in fp64, the product is never formed.

Source: 2303.10512; ``peft.tuners.adalora.layer``, whose divisor stays ``init_r`` after ranks were cut.
"""

from collections.abc import Iterator
from functools import partial

from stablerank.probes.adapters.factors import StoredFactors, read_factored
from stablerank.probes.adapters.types import (
    AdapterFile,
    Parts,
    StoredUpdate,
    mapping,
    need,
    patterned,
    ranked,
    stored_update,
)


def adalora_updates(module: str, parts: Parts, *, adapter: AdapterFile) -> Iterator[StoredUpdate]:
    """The update of one AdaLoRA module.

    Raises:
        ModelError: a factor is absent, or the ranks contradict each other.
    """
    config = adapter.config
    b, a, middle = need(module, parts, "lora_B", "lora_A", "lora_E")
    factors = StoredFactors(module, b, a, bool(config.get("fan_in_fan_out")))
    factors.require_middle(middle)
    kept = mapping(config, "rank_pattern").get(f"{module}.lora_E")
    first_rank = ranked({"init_r": config.get("init_r")}, module, "init_r")
    factors.require_rank(kept.count(True) if isinstance(kept, list) else first_rank)
    alpha = patterned(config, "lora_alpha", "alpha_pattern", module)
    scale = (alpha if alpha > 0 else float(factors.rank)) / (first_rank + 1e-5)
    build = partial(read_factored, factors, scale, middle)
    yield stored_update(module, factors.shape, parts.values(), build)
