"""LoHa and LoKr: updates that are a Hadamard or a Kronecker product of small matrices, formed densely.

Legend: O output features, I input features (of a convolution: times the kernel).

Contract: the update is ``alpha / r`` times PEFT's own product of the stored parts, flattened to (O, I). Everything is
in the file, shapes included.

Numerics: the parts are converted to fp64 first, so the update is exact to fp64 rounding; memory of one dense matrix.

Source: FedPara 2108.06098 (LoHa, ``(W1a W1b) * (W2a W2b)``), LoKr 2309.14859 (``W1 kron W2``); the Tucker forms of
convolutions, ``t`` parts, from the same; ``peft.tuners.loha.layer`` and ``peft.tuners.lokr.layer``.

Left out on purpose: singular values of a Kronecker product as products of those of its factors; other metrics need the
matrix.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from peft.tuners.loha.layer import make_weight as hadamard
from peft.tuners.loha.layer import make_weight_cp as tucker_hadamard
from peft.tuners.lokr.layer import make_kron as kronecker
from peft.tuners.lokr.layer import make_weight_cp as tucker
from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.adapters.types import AdapterFile, Parts, StoredUpdate, need, patterned, ranked, stored_update
from stablerank.spectral.operators import Dense

_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def loha_updates(module: str, parts: Parts, *, adapter: AdapterFile) -> Iterator[StoredUpdate]:
    """The update of one LoHa module.

    Raises:
        ModelError: a part is absent, or the rank contradicts the settings.
    """
    _require_matrices(module, parts)
    w1_a, w1_b, *_ = need(module, parts, *_HADAMARD)
    if "hada_t1" in parts:
        kernel = need(module, parts, "hada_t1", "hada_t2")[0].shape[2:]
        shape = w1_a.shape[1], w1_b.shape[1] * math.prod(kernel)
    else:
        shape = w1_a.shape[0], w1_b.shape[1]
    scale = _scale(module, adapter, stored_rank=w1_b.shape[0])
    yield stored_update(module, shape, parts.values(), partial(_dense, module, parts, shape, _loha, scale))


def lokr_updates(module: str, parts: Parts, *, adapter: AdapterFile) -> Iterator[StoredUpdate]:
    """The update of one LoKr module.

    Raises:
        ModelError: a part is absent, or the rank contradicts the settings.
    """
    _require_matrices(module, parts)
    ranks = {parts[part].shape[0] for part in ("lokr_w1_b", "lokr_w2_b") if part in parts}
    left, right = _sides(module, parts, "lokr_w1"), _sides(module, parts, "lokr_w2")
    scale = _scale(module, adapter, stored_rank=ranks.pop() if ranks else None)
    shape = left[0] * right[0], left[1] * right[1]
    yield stored_update(module, shape, parts.values(), partial(_dense, module, parts, shape, _lokr, scale))


def _require_matrices(module: str, parts: Parts) -> None:
    flat = sorted(name for name, part in parts.items() if len(part.shape) < 2)
    if flat:
        raise ModelError(f"{module} has {', '.join(flat)} with fewer than two dimensions: save the adapter again.")


def _scale(module: str, adapter: AdapterFile, stored_rank: int | None) -> float:
    rank = ranked(adapter.config, module)
    if stored_rank not in (None, rank):
        raise ModelError(
            f"{module} has parts of rank {stored_rank}, but adapter_config.json gives it rank {rank}, so its scale is "
            "unknown and PEFT refuses to load it: mend r or rank_pattern."
        )
    return patterned(adapter.config, "alpha", "alpha_pattern", module) / rank


def _sides(module: str, parts: Parts, side: str) -> tuple[int, int]:
    if side in parts:
        whole = parts[side].shape
        return whole[0], math.prod(whole[1:])
    a, b = need(module, parts, f"{side}_a", f"{side}_b")
    if side == "lokr_w2" and "lokr_t2" in parts:
        return a.shape[1], b.shape[1] * math.prod(parts["lokr_t2"].shape[2:])
    return a.shape[0], b.shape[1]


def _dense(
    module: str, parts: Parts, shape: tuple[int, int], form: Callable[[dict[str, Tensor], float], Tensor], scale: float
) -> Dense:
    tensors = {name: part.read().double() for name, part in parts.items()}
    try:
        return Dense(form(tensors, scale).reshape(shape))
    except RuntimeError as error:
        shapes = {name: part.shape for name, part in parts.items()}
        raise ModelError(f"{module} has parts that do not fit together, {shapes}: save the adapter again.") from error


def _loha(tensors: dict[str, Tensor], scale: float) -> Tensor:
    w1_a, w1_b, w2_a, w2_b = (tensors[name] for name in _HADAMARD)
    factor = torch.tensor(scale, dtype=torch.float64)
    if "hada_t1" in tensors:
        return tucker_hadamard(tensors["hada_t1"], w1_a, w1_b, tensors["hada_t2"], w2_a, w2_b, scale=factor)
    return hadamard(w1_a, w1_b, w2_a, w2_b, scale=factor)


def _lokr(tensors: dict[str, Tensor], scale: float) -> Tensor:
    left, right = (_side(tensors, side) for side in ("lokr_w1", "lokr_w2"))
    if right.ndim == 4:  # torch.kron cannot do kernels of width one
        return scale * torch.einsum("ab,cdkl->acbdkl", left, right)
    return kronecker(left, right, scale)


def _side(tensors: dict[str, Tensor], side: str) -> Tensor:
    if side in tensors:
        return tensors[side]
    a, b = tensors[f"{side}_a"], tensors[f"{side}_b"]
    return tucker(tensors["lokr_t2"], a, b) if side == "lokr_w2" and "lokr_t2" in tensors else a @ b
