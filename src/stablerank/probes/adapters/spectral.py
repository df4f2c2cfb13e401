"""Our own adapters as saved: frozen differences, PoLAR and SineLoRA, without their base.

Legend: O output features, I input features, R rank.

Contract: the update is relative to the untouched base, because these methods never change it: nothing has to be
subtracted, and no initial adapter is wanted. A frozen difference is ``s (B A - B0 A0)``, one product of rank 2 R; PoLAR
is ``s X Theta Y^T`` with Theta square, a row (its diagonal) or absent, where it is a difference too; SineLoRA is
``s sin(omega B A) / g``, entry by entry, dense and of full rank.

Numerics: Theta and the sine in fp64, whatever the factors are stored in; a sine takes the memory of a dense fp64
matrix.

Source: the variants in adapters/variants, which train these and say where each is from.

Left out on purpose: chunks of the sine (the matrix is measured whole anyway), and the drift of PoLAR's factors, which
is a row of telemetry.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from stablerank.adapters.variants.methods import VARIANTS
from stablerank.adapters.variants.polar import PolarVariant
from stablerank.adapters.variants.sine import SineVariant
from stablerank.errors import ModelError
from stablerank.probes.adapters.factors import StoredFactors, read_factored
from stablerank.probes.adapters.lora import rank_and_scale
from stablerank.probes.adapters.types import AdapterFile, Parts, StoredUpdate, need, stored_update
from stablerank.probes.sources.stored import StoredTensor
from stablerank.spectral.operators import Dense, Factored


def spectral_updates(
    module: str, parts: Parts, *, adapter: AdapterFile, initial: AdapterFile | None
) -> Iterator[StoredUpdate]:
    """The update of one module.

    Raises:
        ModelError: an unknown method, a part that is absent or does not fit, or an initial adapter.
    """
    if initial is not None:
        raise ModelError(
            f"{module} counts its update from the untouched base, of its own accord: leave the initial adapter "
            f"{initial.path.parent} out."
        )
    b, a = need(module, parts, "lora_B", "lora_A")
    factors = StoredFactors(module, b, a, transposed=False)
    rank, scale = rank_and_scale(adapter.config, module)
    factors.require_rank(rank)
    build = _builder(factors, scale, parts, adapter.config["spectral"])
    yield stored_update(module, factors.shape, parts.values(), build)


def _builder(
    factors: StoredFactors, scale: float, parts: Parts, settings: Mapping[str, Any]
) -> Callable[[], Factored | Dense]:
    variant = VARIANTS.get(str(settings.get("method")))
    if variant is None:
        raise ModelError(
            f"{factors.module} is adapted by {settings.get('method')!r}, a method of stablerank that this version does "
            f"not know (it knows {', '.join(sorted(VARIANTS))}): update stablerank."
        )
    if variant is SineVariant:
        gain = math.sqrt(factors.shape[1]) if settings.get("gain") is None else settings["gain"]
        omega, gain = (_positive(factors.module, *pair) for pair in (("omega", settings.get("omega")), ("gain", gain)))
        return partial(_read_sine, factors, scale, omega, gain)
    if variant is PolarVariant and "lora_S" in parts:
        return partial(_read_polar, factors, scale, _theta(factors, parts["lora_S"]))
    return partial(read_factored, factors, scale, None, _first(factors, parts))


def _read_polar(factors: StoredFactors, scale: float, theta: StoredTensor) -> Factored:
    b_OR, a_RI, theta_QR = factors.b.read(), factors.a.read().double(), theta.read().double()
    is_square = theta_QR.shape[0] == factors.rank
    return Factored(b_OR, theta_QR @ a_RI if is_square else theta_QR.mT * a_RI, scale)


def _read_sine(factors: StoredFactors, scale: float, omega: float, gain: float) -> Dense:
    phase_OI = factors.b.read().double() @ factors.a.read().double()
    return Dense(phase_OI.mul_(omega).sin_().mul_(scale / gain))


def _first(factors: StoredFactors, parts: Parts) -> StoredFactors:
    b, a = need(factors.module, parts, "lora_B0", "lora_A0")
    if (b.shape, a.shape) != (factors.b.shape, factors.a.shape):
        raise ModelError(
            f"{factors.module} has factors B {factors.b.shape} and A {factors.a.shape}, but first ones {b.shape} and "
            f"{a.shape}: save the adapter again."
        )
    return StoredFactors(factors.module, b, a, transposed=False)


def _theta(factors: StoredFactors, theta: StoredTensor) -> StoredTensor:
    rank = factors.rank
    if theta.shape not in ((rank, rank), (1, rank)):
        raise ModelError(
            f"{factors.module} has factors of rank {rank} but a Theta of shape {theta.shape}: save the adapter again."
        )
    return theta


def _positive(module: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(f"adapter_config.json gives {module} {name} = {value!r}: a sine needs a positive number.")
    return value
