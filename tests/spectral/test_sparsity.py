"""Update sparsity, counted entry by entry with numpy and with ml-style bit patterns."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.spectral.blocks import BLOCK_ENTRIES
from stablerank.spectral.sparsity import bit_sparsity, update_mask, update_sparsity


def pair(shape, dtype, relative, seed=0):
    generator = torch.Generator().manual_seed(seed)
    before = (0.02 * torch.randn(shape, generator=generator)).to(dtype)
    return (before.float() + 0.02 * relative * torch.randn(shape, generator=generator)).to(dtype), before


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), st.floats(-5, 0), st.floats(0, 0.5))
def test_sparsity_is_one_less_the_share_that_numpy_calls_far(dtype, exponent, eta):
    after, before = pair((13, 9), dtype, 10**exponent)
    a, b = after.double().numpy(), before.double().numpy()
    if (a == b).all():
        assert math.isnan(update_sparsity(after, before, eta))
    else:
        close = np.isclose(np.minimum(a, b), np.maximum(a, b), rtol=0, atol=eta * np.maximum(np.abs(a), np.abs(b)))
        assert update_sparsity(after, before, eta) == pytest.approx(close.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bits_and_tolerance_agree_on_bf16_weights(dtype):
    """Neighbouring bf16 numbers are further apart than eta = 1e-3; neighbouring fp16 numbers are not."""
    after, before = pair((300, 200), dtype, 1e-3)
    differ = (after.view(torch.int16) != before.view(torch.int16)).double().mean().item()
    assert bit_sparsity(after, before, dtype) == pytest.approx(1 - differ)
    if dtype is torch.bfloat16:
        assert update_sparsity(after, before) == pytest.approx(1 - differ)
    else:
        assert update_sparsity(after, before) > 1 - differ


def test_an_fp32_update_below_bf16_looks_still_to_bf16_only():
    before = torch.full((4, 4), 1.0)
    after = before + 1e-4
    assert bit_sparsity(after, before) == 1.0
    assert bit_sparsity(after, before, torch.float32) == 0.0
    assert not update_mask(after, before).any()
    assert update_mask(before * 1.01, before).all()


def test_entries_beyond_one_block_are_counted():
    before = torch.ones(BLOCK_ENTRIES + 7, dtype=torch.bfloat16)
    after = before.clone()
    after[-3:] = 2
    assert update_sparsity(after, before) == pytest.approx(1 - 3 / len(before), abs=1e-12)
    assert update_mask(after, before).nonzero()[:, 0].tolist() == [len(before) - 3, len(before) - 2, len(before) - 1]


def test_transposed_tensors_are_read_in_the_same_order():
    after, before = pair((30, 20), torch.bfloat16, 1e-2)
    assert update_sparsity(after.mT, before.mT.contiguous()) == update_sparsity(after, before)
    assert torch.equal(update_mask(after.mT, before.mT), update_mask(after, before).mT)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_frozen_and_non_finite_tensors_have_no_sparsity(bad):
    after, before = pair((5, 4), torch.float32, 1e-1)
    broken = after.clone()
    broken[2, 2] = bad
    for one, other in ((before, before), (broken, before), (after, broken), (broken, broken)):
        assert math.isnan(update_sparsity(one, other)) and math.isnan(bit_sparsity(one, other))


def test_shapes_and_tolerances_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        update_sparsity(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        update_mask(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="eta=-1"):
        update_sparsity(torch.ones(2), torch.zeros(2), eta=-1)
