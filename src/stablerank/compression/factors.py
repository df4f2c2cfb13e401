"""Which tensors of a LoRA adapter are factors, and the pairs that they form.

Legend: O output features, I input features, R rank.

Contract: by the names that PEFT gives them. A factor of a convolution is read as the matrix of its first axis against
the rest, so that ``B A`` is the kernel's update; one of an embedding as PEFT multiplies it.

Left out on purpose: frozen differences and PoLAR, whose further tensors would each lose something of their own; they
are exported as LoRA first.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stablerank.errors import ModelError

_PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))
SINE = "sinelora"


def require_lora(config: Mapping[str, Any]) -> None:
    """Refuse an adapter that is not a LoRA by its factors alone.

    Raises:
        ModelError: another type of adapter, or a method with tensors besides A and B.
    """
    kind, method = config.get("peft_type"), (config.get("spectral") or {}).get("method", SINE)
    if kind != "LORA":
        raise ModelError(f"The adapter is of type {kind}; LoRA and its kin (DoRA, rsLoRA, SineLoRA) can be compressed.")
    if method != SINE:
        raise ModelError(
            f"A {method} adapter has frozen or constrained factors; write it as plain LoRA first "
            "(`stablerank adapt FOLDER --out LORA`), then compress that, with `--rank` where the rank was doubled."
        )


def is_factor(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is an A or B of LoRA."""
    return tensor.dim() >= 2 and any(name.endswith(ending) for pair in _PAIRS for ending in pair)


def modules(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """The names of B and A, by the module they adapt."""
    found = {}
    for name in tensors:
        for a_ending, b_ending in _PAIRS:
            module, ending = name.removesuffix(a_ending), name[len(name) - len(a_ending) :]
            if ending == a_ending and module + b_ending in tensors:
                found[module] = (module + b_ending, name)
    return found


def matrices(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """``B (O, R)`` and ``A (R, I)``."""
    return b.flatten(1), a.flatten(1)


def sine_wave(config: Mapping[str, Any], a_RI: Tensor) -> tuple[float, float] | None:
    """``omega`` and gain of a SineLoRA; None for a LoRA."""
    spectral = config.get("spectral")
    if not spectral:
        return None
    gain = spectral.get("gain")
    return float(spectral["omega"]), float(a_RI.shape[1] ** 0.5 if gain is None else gain)
