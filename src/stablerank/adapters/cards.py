"""The README of an exported adapter: which base it is valid on, how to load it, what it is good for."""

from pathlib import Path

_LORA = """---
library_name: peft
base_model: {base}
tags: [stablerank, lora, {method}]
---

# A {method} adapter as plain LoRA of rank {rank}

In fp32; it needs PEFT and nothing else.

Valid on `{base}` as it was loaded, and on no other weights. SHA-256 of the adapted weights' beginnings, as
`stablerank.adapters.export.base_fingerprint` computes it: `{fingerprint}`.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("this folder")
```
{advice}"""
_BOTH_HALVES_TRAIN = """
The rank is twice the adapter's own: its update is a difference, `B A - B0 A0 = [B, -B0] [A; A0]`. This is a form to
serve, merge and compare. Trained further in PEFT, both halves move; to go on with the method itself, use the native
adapter (`import stablerank.peft`) or the residual form (`stablerank adapt --form residual`).
"""
_NATIVE = """---
library_name: peft
base_model: {base}
tags: [stablerank, {method}]
---

# A {method} adapter

In its own parameterisation, which PEFT reads once `stablerank.peft` is imported and refuses otherwise.

Valid on `{base}` as it was loaded, and on no other weights. SHA-256 of the adapted weights' beginnings, as
`stablerank.adapters.export.base_fingerprint` computes it: `{fingerprint}`.

```python
import stablerank.peft
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("this folder", is_trainable=True)
```
"""
_RESIDUAL = """The {method} start of `{origin}` in residual form: base `W - s B0 A0` ({dtype}) and LoRA `s B A` (fp32).
SHA-256 of the original's adapted weights' beginnings (`stablerank.adapters.export.base_fingerprint`): `{origin_print}`.

Rounding the residual to {dtype} changed an entry by at most {error:.1e} of the largest entry of its matrix, so that
base plus first adapter is the original model up to that, not exactly.
"""
_RESIDUAL_BASE = """---
library_name: transformers
base_model: {origin}
tags: [stablerank, {method}]
---

# A base without its {method} part

{facts}
Not a model to use alone: without the adapter that lies beside it, a part of every adapted weight is missing.
"""
_RESIDUAL_ADAPTER = """---
library_name: peft
base_model: {base}
tags: [stablerank, lora, {method}]
---

# A {method} adapter on its residual base

{facts}
Valid on `{base}` only (fingerprint `{fingerprint}`);
on the original model it counts the extracted part twice. With the adapter off you see the residual, not the original:
a KL to the model that training began from needs this first adapter as its reference.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("this folder", is_trainable=True)
```
"""


def lora_card(method: str, base: str, fingerprint: str, rank: int, is_doubled: bool) -> str:
    """The card of a plain-LoRA export."""
    advice = _BOTH_HALVES_TRAIN if is_doubled else ""
    return _LORA.format(method=method, base=base, fingerprint=fingerprint, rank=rank, advice=advice)


def residual_base_card(method: str, origin: str, origin_print: str, dtype: str, error: float) -> str:
    """The card of a residual base."""
    facts = _RESIDUAL.format(method=method, origin=origin, origin_print=origin_print, dtype=dtype, error=error)
    return _RESIDUAL_BASE.format(origin=origin, method=method, facts=facts)


def residual_adapter_card(
    base: Path, fingerprint: str, method: str, origin: str, origin_print: str, dtype: str, error: float
) -> str:
    """The card of the adapter on a residual base."""
    facts = _RESIDUAL.format(method=method, origin=origin, origin_print=origin_print, dtype=dtype, error=error)
    return _RESIDUAL_ADAPTER.format(base=base, fingerprint=fingerprint, method=method, facts=facts)


def native_card(method: str, base: str, fingerprint: str) -> str:
    """The card of an adapter in its own parameterisation."""
    return _NATIVE.format(method=method, base=base, fingerprint=fingerprint)
