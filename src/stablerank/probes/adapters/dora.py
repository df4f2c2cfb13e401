"""DoRA: the update that a magnitude vector and a low-rank direction make of a base weight.

Legend: O output features, I input features (of a convolution: times the kernel).

Contract: ``dW = m (W + s B A) / |W + s B A| - W`` with one norm an output. It is dense, of full rank, and not readable
from the adapter alone.

Numerics: fp64; cost and memory of a few dense copies of one matrix. A row of zeros gives NaN, as in PEFT.

Source: DoRA, 2402.09353 eq. 5; METHODS.md 9.5; PEFT's ``DoraLinearVariant.merge_safe``.

Left out on purpose: an implicit operator; the matrix is read anyway.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from stablerank.errors import ModelError
from stablerank.probes.adapters.types import BaseWeight
from stablerank.probes.sources.stored import StoredTensor
from stablerank.spectral.operators import Dense, Factored


def dora(
    name: str,
    direction: Callable[[], Factored],
    magnitude: StoredTensor,
    base_weight: BaseWeight | None,
    *,
    transposed: bool,
) -> Callable[[], Dense]:
    """How to build the update of one DoRA module; ``transposed`` where the weight is stored as (inputs, outputs).

    Raises:
        ModelError: there is no base to read.
    """
    if base_weight is None:
        raise ModelError(
            f"{name} is a DoRA update, m (W + s B A) / |W + s B A| - W, which needs the weight W of the base: "
            "name the base with --against BASE."
        )
    return partial(_build, name, direction, magnitude, base_weight, transposed)


def _build(
    name: str, direction: Callable[[], Factored], magnitude: StoredTensor, base_weight: BaseWeight, transposed: bool
) -> Dense:
    factored = direction()
    base = _base(name, base_weight, factored.shape)
    updated = base + factored.scale * (factored.b_OR.double() @ factored.a_RI.double())
    inputs = 0 if transposed else 1
    norms = updated.norm(dim=inputs, keepdim=True)
    if math.prod(magnitude.shape) != norms.numel():
        raise ModelError(
            f"{name} has {norms.numel()} outputs but a magnitude of shape {magnitude.shape}: save the adapter again."
        )
    return Dense(magnitude.read().double().reshape(norms.shape) / norms * updated - base)


def _base(name: str, base_weight: BaseWeight, shape: tuple[int, int]) -> Tensor:
    weight = base_weight(name)
    if weight is None:
        raise ModelError(f"{name} is a DoRA update, but the base has no weight of that name: name the right base.")
    matrix = weight.double().flatten(1)
    if tuple(matrix.shape) != shape:
        raise ModelError(
            f"{name} has shape {tuple(weight.shape)} in the base, but its update has shape {shape}: "
            "name the base that the adapter was trained on."
        )
    return matrix
