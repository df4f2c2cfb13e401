"""Block Lanczos against the eigenvalues of the Gram matrix, and its random start against the law it must follow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orth
from scipy.stats import beta, kstest, ortho_group

from stablerank.spectral.lanczos import BlockLanczos, gram_product, random_start
from stablerank.spectral.operators import Dense, Difference

seeds = st.integers(0, 2**31)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def gram(matrix):
    """The Gram matrix of the shorter side, by numpy in fp64."""
    matrix = matrix.double().numpy()
    return matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T


def started(matrix, *, width, steps, seed=0):
    start = random_start(width, min(matrix.shape), seed=seed, like=Dense(matrix).rows(slice(0, 1)))
    run = BlockLanczos(Dense(matrix), start, steps)
    for _ in range(steps):
        run.step()
    return run, start


@pytest.mark.parametrize("shape", [(700, 300), (300, 700), (40, 40), (1, 9), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_gram_product_is_that_of_numpy(shape, dtype):
    matrix = random(*shape).to(dtype)
    x = random(3, min(shape), seed=1).to(Dense(matrix).rows(slice(0, 1)))
    expected = x.double().numpy() @ gram(matrix)
    scale = np.abs(expected).max()
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(gram_product(Dense(matrix), x), expected, atol=tolerance * scale)


def test_a_gram_product_with_a_difference_is_that_of_the_difference():
    after, before, x = random(50, 20), random(50, 20, seed=1), random(2, 20, seed=2)
    expected = x.numpy() @ gram(after - before)
    np.testing.assert_allclose(gram_product(Difference(after, before), x), expected, rtol=1e-10)


@settings(deadline=None, max_examples=40)
@given(st.integers(12, 40), st.integers(12, 40), st.integers(1, 3), st.integers(1, 3), seeds)
def test_ritz_values_are_those_of_the_krylov_space(rows, columns, width, steps, seed):
    matrix = random(rows, columns, seed=seed)
    run, start = started(matrix, width=width, steps=steps, seed=seed)
    gram_KK, block_KB = gram(matrix), start.numpy().T
    # Scaled powers, so that scipy's orth sees no tiny direction.
    krylov_KN = orth(np.hstack([np.linalg.matrix_power(gram_KK / rows, p) @ block_KB for p in range(steps)]))
    expected = np.linalg.eigvalsh(krylov_KN.T @ gram_KK @ krylov_KN)
    tridiagonal, defect = run.tridiagonal()
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal.numpy()), expected, rtol=1e-9, atol=1e-9 * expected[-1])
    assert 0 <= defect <= 1e-12 * expected[-1]
    assert run.steps == steps


@pytest.mark.parametrize("width", [1, 2, 8])
def test_ritz_values_rise_to_the_top_and_never_pass_it(width):
    matrix = random(90, 64)
    top, before = np.linalg.norm(matrix.numpy(), 2) ** 2, 0.0
    run = BlockLanczos(Dense(matrix), random_start(width, 64, seed=0, like=matrix), 64 // width - 1)
    while run.steps < run.capacity:
        run.step()
        ritz = np.linalg.eigvalsh(run.tridiagonal()[0].numpy())[-1]
        assert before * (1 - 1e-14) <= ritz <= top * (1 + 1e-14)
        before = ritz
    assert before == pytest.approx(top, rel=1e-6)


def test_the_tridiagonal_has_its_shape_and_only_lies_where_it_may():
    run, _ = started(random(60, 50), width=4, steps=5)
    tridiagonal = run.tridiagonal()[0].numpy()
    assert tridiagonal.shape == (20, 20)
    np.testing.assert_array_equal(tridiagonal, tridiagonal.T)
    block = np.arange(20) // 4
    assert not tridiagonal[np.abs(block[:, None] - block) > 1].any()
    for step in range(4):
        here, after = slice(4 * step, 4 * step + 4), slice(4 * step + 4, 4 * step + 8)
        np.testing.assert_allclose(tridiagonal[here, after], run.coupling[step])


@pytest.mark.parametrize("rank", [1, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_exhausted_space_couples_to_nothing_and_holds_the_whole_spectrum(rank, dtype):
    matrix = (random(70, rank) @ random(rank, 50, seed=1)).to(dtype)
    run, _ = started(matrix, width=4, steps=5)
    values = np.linalg.eigvalsh(run.tridiagonal()[0].numpy())[::-1]
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    resolution = 50 * torch.finfo(dtype).eps * expected[0]
    np.testing.assert_allclose(values[:rank], expected[:rank], rtol=1e-4, atol=resolution)
    assert run.coupling[-1].abs().max() <= resolution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["rank one", "rank five", "flat", "ones", "one row"])
def test_going_on_after_exhaustion_does_no_harm(kind, dtype):
    """What is left of an exhausted direction is noise: unless it is made orthogonal, the Ritz value runs away."""
    matrix = {
        "rank one": random(400, 1) @ random(1, 300, seed=1),
        "rank five": random(400, 5) @ random(5, 300, seed=1),
        "flat": torch.from_numpy(ortho_group.rvs(300, random_state=0)),
        "ones": torch.ones(400, 300),
        "one row": torch.zeros(400, 300).index_fill(0, torch.tensor([7]), 1.0),
    }[kind].to(dtype)
    run, _ = started(matrix, width=8, steps=14)
    tridiagonal, defect = run.tridiagonal()
    top, eps = np.linalg.norm(matrix.double().numpy(), 2) ** 2, torch.finfo(dtype).eps
    assert np.linalg.eigvalsh(tridiagonal.numpy())[-1] == pytest.approx(top, rel=20 * eps)
    assert defect <= 20 * eps * top


def test_repeated_values_are_found_at_once():
    run, _ = started(torch.from_numpy(3 * ortho_group.rvs(40, random_state=0)), width=2, steps=3)
    np.testing.assert_allclose(np.linalg.eigvalsh(run.tridiagonal()[0].numpy()), 9.0, rtol=1e-12)


def test_the_operator_is_left_as_it_was():
    matrix = random(30, 20)
    before = matrix.clone()
    started(matrix, width=2, steps=4)
    assert torch.equal(matrix, before)


def test_a_random_start_is_orthonormal_seeded_and_leaves_the_global_generator():
    state, like = torch.get_rng_state(), torch.empty(0)
    block = random_start(8, 100, seed=5, like=like)
    assert (block.shape, block.dtype) == ((8, 100), torch.float32)
    np.testing.assert_allclose(block @ block.mT, np.eye(8), atol=1e-6)
    assert torch.equal(block, random_start(8, 100, seed=5, like=like))
    assert not torch.equal(block, random_start(8, 100, seed=6, like=like))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("direction", ["axis", "diagonal"])
def test_a_random_start_overlaps_with_any_direction_as_the_beta_law_says(width, direction):
    size = 40
    x = np.eye(size)[0] if direction == "axis" else np.full(size, size**-0.5)
    like = torch.empty(0, dtype=torch.float64)
    overlaps = [np.sum((random_start(width, size, seed=seed, like=like).numpy() @ x) ** 2) for seed in range(2000)]
    assert kstest(overlaps, beta(width / 2, (size - width) / 2).cdf).pvalue > 0.01
    assert kstest(overlaps, beta(width / 2, (size - width) / 2 - 4).cdf).pvalue < 0.01, "the test can tell"
