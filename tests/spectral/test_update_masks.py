"""Masks against numpy's sort, overlaps against random masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.spectral.blocks import BLOCK_ENTRIES
from stablerank.spectral.update_masks import low_magnitude_mask, mask_overlap, mask_overlap_null, principal_mask


def weight(rows, columns, dtype=torch.float32, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(1e-3, 1),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_low_magnitude_mask_holds_the_smallest_and_their_ties(rows, columns, alpha, dtype):
    base = weight(rows, columns, dtype)
    magnitudes = base.abs().float().numpy()
    count = max(1, round(alpha * magnitudes.size))
    threshold = np.partition(magnitudes.ravel(), count - 1)[count - 1]
    mask = low_magnitude_mask(base, alpha)
    np.testing.assert_array_equal(mask, magnitudes <= threshold)
    assert mask.sum() >= count


@pytest.mark.parametrize(("rows", "columns", "k"), [(40, 30, 4), (30, 40, 4), (25, 25, 25)])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_principal_mask_holds_the_largest_of_numpys_reconstruction(rows, columns, k, alpha):
    base = weight(rows, columns)
    u, sigma, vh = np.linalg.svd(base.double().numpy(), full_matrices=False)
    magnitudes = np.abs((u[:, :k] * sigma[:k]) @ vh[:k])
    largest = np.argsort(magnitudes.ravel())[::-1][: round(alpha * magnitudes.size)]
    expected = np.zeros(magnitudes.size, dtype=bool)
    expected[largest] = True
    np.testing.assert_array_equal(principal_mask(base, k, alpha), expected.reshape(rows, columns))


def test_masks_span_blocks():
    base = torch.arange(1, BLOCK_ENTRIES + 4001, dtype=torch.float32)
    mask = low_magnitude_mask(base, 0.25)
    count = round(0.25 * len(base))
    assert mask[:count].all() and not mask[count:].any()


def test_signs_do_not_count_and_ties_all_belong():
    base = torch.tensor([[-1.0, 1.0, -3.0], [0.0, -0.0, 2.0]])
    assert low_magnitude_mask(base, 1 / 6).tolist() == [[False, False, False], [True, True, False]]
    assert low_magnitude_mask(base, 3 / 6).tolist() == [[True, True, False], [True, True, False]]


@pytest.mark.parametrize("base", [torch.zeros(4, 3), torch.full((4, 3), torch.nan)])
def test_a_base_without_magnitudes_has_empty_masks_and_no_overlap(base):
    update = torch.ones(4, 3, dtype=torch.bool)
    for mask in (low_magnitude_mask(base, 0.5), principal_mask(base, 2, 0.5)):
        assert mask.shape == (4, 3) and not mask.any()
        assert math.isnan(mask_overlap(update, mask)) and math.isnan(mask_overlap(mask, update))
        assert mask_overlap_null(update, mask).kind == "none"


def test_overlap_is_the_share_of_the_update_and_its_null_the_random_mask():
    rng = np.random.default_rng(0)
    reference = torch.from_numpy(rng.random((30, 20)) < 0.3)
    update = torch.from_numpy(rng.random((30, 20)) < 0.2)
    assert mask_overlap(update, update) == 1.0
    assert mask_overlap(update, ~update) == 0.0
    null = mask_overlap_null(update, reference)
    flat, moved = reference.flatten().numpy(), int(update.sum())
    drawn = [flat[rng.permutation(flat.size)[:moved]].mean() for _ in range(4000)]
    expected = np.quantile(drawn, (0.025, 0.5, 0.975))
    np.testing.assert_allclose((null.low, null.median, null.high), expected, atol=1.01 / moved)
    assert null.low <= mask_overlap(update, reference) <= null.high
    assert null.kind == "random_mask"


def test_the_null_of_a_large_matrix_closes_on_the_density():
    update = torch.zeros(2000, 2000, dtype=torch.bool)
    reference = update.clone()
    update[:, :800], reference[:600] = True, True
    null = mask_overlap_null(update, reference)
    assert null.median == pytest.approx(0.3, abs=1e-4) and null.high - null.low < 0.002
    assert mask_overlap(update, reference) == pytest.approx(0.3)


def test_wrong_shares_shapes_and_types_are_refused():
    for alpha in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha="):
            low_magnitude_mask(torch.ones(3, 3), alpha)
    with pytest.raises(ValueError, match="k=4"):
        principal_mask(torch.ones(3, 3), 4, 0.5)
    with pytest.raises(ValueError, match="0 entries"):
        low_magnitude_mask(torch.ones(0, 3), 0.5)
    mask = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(9,\)"):
        mask_overlap(mask, mask.flatten())
    with pytest.raises(ValueError, match=r"float32"):
        mask_overlap_null(torch.ones(3, 3), mask)
