"""Operators against the numpy matrix that they stand for."""

import numpy as np
import pytest
import torch

from stablerank.spectral.operators import BLOCK_ENTRIES, Dense, Difference, Factored, row_blocks


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cases():
    b, a, after, before = random(9, 3), random(3, 6, seed=1), random(9, 6, seed=2), random(9, 6, seed=3)
    yield pytest.param(Dense(after), after.numpy(), id="dense")
    yield pytest.param(Factored(b, a, -0.5), -0.5 * b.numpy() @ a.numpy(), id="factored")
    yield pytest.param(Difference(after, before), after.numpy() - before.numpy(), id="difference")


@pytest.mark.parametrize(("operator", "matrix"), cases())
def test_an_operator_acts_as_its_matrix(operator, matrix):
    x, y = random(6, 4, seed=4), random(9, 4, seed=5)
    assert operator.shape == matrix.shape
    np.testing.assert_allclose(operator.matmat(x), matrix @ x.numpy(), rtol=1e-12)
    np.testing.assert_allclose(operator.rmatmat(y), matrix.T @ y.numpy(), rtol=1e-12)
    assert operator.frobenius_sq() == pytest.approx(np.linalg.norm(matrix) ** 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_products_run_in_fp32(dtype):
    matrix, x = random(40, 300).to(dtype), random(300, 2, seed=1).to(dtype)
    product = Dense(matrix).matmat(x)
    assert product.dtype == torch.float32
    np.testing.assert_allclose(product, matrix.double() @ x.double(), rtol=1e-3, atol=1e-4)
    assert Dense(matrix).frobenius_sq() == pytest.approx(matrix.double().square().sum().item(), rel=1e-12)


def test_a_difference_of_bf16_weights_is_taken_after_conversion():
    before = torch.full((2, 2), 1.0, dtype=torch.bfloat16)
    after = torch.full((2, 2), 1.0 + 1e-4, dtype=torch.float32)
    assert Difference(after, before).materialised().max().item() == pytest.approx(1e-4, rel=1e-3)


FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", [*FP8, torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rows_are_the_stored_values_exactly_in_fp32_at_least(dtype):
    matrix = random(9, 5).to(dtype)
    rows = Dense(matrix).rows(slice(2, 7))
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(rows.double(), matrix.double()[2:7])
    assert Dense(matrix).frobenius_sq() == pytest.approx(np.linalg.norm(matrix.double().numpy()) ** 2, rel=1e-12)


def test_rows_of_an_fp32_matrix_are_a_view():
    matrix = random(9, 5).float()
    assert Dense(matrix).rows(slice(2, 7)).data_ptr() == matrix[2].data_ptr()


@pytest.mark.parametrize("dtype", [*FP8, torch.bfloat16, torch.float16, torch.float32])
def test_rows_of_a_difference_err_by_one_rounding_of_the_difference_itself(dtype):
    after, before = random(9, 5).to(dtype), (random(9, 5) + 0.01 * random(9, 5, seed=1)).to(dtype)
    exact = after.double() - before.double()
    rows = Difference(after, before).rows(slice(0, 9)).double()
    assert ((rows - exact).abs() <= 2.0**-24 * exact.abs()).all()


@pytest.mark.parametrize(("operator", "matrix"), [case for case in cases() if case.id != "factored"])
def test_the_transpose_is_a_view_that_reads_as_the_transpose(operator, matrix):
    assert operator.mT.shape == matrix.shape[::-1]
    np.testing.assert_array_equal(operator.mT.rows(slice(1, 4)), matrix.T[1:4])
    np.testing.assert_array_equal(operator.mT.mT.materialised(), matrix)
    stored = operator.mT.matrix_OI if isinstance(operator, Dense) else operator.mT.after_OI
    original = operator.matrix_OI if isinstance(operator, Dense) else operator.after_OI
    assert stored.data_ptr() == original.data_ptr()


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (700, 300), (300, 700), (3, BLOCK_ENTRIES + 5), (0, 4), (4, 0)])
def test_row_blocks_read_every_row_once_in_order_and_stay_small(shape):
    matrix = random(*shape).bfloat16()
    seen = []
    # One block may overwrite the last one.
    for chosen, block in row_blocks(Dense(matrix)):
        seen += range(shape[0])[chosen]
        assert torch.equal(block, matrix[chosen].float())
        # 16 rows are the least block, however wide the matrix.
        assert block.numel() <= max(BLOCK_ENTRIES, 16 * shape[1])
    assert seen == list(range(shape[0]))


def test_a_factored_matrix_too_large_to_exist_is_measured_from_its_factors():
    b, a = random(400_000, 2).float(), random(2, 300_000, seed=1).float()
    operator = Factored(b, a, 2.0)
    gram = (b.double().T @ b.double()) * (a.double() @ a.double().T)
    assert operator.frobenius_sq() == pytest.approx(4 * gram.sum().item(), rel=1e-9)
    assert operator.matmat(torch.ones(300_000, 1)).shape == (400_000, 1)


def test_shapes_that_do_not_fit_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(2, 5\)"):
        Factored(random(4, 3), random(2, 5))
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(3, 4\)"):
        Difference(random(4, 3), random(3, 4))
    with pytest.raises(ValueError, match=r"2-D.*\(4,\)"):
        Dense(random(4))
