"""Nulls against the matrices they stand for, drawn and decomposed in full, by two-sample Kolmogorov-Smirnov tests."""

import random

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from stablerank.spectral.nulls import dense_draws, dense_null, factored_draws, factored_null

DRAWS = 4000


def stable_ranks(matrices):
    sigma = np.linalg.svd(matrices, compute_uv=False)
    return (sigma**2).sum(-1) / sigma[:, 0] ** 2


@pytest.mark.parametrize(("rows", "columns", "rank"), [(24, 10, 6), (8, 8, 8), (5, 40, 2), (3, 12, 7), (1, 6, 3)])
def test_factored_draws_follow_real_gaussian_factors(rows, columns, rank):
    rng = np.random.default_rng(1)
    products = rng.standard_normal((DRAWS, rows, rank)) @ rng.standard_normal((DRAWS, rank, columns))
    drawn = factored_draws(rows, columns, rank, draws=DRAWS, seed=2)
    if rows == 1:
        np.testing.assert_allclose(drawn, 1.0)
    else:
        assert ks_2samp(drawn, stable_ranks(products)).pvalue > 0.01


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (30, 8), (8, 30), (40, 2)])
def test_dense_draws_follow_real_gaussian_matrices(rows, columns):
    gaussian = np.random.default_rng(1).standard_normal((DRAWS, rows, columns))
    assert ks_2samp(dense_draws(rows, columns, draws=DRAWS, seed=2), stable_ranks(gaussian)).pvalue > 0.01


def test_the_test_above_can_tell_a_neighbouring_shape():
    gaussian = np.random.default_rng(1).standard_normal((DRAWS, 16, 16))
    assert ks_2samp(dense_draws(17, 16, draws=DRAWS, seed=2), stable_ranks(gaussian)).pvalue < 0.01


@pytest.mark.parametrize("null", [factored_null(64, 48, 8), dense_null(64, 48)])
def test_median_and_limits_are_ordered_and_possible(null):
    assert 1 <= null.low < null.median < null.high <= 48


def test_summary_is_the_central_95_percent():
    drawn = factored_draws(64, 48, 8, draws=200, seed=5)
    null = factored_null(64, 48, 8, draws=200, seed=5)
    assert null.median == pytest.approx(np.median(drawn))
    assert np.mean((drawn >= null.low) & (drawn <= null.high)) == pytest.approx(0.95, abs=0.01)


def test_kinds_name_the_structure_and_a_factored_null_lies_below_a_dense_one():
    factored, dense = factored_null(64, 48, 8), dense_null(64, 48)
    assert (factored.kind, dense.kind) == ("gaussian_factors", "gaussian_matrix")
    assert factored.high < dense.low


def test_rank_one_and_one_row_have_stable_rank_one():
    assert factored_null(9, 7, 1).low == factored_null(9, 7, 1).high == pytest.approx(1.0)
    assert dense_null(1, 7).low == dense_null(1, 7).high == pytest.approx(1.0)


def test_cost_does_not_grow_with_the_outer_shape():
    assert factored_null(10**9, 10**8, 4).median == pytest.approx(4, rel=0.01)
    assert dense_null(10**9, 4).median == pytest.approx(4, rel=0.01)


def test_same_seed_same_null_other_seed_another():
    assert factored_draws(9, 7, 3, draws=20, seed=0).tolist() == factored_draws(9, 7, 3, draws=20, seed=0).tolist()
    assert factored_null(9, 7, 3, seed=0) is factored_null(9, 7, 3, seed=0)
    assert factored_null(9, 7, 3, seed=0) != factored_null(9, 7, 3, seed=1)


def test_no_global_random_state_moves():
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    factored_null(31, 17, 5)
    dense_null(31, 17)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])
    assert random.getstate() == python_state


def test_too_few_draws_and_empty_matrices_are_refused():
    with pytest.raises(ValueError, match=r"at least 20 draws.*draws=19"):
        dense_null(8, 8, draws=19)
    with pytest.raises(ValueError, match=r"at least 1.*\(8, 0, 2\)"):
        factored_null(8, 0, 2)
