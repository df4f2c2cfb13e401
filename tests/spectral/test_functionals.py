"""Functionals against numpy's matrix norms, scipy's entropy and numpy's condition number, and the chain of ranks."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy

from stablerank.spectral.functionals import (
    condition_number,
    effective_rank,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    spectral_entropy,
    stable_rank,
)

BLIND_TO_ZEROS = [stable_rank, participation_ratio, nuclear_rank, effective_rank, numerical_rank, spectral_entropy]
FUNCTIONALS = [*BLIND_TO_ZEROS, condition_number]

spectra = hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(0, 1e30)).filter(lambda s: s.max() > 0)
dtypes = st.sampled_from([torch.float32, torch.float64])


def chain(values):
    rank = numerical_rank(values, rtol=0)
    ranks = [stable_rank(values), participation_ratio(values), nuclear_rank(values), effective_rank(values), rank]
    return [1.0, *(rank.item() for rank in ranks)]


def assert_ordered(links):
    for smaller, larger in pairwise(links):
        assert smaller <= larger * (1 + 1e-6), links


@settings(deadline=None, max_examples=300)
@given(spectra, dtypes)
def test_the_five_ranks_are_ordered(spectrum, dtype):
    assert_ordered(chain(torch.from_numpy(spectrum).clamp(min=1e-30).to(dtype)))
    assert_ordered(chain(torch.from_numpy(spectrum)))


@pytest.mark.parametrize("count", [1, 2, 256, 4096])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-6, 1e-3])
def test_the_chain_survives_nearly_flat_fp32_spectra(count, noise):
    generator = torch.Generator().manual_seed(count)
    values = 0.3 * (1 + noise * torch.rand(count, generator=generator))
    assert_ordered(chain(values))
    if noise == 0:
        assert chain(values)[1:] == pytest.approx([count] * 5, rel=1e-6)


@settings(deadline=None)
@given(spectra, st.floats(1e-200, 1e200), st.randoms(use_true_random=False))
def test_scale_order_and_padding_do_not_matter(spectrum, scale, random):
    values = torch.from_numpy(spectrum / spectrum.max()).clamp(min=1e-6)
    changed = values[random.sample(range(len(values)), len(values))] * scale
    assert condition_number(changed).item() == pytest.approx(condition_number(values).item(), rel=1e-9)
    changed = torch.cat((changed, torch.zeros(3, dtype=torch.float64)))
    for functional in BLIND_TO_ZEROS:
        assert functional(changed).item() == pytest.approx(functional(values).item(), rel=1e-9)


@pytest.mark.parametrize("shape", [(7, 7), (12, 5), (3, 40)])
def test_against_numpy_norms_and_scipy_entropy(shape):
    matrix = np.random.default_rng(shape[0]).standard_normal(shape)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    values = torch.from_numpy(sigma)
    frobenius, spectral, nuclear = (np.linalg.norm(matrix, kind) for kind in ("fro", 2, "nuc"))
    gram = matrix @ matrix.T
    participation = np.trace(gram) ** 2 / np.linalg.norm(gram) ** 2
    assert stable_rank(values).item() == pytest.approx(frobenius**2 / spectral**2, rel=1e-12)
    assert nuclear_rank(values).item() == pytest.approx(nuclear**2 / frobenius**2, rel=1e-12)
    assert participation_ratio(values).item() == pytest.approx(participation, rel=1e-12)
    assert effective_rank(values).item() == pytest.approx(math.exp(entropy(sigma)), rel=1e-12)
    assert spectral_entropy(values).item() == pytest.approx(entropy(sigma**2), rel=1e-12)
    assert condition_number(values).item() == pytest.approx(np.linalg.cond(matrix), rel=1e-12)


@settings(deadline=None, max_examples=200)
@given(spectra)
def test_the_entropy_of_sigma_squared_lies_between_its_neighbours(spectrum):
    values = torch.from_numpy(spectrum)
    links = [participation_ratio(values), spectral_entropy(values).exp(), effective_rank(values)]
    assert_ordered([link.item() for link in links])


def test_entropy_at_its_ends():
    assert spectral_entropy(torch.tensor([3.0, 0.0, 0.0])).item() == 0
    assert spectral_entropy(torch.full((64,), 0.7)).item() == pytest.approx(math.log(64), rel=1e-6)


def test_condition_number_of_a_singular_matrix_is_infinite_and_of_a_zero_matrix_undefined():
    values = torch.tensor([[2.0, 0.5], [2.0, 0.0], [0.0, 0.0], [2.0, math.inf]])
    assert condition_number(values)[:2].tolist() == [4.0, math.inf]
    assert condition_number(values)[2:].isnan().all()
    assert condition_number(torch.tensor([1e30, 1e-30])).item() == math.inf  # beyond fp32
    assert condition_number(torch.tensor([1e30, 1e-30], dtype=torch.float64)).item() == pytest.approx(1e60)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_numerical_rank_is_numpys_for_a_square_matrix(rank):
    rng = np.random.default_rng(rank)
    matrix = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, 8))
    values = torch.from_numpy(np.linalg.svd(matrix, compute_uv=False))
    assert numerical_rank(values).item() == np.linalg.matrix_rank(matrix) == rank
    assert numerical_rank(values, rtol=0.5).item() == np.linalg.matrix_rank(matrix, rtol=0.5)


def test_rank_at_zero_tolerance_counts_values_that_vanish_beside_the_largest():
    assert numerical_rank(torch.tensor([1e300, 1e-300, 0.0], dtype=torch.float64), rtol=0).item() == 2


@pytest.mark.parametrize("functional", FUNCTIONALS)
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_spectrum_without_a_value_gives_nan_and_spares_its_neighbours(functional, bad):
    values = torch.tensor([[3.0, 2.0, 1.0], [bad, 0.0, 0.0], [3.0, 2.0, 1.0]])
    result = functional(values)
    assert result.isnan().tolist() == [False, True, False]
    assert result[0].item() == functional(values[0]).item()


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_an_empty_spectrum_gives_nan(functional):
    assert functional(torch.empty(0)).isnan()
    assert functional(torch.empty(2, 0)).isnan().tolist() == [True, True]


@pytest.mark.parametrize("functional", FUNCTIONALS)
@pytest.mark.parametrize(
    ("given_dtype", "returned"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_widened_before_any_sum(functional, given_dtype, returned):
    values = torch.linspace(100, 60_000, 500, dtype=torch.float64).to(given_dtype)
    result = functional(values)
    assert result.dtype == returned
    assert result.item() == pytest.approx(functional(values.double()).item(), rel=1e-6)


@pytest.mark.parametrize("functional", FUNCTIONALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_exponent_range_neither_overflow_nor_vanish(functional, dtype):
    limits = torch.finfo(dtype)
    reference = functional(torch.tensor([1.0, 0.5, 0.25], dtype=dtype)).item()
    for scale in (limits.max, limits.tiny * 8):
        values = torch.tensor([1.0, 0.5, 0.25], dtype=dtype) * scale
        assert functional(values).item() == pytest.approx(reference, rel=1e-6)
