"""Triplets against numpy's SVD, energies and their certificate over random spectra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablerank.spectral.energy_certificate import subspace_energy
from stablerank.spectral.top_subspace import exact_triplets, leading_triplets

RANK = 8


def planted(rows, columns, values, seed=0):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, len(values))))[0]
    return torch.from_numpy((left * values) @ right.T).float()


def product(triplets):
    return (triplets.u_OR * triplets.values_R) @ triplets.v_IR.mT


def best_energy(weight, rank):
    return np.square(np.linalg.svd(weight.double().numpy(), compute_uv=False)[:rank]).sum()


def captured(weight, v_IR):
    return np.square(weight.double().numpy() @ np.linalg.qr(v_IR.double().numpy())[0]).sum()


SPECTRA = {
    "gaussian": None,
    "flat": np.ones(150),
    "power law": np.arange(1, 151) ** -0.5,
    "decaying": 0.8 ** np.arange(150),
    "head of equal values": np.r_[np.full(12, 3.0), np.linspace(1, 0.5, 138)],
    "rank 3": np.array([3.0, 2.0, 1.0]),
    "rank 3, equal values": np.ones(3),
}


@pytest.mark.parametrize("shape", [(300, 150), (150, 300), (150, 150)])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_randomised_head_has_the_energy_of_numpys(shape, name):
    values = SPECTRA[name]
    gaussian = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight = gaussian if values is None else planted(*shape, values)
    found = leading_triplets(weight, RANK)
    best = best_energy(weight, RANK)
    assert 1 - captured(weight, found.v_IR) / best < 1e-3
    assert found.values_R.double().square().sum().item() == pytest.approx(best, rel=1e-3)
    assert (weight - product(found)).double().square().sum().item() == pytest.approx(
        max(weight.double().square().sum().item() - best, 0), rel=1e-3, abs=1e-3 * best
    )
    assert found.values_R.diff().le(0).all()


@pytest.mark.parametrize("shape", [(300, 150), (150, 300)])
def test_the_randomised_head_of_a_gapped_spectrum_is_numpys(shape):
    weight = planted(*shape, np.r_[np.linspace(9, 5, RANK), np.linspace(1, 0.1, 142)])
    u, values, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    found = leading_triplets(weight, RANK)
    np.testing.assert_allclose(found.values_R, values[:RANK], rtol=1e-4)
    np.testing.assert_allclose(product(found), (u[:, :RANK] * values[:RANK]) @ vh[:RANK], atol=1e-2)
    np.testing.assert_allclose(found.v_IR.mT @ found.v_IR, np.eye(RANK), atol=1e-5)
    np.testing.assert_allclose(found.u_OR.mT @ found.u_OR, np.eye(RANK), atol=1e-5)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (40, 40)])
@pytest.mark.parametrize("positions", [range(5), range(35, 40), range(40), torch.tensor([0, 7, 39])])
def test_exact_triplets_are_numpys(shape, positions):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    u, values, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    index = np.asarray(positions)
    found = exact_triplets(weight, positions)
    np.testing.assert_allclose(found.values_R, values[index], rtol=1e-9)
    np.testing.assert_allclose(product(found), (u[:, index] * values[index]) @ vh[index], atol=1e-9)


def test_exact_by_choice_and_on_small_matrices():
    weight = torch.randn(200, 150, generator=torch.Generator().manual_seed(3))
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(leading_triplets(weight, RANK, exact=True).values_R, values[:RANK], rtol=1e-10)
    small = weight[:20, :10]
    np.testing.assert_allclose(
        leading_triplets(small, 10).values_R, np.linalg.svd(small.double().numpy(), compute_uv=False), rtol=1e-9
    )


def test_the_head_does_not_touch_torchs_generator_and_repeats():
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(4))
    before = torch.get_rng_state()
    first, second = leading_triplets(weight, RANK), leading_triplets(weight.clone(), RANK)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.u_OR, second.u_OR) and torch.equal(first.v_IR, second.v_IR)


@pytest.mark.parametrize("rank", [1, 3, 20, 60])
def test_every_rank_finds_the_head_of_a_gaussian(rank):
    weight = torch.randn(500, 400, generator=torch.Generator().manual_seed(5))
    assert 1 - captured(weight, leading_triplets(weight, rank).v_IR) / best_energy(weight, rank) < 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_entries_whose_squares_leave_fp32_are_factorised(scale):
    weight = planted(300, 150, np.arange(1, 151) ** -0.5)
    found, scaled = leading_triplets(weight, RANK), leading_triplets(weight * scale, RANK)
    np.testing.assert_allclose(scaled.values_R / scale, found.values_R, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_point_dtype_is_taken(dtype):
    weight = planted(300, 150, np.arange(1, 151) ** -0.5).to(dtype)
    assert 1 - captured(weight, leading_triplets(weight, RANK).v_IR) / best_energy(weight, RANK) < 1e-3


def test_the_zero_matrix_has_values_of_zero():
    for weight in (torch.zeros(200, 150), torch.zeros(20, 10)):
        found = leading_triplets(weight, RANK)
        assert not found.values_R.any() and found.u_OR.isfinite().all() and found.v_IR.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_entries_that_are_not_finite_are_refused(bad):
    weight = torch.ones(30, 20)
    weight[3, 4] = bad
    for call in (lambda: leading_triplets(weight, 2), lambda: exact_triplets(weight, range(2))):
        with pytest.raises(ValueError, match="not finite"):
            call()


def test_more_triplets_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"11 singular triplets.*\(20, 10\)"):
        leading_triplets(torch.ones(20, 10), 11)


spectra = st.one_of(
    st.floats(0, 2).map(lambda exponent: np.arange(1, 121) ** -exponent),
    st.floats(0.5, 0.99).map(lambda ratio: ratio ** np.arange(120)),
    st.tuples(st.integers(1, 40), st.floats(0, 1)).map(
        lambda head: np.repeat([1.0, head[1]], [head[0], 120 - head[0]])
    ),
    st.integers(0, 10**6).map(lambda seed: np.sort(np.random.default_rng(seed).random(120))[::-1]),
)


@settings(max_examples=25, deadline=None)
@given(spectra, st.integers(1, 12), st.booleans(), st.integers(0, 100))
def test_the_certificate_holds_over_random_spectra_and_is_of_use(values, rank, is_wide, seed):
    weight = planted(*((120, 160) if is_wide else (160, 120)), values, seed)
    found = leading_triplets(weight, rank)
    best = best_energy(weight, rank)
    energy = subspace_energy(weight, found.v_IR, rtol=2e-3)
    assert energy.captured == pytest.approx(captured(weight, found.v_IR), rel=1e-9)
    assert energy.best_at_most >= best * (1 - 1e-9)
    assert energy.missed_at_most < 1e-2
    assert energy.total == pytest.approx(np.square(values).sum(), rel=1e-4)


def test_the_certificate_sees_a_subspace_that_misses_the_head():
    values = np.r_[np.full(4, 3.0), np.linspace(1, 0.1, 116)]
    weight = planted(160, 120, values)
    wrong = exact_triplets(weight, range(4, 8)).v_IR
    energy = subspace_energy(weight, wrong)
    assert energy.best_at_most >= 36 * (1 - 1e-6) and energy.missed_at_most > 0.8
    half = torch.cat((exact_triplets(weight, range(2)).v_IR, wrong[:, :2]), 1)
    assert subspace_energy(weight, half).missed_at_most > 0.4


def test_the_certificate_of_an_exact_head_is_tight_where_there_is_a_gap():
    weight = planted(160, 120, np.r_[np.linspace(9, 5, 6), np.linspace(1, 0.1, 114)])
    assert subspace_energy(weight, exact_triplets(weight, range(6)).v_IR).missed_at_most < 1e-8


def test_the_energy_of_a_basis_of_another_weight_is_refused():
    with pytest.raises(ValueError, match=r"\(30, 20\).*\(30, 3\)"):
        subspace_energy(torch.ones(30, 20), torch.ones(30, 3))


def test_the_zero_matrix_misses_nothing():
    assert subspace_energy(torch.zeros(30, 20), torch.eye(20)[:, :3]).missed_at_most == 0.0
