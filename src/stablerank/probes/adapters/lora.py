"""LoRA: ``dW = s B A`` from the two stored factors, and its relatives that are still such a product.

Legend: O output features, I input features, R rank.

Contract: the update has the orientation of the stored weight. PEFT's ``lora_B @ lora_A`` is (outputs, inputs); it is
transposed for embeddings and for ``fan_in_fan_out`` layers, which leaves every spectrum as it is and matters only
beside the base.

Source: s = alpha / r, or alpha / sqrt(r) (rsLoRA, 2312.03732); ``s (B A - B0 A0)`` for initialisers that subtract
their first factors from the base (METHODS.md 2.4); KaSA 2412.06071, ``s B diag(D) A``; all as in PEFT.

Left out on purpose: settings whose update is no product of the two stored factors (``REFUSED_SETTINGS``).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from stablerank.errors import ModelError
from stablerank.probes.adapters.dora import dora
from stablerank.probes.adapters.experts import adapted_parameter, expert_updates
from stablerank.probes.adapters.factors import StoredFactors, read_factored
from stablerank.probes.adapters.types import (
    AdapterFile,
    BaseWeight,
    Parts,
    StoredUpdate,
    need,
    patterned,
    ranked,
    stored_update,
)
from stablerank.spectral.operators import Dense, Factored

SUBTRACTING_INITS = ("pissa", "olora", "corda", "lora_ga")
"""Values of ``init_lora_weights`` (or their beginning) that subtract ``s B0 A0`` from the base weight."""

REFUSED_SETTINGS = {
    "use_qalora": "its first factor acts on pooled inputs",
    "use_bdlora": "its factors are stored as the blocks of block-diagonal matrices",
    "arrow_config": "it routes each token to one of several adapters",
}
"""Settings that make the update something else than ``s B A``, and why."""

_PARTS = frozenset({"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_diag"})
_TRAINING_ONLY = ("lora_monteclora_", "lora_velora_")


def subtracts(config: Mapping[str, Any]) -> bool:
    """Whether the adapter's initialiser took its first factors out of the base weight."""
    return str(config.get("init_lora_weights", True)).lower().startswith(SUBTRACTING_INITS)


def lora_updates(
    module: str, parts: Parts, *, adapter: AdapterFile, base_weight: BaseWeight | None, initial: AdapterFile | None
) -> Iterator[StoredUpdate]:
    """The update of one LoRA module, or of every expert of a stack.

    Raises:
        ModelError: the factors do not make an update, or need a base or an initial adapter that is not there.
    """
    config = adapter.config
    factors = _factors(module, parts, config)
    owner, parameter = adapted_parameter(factors, config)
    key = owner if parameter is None else f"{owner}.{parameter}"
    name = key.removesuffix(".weight")
    rank, scale = rank_and_scale(config, key)
    experts = factors.rank // rank if parameter is not None and factors.rank % rank == 0 else 1
    if experts > 1:
        _require_no_initial(module, initial)
        yield from expert_updates(name, factors, experts, scale)
        return
    factors.require_rank(rank)
    factors.require_middle(parts.get("lora_diag"))
    first = None if initial is None else _first_factors(factors, scale, initial)
    stored = [*parts.values(), *([first.b, first.a] if first else [])]
    product = partial(read_factored, factors, scale, parts.get("lora_diag"), first)
    build: Callable[[], Factored | Dense] = product
    if "lora_magnitude_vector" in parts:
        _require_whole_base(module, config, first)
        build = dora(name, product, parts["lora_magnitude_vector"], base_weight, transposed=factors.transposed)
    yield stored_update(name, factors.shape, stored, build)


def rank_and_scale(config: Mapping[str, Any], key: str) -> tuple[int, float]:
    """The rank and ``s`` that the settings give a module.

    Raises:
        ModelError: the settings give no such numbers.
    """
    rank = ranked(config, key)
    alpha = patterned(config, "lora_alpha", "alpha_pattern", key)
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _factors(module: str, parts: Parts, config: Mapping[str, Any]) -> StoredFactors:
    for setting, reason in REFUSED_SETTINGS.items():
        if config.get(setting):
            raise ModelError(
                f"{module} is trained with {setting}, whose update is not s B A because {reason}: convert the adapter "
                "with peft.save_as_lora, or measure the merged checkpoint."
            )
    unknown = sorted(part for part in parts if part not in _PARTS and not part.startswith(_TRAINING_ONLY))
    if unknown:
        raise ModelError(
            f"{module} has {', '.join(unknown)} beside its factors, so its update is not s B A: convert the adapter "
            "with peft.save_as_lora, or measure the merged checkpoint."
        )
    embedding = any(part.startswith("lora_embedding_") for part in parts)
    kind = "lora_embedding_" if embedding else "lora_"
    b, a = need(module, parts, f"{kind}B", f"{kind}A")
    linear = len(a.shape) == 2
    return StoredFactors(module, b, a, transposed=embedding or (linear and bool(config.get("fan_in_fan_out"))))


def _first_factors(factors: StoredFactors, scale: float, initial: AdapterFile) -> StoredFactors:
    module = factors.module
    if module not in initial.modules:
        raise ModelError(
            f"{module} has no factors in the initial adapter {initial.path.parent}: name the folder that was saved "
            "before this training."
        )
    first = _factors(module, initial.modules[module], initial.config)
    rank, first_scale = rank_and_scale(initial.config, module)
    first.require_rank(rank)
    if (first.b.shape, first.a.shape, first_scale) != (factors.b.shape, factors.a.shape, scale):
        raise ModelError(
            f"{module} has rank {factors.rank} and scale {scale:g}, but rank {first.rank} and scale {first_scale:g} in "
            "the initial adapter: what PEFT has converted already is the difference, so measure it without the initial "
            "adapter."
        )
    return first


def _require_no_initial(module: str, initial: AdapterFile | None) -> None:
    if initial is not None:
        raise ModelError(
            f"{module} is an expert stack, whose initial factors are not subtracted: measure it without the initial "
            "adapter."
        )


def _require_whole_base(module: str, config: Mapping[str, Any], first: StoredFactors | None) -> None:
    if subtracts(config) and first is None:
        raise ModelError(
            f"{module} is a DoRA update over init_lora_weights = {config['init_lora_weights']!r}, which changed the "
            "base: name the folder of the initial adapter."
        )
