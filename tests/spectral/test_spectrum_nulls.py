"""Nulls of whole-spectrum metrics against the matrices they stand for, drawn and decomposed in full."""

import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import entropy, ks_2samp

from stablerank.spectral.spectrum_nulls import RANKS, gaussian_spectra, spectrum_null

DRAWS = 1500

ORACLES = {
    "nuclear_rank": lambda s: s.sum(-1) ** 2 / (s**2).sum(-1),
    "participation_ratio": lambda s: (s**2).sum(-1) ** 2 / (s**4).sum(-1),
    "effective_rank": lambda s: np.exp(entropy(s, axis=-1)),
    "spectral_entropy": lambda s: entropy(s**2, axis=-1),
}


def real_values(rows, columns, rank, draws, seed=1):
    rng = np.random.default_rng(seed)
    if rank is None:
        return np.linalg.svd(rng.standard_normal((draws, rows, columns)), compute_uv=False)
    products = rng.standard_normal((draws, rows, rank)) @ rng.standard_normal((draws, rank, columns))
    return np.linalg.svd(products, compute_uv=False)[:, : min(rows, columns, rank)]


def drawn_values(rows, columns, rank, draws, seed=2):
    return np.stack(list(gaussian_spectra(rows, columns, rank, draws=draws, seed=seed)))


def test_every_null_has_an_oracle():
    assert set(ORACLES) == {*RANKS, "spectral_entropy"}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(16, 16, None), (30, 8, None), (8, 30, None), (24, 10, 6), (5, 40, 2), (12, 9, 20)]
)
def test_drawn_spectra_follow_real_matrices(name, rows, columns, rank):
    drawn, real = drawn_values(rows, columns, rank, DRAWS), real_values(rows, columns, rank, DRAWS)
    assert drawn.shape == real.shape
    assert ks_2samp(ORACLES[name](drawn), ORACLES[name](real)).pvalue > 0.01
    # The smallest value too, which none of the metrics weighs.
    assert ks_2samp(drawn[:, -1], real[:, -1]).pvalue > 0.01


@pytest.mark.parametrize("name", ORACLES)
def test_the_test_above_can_tell_a_neighbouring_shape(name):
    drawn, real = drawn_values(17, 16, None, DRAWS), real_values(16, 16, None, DRAWS)
    assert ks_2samp(ORACLES[name](drawn), ORACLES[name](real)).pvalue < 0.01


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize(("rows", "columns"), [(700, 700), (900, 700), (700, 1400)])
def test_a_scaled_null_is_right_to_a_hundredth_of_its_distance_from_full(name, rows, columns):
    """Beside one real draw: these averages over a spectrum hardly vary."""
    null, real = spectrum_null(name, rows, columns), float(ORACLES[name](real_values(rows, columns, None, 1))[0])
    assert null.kind == "gaussian_matrix_scaled"
    full = math.log(700) if name == "spectral_entropy" else 700.0
    assert abs(null.median - real) <= 0.01 * (full - real)
    assert null.low <= null.median <= null.high


@pytest.mark.parametrize("name", ORACLES)
def test_kinds_name_the_structure_and_a_factored_null_lies_below_a_dense_one(name):
    factored, dense = spectrum_null(name, 64, 48, 8), spectrum_null(name, 64, 48)
    assert (factored.kind, dense.kind) == ("gaussian_factors", "gaussian_matrix")
    assert factored.high < dense.low
    assert factored.low < factored.median < factored.high
    assert dense.high <= (math.log(48) if name == "spectral_entropy" else 48)


@pytest.mark.parametrize("name", ORACLES)
def test_the_summary_is_the_central_95_percent_of_real_matrices(name):
    values = ORACLES[name](real_values(30, 20, None, 4000))
    null = spectrum_null(name, 30, 20)
    assert np.mean((values >= null.low) & (values <= null.high)) == pytest.approx(0.95, abs=0.05)
    assert np.mean(values <= null.median) == pytest.approx(0.5, abs=0.12)


def test_factors_of_a_huge_layer_cost_nothing():
    assert spectrum_null("nuclear_rank", 10**9, 10**8, 4).median == pytest.approx(4, rel=0.01)
    assert spectrum_null("nuclear_rank", 10**9, 4).median == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("name", ORACLES)
def test_rank_one_is_one_direction(name):
    null = spectrum_null(name, 9, 7, 1)
    assert null.low == null.high == pytest.approx(0.0 if name == "spectral_entropy" else 1.0, abs=1e-12)


def test_same_seed_same_null_other_seed_another():
    np.testing.assert_array_equal(drawn_values(9, 7, 3, 20), drawn_values(9, 7, 3, 20))
    assert spectrum_null("nuclear_rank", 9, 7, 3) is spectrum_null("nuclear_rank", 9, 7, 3)
    assert spectrum_null("nuclear_rank", 9, 7, 3) != spectrum_null("nuclear_rank", 9, 7, 3, seed=1)


def test_no_global_random_state_moves():
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    spectrum_null("effective_rank", 31, 17, 5)
    spectrum_null("effective_rank", 31, 17)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert random.getstate() == python_state


@pytest.mark.parametrize(("rows", "columns", "rank"), [(8, 0, 2), (0, 8, None), (8, 8, 0)])
def test_empty_matrices_are_refused(rows, columns, rank):
    with pytest.raises(ValueError, match=r"at least 1.*skip the empty matrix"):
        spectrum_null("nuclear_rank", rows, columns, rank)
