"""LoRA on a bare parameter (``target_parameters``), as the fused experts of a mixture model are: one update an expert.

Legend: O output features, I input features, R rank, E experts.

Contract: every expert's update is (outputs, inputs), also where the base stores (inputs, outputs), which the file does
not say; the spectra are the same. Several parameters of one module are wrapped one in the other, ``.base_layer`` a
level, in the order in which the module defines them: only the fused pair ``gate_up_proj``, ``down_proj`` has an order
that is known without the model (PEFT's own conversion relies on it too).

Source: ``peft.tuners.lora.layer.ParamWrapper``: A is (experts, rank, inputs) and B (outputs, rank, experts), flattened.

Left out on purpose: an initial adapter; PEFT's SVD-type initialisers need a module's ``weight``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.adapters.factors import StoredFactors
from stablerank.probes.adapters.types import StoredUpdate, ranked, stored_update
from stablerank.probes.sources.stored import StoredTensor
from stablerank.spectral.operators import Factored

_FUSED = ("down_proj", "gate_up_proj")
"""By depth: the outermost wrapper holds the parameter that is defined last."""


def adapted_parameter(factors: StoredFactors, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The module that holds the adapted parameter, and the parameter's name where ``target_parameters`` gives it.

    Raises:
        ModelError: it may be one of several.
    """
    owner, depth = factors.module.replace(".base_layer", ""), factors.module.count(".base_layer")
    targets = [target.rpartition(".") for target in config.get("target_parameters") or ()]
    names = {name for holder, _, name in targets if holder and f".{owner}".endswith(f".{holder}")}
    if factors.rank != ranked(config, owner):  # else an ordinary module beside a stack that is named without its holder
        names |= {name for holder, _, name in targets if not holder}
    if names == set(_FUSED):
        return owner, _FUSED[depth]
    if len(names) > 1:
        raise ModelError(
            f"{factors.module} adapts one of the parameters {', '.join(sorted(names))}, and the file does not say "
            "which: measure the merged checkpoint against its base."
        )
    return owner, next(iter(names), None)


def expert_updates(name: str, factors: StoredFactors, experts: int, scale: float) -> Iterator[StoredUpdate]:
    """The updates ``name.0`` to ``name.(E - 1)`` of a stack."""
    shape = factors.b.shape[0], factors.a.shape[1]
    for expert in range(experts):
        build = partial(_expert, factors, expert, experts, scale)
        update = stored_update(f"{name}.{expert}", shape, (factors.b, factors.a), build)
        yield replace(update, nbytes=update.nbytes // experts)


def _expert(factors: StoredFactors, expert: int, experts: int, scale: float) -> Factored:
    a_ERI = _read_stack(factors.a).reshape(experts, -1, factors.a.shape[1])
    b_ORE = _read_stack(factors.b).reshape(factors.b.shape[0], -1, experts)
    return Factored(b_ORE[..., expert], a_ERI[expert], scale)


@lru_cache(maxsize=2)
def _read_stack(tensor: StoredTensor) -> Tensor:
    """The two factors of the stack at hand: its experts are built one after the other."""
    return tensor.read()
