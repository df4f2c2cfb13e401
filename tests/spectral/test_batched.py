"""Batched spectra against numpy's SVD of each sequence, and bitwise against the same sequence in another batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stablerank.spectral.batched import POWER_SIZE, spectra_batched, stable_rank_batched
from stablerank.spectral.functionals import effective_rank, stable_rank

HALVES = [torch.bfloat16, torch.float16]


def states(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def numpy_stable_rank(live_LD, center=False):
    live_LD = np.asarray(live_LD, dtype=np.float64)
    if center:
        live_LD = live_LD - live_LD.mean(0)
    sigma = np.linalg.svd(live_LD, compute_uv=False)
    return np.sum(sigma**2) / sigma[0] ** 2


def same_bits(left, right):
    return torch.equal(left.view(torch.int64), right.view(torch.int64))


@st.composite
def masked_batches(draw):
    batch, tokens, hidden = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    mask = draw(hnp.arrays(np.bool_, (batch, tokens)))
    scale = draw(st.sampled_from([1e-30, 1.0, 1e30]))
    return scale * states(batch, tokens, hidden, seed=draw(st.integers(0, 99))).double(), torch.from_numpy(mask)


@settings(deadline=None, max_examples=150)
@given(masked_batches(), st.booleans())
def test_every_sequence_is_numpys_svd_of_its_live_tokens(case, center):
    hidden_BTD, mask_BT = case
    ranks = stable_rank_batched(hidden_BTD, mask_BT, center=center)
    spectra = spectra_batched(hidden_BTD, mask_BT, center=center)
    assert ranks.shape == (len(hidden_BTD),)
    for rank, values, states_TD, live_T in zip(ranks, spectra, hidden_BTD.numpy(), mask_BT.numpy(), strict=True):
        live_LD = states_TD[live_T]
        if len(live_LD) <= int(center):  # nothing, or one token minus itself
            assert rank.isnan()
            continue
        assert rank.item() == pytest.approx(numpy_stable_rank(live_LD, center), rel=1e-12)
        live_LD = live_LD - live_LD.mean(0) if center else live_LD
        sigma = np.linalg.svd(live_LD, compute_uv=False)
        np.testing.assert_allclose(values.numpy(), sigma, rtol=1e-12, atol=1e-13 * sigma[0])


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (128, 128), (1, 64), (64, 1)])
@pytest.mark.parametrize("spike", [0.0, 30.0])
def test_wide_tall_flat_and_spiked_states_against_numpy(shape, spike):
    hidden_TD = states(*shape).double()
    hidden_TD += spike * states(shape[0], 1, seed=1).double() * states(1, shape[1], seed=2).double()
    assert stable_rank_batched(hidden_TD[None]).item() == pytest.approx(numpy_stable_rank(hidden_TD), rel=1e-13)
    (values,) = spectra_batched(hidden_TD[None])
    assert len(values) == min(shape)
    assert stable_rank(values).item() == pytest.approx(numpy_stable_rank(hidden_TD), rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(POWER_SIZE, 150), st.floats(0.0, 1.0), st.floats(0.05, 3.0), st.integers(0, 99))
def test_the_top_is_numpys_whether_or_not_it_stands_alone(size, second, decay, seed):
    values_K = np.concatenate([[1.0], second * np.arange(1, size) ** -decay])
    left_KK, right_KK = np.linalg.qr(np.random.default_rng(seed).standard_normal((2, size, size)))[0]
    live_LD = (left_KK * values_K) @ right_KK
    found = stable_rank_batched(torch.from_numpy(live_LD)[None]).item()
    assert found == pytest.approx(numpy_stable_rank(live_LD), rel=1e-12)


@pytest.mark.parametrize("size", [6, POWER_SIZE])
def test_a_direction_that_no_other_token_shares_is_not_taken_for_the_top(size):
    """The longest token is an eigenvector of its own; `size` alike ones have the larger singular value together."""
    alike = torch.full((size, size), size**-0.5, dtype=torch.float64)
    hidden_TD = torch.block_diag(torch.tensor([[5**0.5]], dtype=torch.float64), alike, torch.zeros(96, 96))
    assert stable_rank_batched(hidden_TD[None]).item() == pytest.approx((5 + size) / size, rel=1e-13)


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 40),
    left=st.integers(0, 9),
    right=st.integers(0, 9),
    garbage=st.sampled_from([0.0, 1e30, math.nan, math.inf, -math.inf]),
    neighbours=st.integers(0, 3),
    place=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, *HALVES]),
    center=st.booleans(),
)
def test_padding_and_company_change_no_bit(tokens, left, right, garbage, neighbours, place, dtype, center):
    alone = states(1, tokens, 33, dtype=dtype)
    padded = torch.full((neighbours + 1, left + tokens + right, 33), garbage).to(dtype)
    mask = torch.zeros(padded.shape[:2], dtype=torch.int64)
    place = min(place, neighbours)
    padded[place, left : left + tokens] = alone[0]
    mask[place, left : left + tokens] = 1
    for other in set(range(neighbours + 1)) - {place}:  # company of other lengths and scales
        length = min(other + 1, padded.shape[1])
        padded[other, :length] = 100 * states(length, 33, seed=other + 1).to(dtype)
        mask[other, :length] = 1
    expected = stable_rank_batched(alone, center=center)
    assert same_bits(stable_rank_batched(padded, mask, center=center)[[place]], expected)
    assert same_bits(spectra_batched(padded, mask, center=center)[place], spectra_batched(alone, center=center)[0])


def test_holes_in_the_mask_change_no_bit():
    tokens = states(1, 20, 48)
    spread = torch.full((1, 40, 48), math.nan)
    spread[:, ::2] = tokens
    mask = torch.arange(40) % 2 == 0
    assert same_bits(stable_rank_batched(spread, mask[None]), stable_rank_batched(tokens))


@pytest.mark.parametrize("mask", [None, torch.ones(3, 70)])
def test_memory_layout_changes_no_bit(mask):
    hidden = states(3, 70, 130)
    expected = stable_rank_batched(hidden, mask)
    layouts = [
        hidden.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        hidden.mT.contiguous().mT,
        torch.cat((hidden, hidden), dim=2)[..., :130],
    ]
    for layout in layouts:
        assert not layout.is_contiguous()
        assert same_bits(stable_rank_batched(layout, mask), expected)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_half_precision_gives_what_its_wider_copy_gives(dtype, wide):
    hidden = 50 * states(3, 40, 96, dtype=dtype)
    mask = torch.arange(40) < torch.tensor([[40], [17], [1]])
    assert same_bits(stable_rank_batched(hidden, mask), stable_rank_batched(hidden.to(wide), mask))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32, torch.bfloat16])
def test_the_dtype_of_the_mask_does_not_matter(dtype):
    hidden, mask = states(2, 9, 16), torch.arange(9) < torch.tensor([[9], [4]])
    assert same_bits(stable_rank_batched(hidden, mask.to(dtype)), stable_rank_batched(hidden, mask))


@pytest.mark.parametrize("center", [False, True])
def test_an_undefined_sequence_is_nan_and_spares_its_neighbours(center):
    hidden, mask = states(6, 5, 8), torch.ones(6, 5, dtype=torch.bool)
    mask[1] = False
    hidden[2] = 0.0
    hidden[3, 2, 1] = math.nan
    hidden[4, 4, 7] = math.inf
    ranks = stable_rank_batched(hidden, mask, center=center)
    assert ranks.isnan().tolist() == [False, True, True, True, True, False]
    assert same_bits(ranks[[0, 5]], stable_rank_batched(hidden[[0, 5]], center=center))
    spectra = spectra_batched(hidden, mask, center=center)
    assert [len(values) for values in spectra] == [5, 0, 5, 5, 5, 5]
    assert spectra[2].tolist() == [0.0] * 5
    assert spectra[3].isnan().all() and spectra[4].isnan().all()
    assert [effective_rank(values).isnan().item() for values in spectra] == ranks.isnan().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_one_token_is_exactly_one(dtype):
    hidden = states(20, 7, 50, dtype=dtype)
    mask = torch.arange(7) == 3
    ranks = stable_rank_batched(hidden, mask.expand(20, 7))
    assert ranks.tolist() == [1.0] * 20
    assert stable_rank_batched(hidden, mask.expand(20, 7), center=True).isnan().all()


def test_tokens_all_alike_are_rank_one_and_have_no_spread():
    hidden = states(1, 1, 50).expand(1, 37, 50) / 3
    assert stable_rank_batched(hidden).item() == pytest.approx(1.0, rel=1e-14)
    assert stable_rank_batched(hidden.double() * 0.1, center=True).isnan().all()


@pytest.mark.parametrize("shape", [(30, 80), (80, 30)])
def test_rank_one_states_never_fall_below_one(shape):
    hidden = torch.stack([states(shape[0], 1, seed=s) * states(1, shape[1], seed=s + 1) for s in range(30)])
    ranks = stable_rank_batched(hidden.double())
    assert (ranks >= 1).all()
    assert ranks.max().item() == pytest.approx(1.0, rel=1e-6)  # the product was rounded to fp32


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_the_ends_of_the_exponent_range_neither_overflow_nor_vanish(scale):
    hidden = states(2, 6, 9, dtype=torch.float64)
    for center in (False, True):
        expected = stable_rank_batched(hidden, center=center).numpy()
        np.testing.assert_allclose(stable_rank_batched(hidden * scale, center=center), expected, rtol=1e-13)


@pytest.mark.parametrize("shape", [(0, 5, 8), (3, 0, 8), (3, 5, 0)])
def test_empty_batches_tokens_and_states(shape):
    ranks = stable_rank_batched(torch.empty(shape), torch.ones(shape[:2]))
    assert ranks.shape == (shape[0],) and ranks.isnan().all()
    assert [len(values) for values in spectra_batched(torch.empty(shape))] == [0] * shape[0]


def test_neither_gradients_nor_autocast_reach_the_result():
    hidden = states(2, 20, 30).requires_grad_()
    expected = stable_rank_batched(hidden)
    assert expected.dtype == torch.float64 and not expected.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits(stable_rank_batched(hidden), expected)


@pytest.mark.parametrize("measure", [stable_rank_batched, spectra_batched])
@pytest.mark.parametrize(
    ("hidden", "mask", "sentence"),
    [
        (torch.ones(5, 8), None, r"\(B, T, D\), but the shape is \(5, 8\).*hidden\[None\]"),
        (torch.ones(1, 2, 5, 8), None, r"\(B, T, D\), but the shape is \(1, 2, 5, 8\)"),
        (torch.ones(2, 5, 8), torch.ones(2, 4), r"\(B, T\) = \(2, 5\).*its shape is \(2, 4\)"),
        (torch.ones(2, 5, 8), torch.ones(5), r"\(B, T\) = \(2, 5\).*its shape is \(5,\)"),
        (torch.ones(1, 2, 8), torch.tensor([[0.0, -math.inf]]), "0 and 1, but it also holds -inf.*not the additive"),
        (torch.ones(1, 2, 8), torch.tensor([[1.0, math.nan]]), "0 and 1, but it also holds nan"),
    ],
)
def test_a_wrong_shape_or_mask_is_refused_in_one_sentence(measure, hidden, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        measure(hidden, mask)
