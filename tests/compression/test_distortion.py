"""Losses against numpy's dense norms, and the bounds of the stable rank."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.compression.compress import encode_adapter, read_adapter
from stablerank.compression.distortion import stable_rank_bounds, update_losses
from stablerank.compression.factors import modules
from stablerank.compression.spec import CompressionSpec
from stablerank.compression.tensors import decode_tensor


def quantised(config, tensors, spec):
    encoded, changed = encode_adapter(config, tensors, spec)
    return {part.record.name: decode_tensor(part.record, part.payload, part.side) for part in encoded}, changed


def stable_rank(matrix):
    return np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2


@pytest.mark.parametrize("family", ["lora", "dora", "patterns", "sinelora"])
@pytest.mark.parametrize(
    "spec", [CompressionSpec(bits=bits) for bits in (1, 3, 8)] + [CompressionSpec(rank=2)], ids=str
)
def test_losses_are_those_of_dense_matrices(family, spec, adapters):
    config, tensors = read_adapter(adapters(family)[1])
    after, changed = quantised(config, tensors, spec)
    found = {loss.module: loss for loss in update_losses(config, tensors, after, changed)}
    assert len(found) == len(modules(tensors))
    for module, (b_name, a_name) in modules(tensors).items():
        before_OI, after_OI = (
            (values[b_name].double() @ values[a_name].double()).numpy() for values in (tensors, after)
        )
        if family == "sinelora":
            before_OI, after_OI = np.sin(30 * before_OI), np.sin(30 * after_OI)
        loss = found[module]
        assert loss.error == pytest.approx(
            np.linalg.norm(after_OI - before_OI) / np.linalg.norm(before_OI), rel=1e-3, abs=1e-5
        )
        assert loss.norm_ratio == pytest.approx(np.linalg.norm(after_OI) / np.linalg.norm(before_OI), rel=1e-3)
        assert loss.stable_rank_before == pytest.approx(stable_rank(before_OI), rel=2e-3)
        assert loss.stable_rank_after == pytest.approx(stable_rank(after_OI), rel=2e-3)
        assert loss.lower * (1 - 1e-9) <= loss.stable_rank_after <= loss.upper * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.floats(-6, 2), rank=st.integers(1, 5))
def test_bounds_hold_for_any_error(seed, size, rank):
    rng = np.random.default_rng(seed)
    w, e = rng.normal(size=(9, rank)) @ rng.normal(size=(rank, 7)), 10**size * rng.normal(size=(9, 7))
    lower, upper = stable_rank_bounds(*(np.linalg.norm(m, kind) for m in (w, e) for kind in ("fro", 2)))
    assert lower * (1 - 1e-9) <= stable_rank(w + e) <= upper * (1 + 1e-9)


def test_bounds_are_tight_where_nothing_changes():
    assert stable_rank_bounds(3.0, 2.0, 0.0, 0.0) == pytest.approx((2.25, 2.25))
    assert stable_rank_bounds(3.0, 2.0, 4.0, 2.0) == (1.0, math.inf)


def test_a_zero_update_has_no_loss():
    tensors = {"m.lora_A.weight": torch.randn(2, 6), "m.lora_B.weight": torch.zeros(5, 2)}
    (loss,) = update_losses({}, tensors, tensors)
    assert math.isnan(loss.error)
    assert math.isnan(loss.upper)
