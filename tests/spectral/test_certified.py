"""The certified stable rank against numpy's SVD, in fp64, of the values that are stored."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from stablerank.spectral import certified
from stablerank.spectral.certified import stable_rank_certified, top_of_spectrum
from stablerank.spectral.operators import Dense, Difference, Factored

RTOL = 1e-3
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)


def with_values(values, rows, columns, seed=0):
    """Random orthonormal frames around these singular values, as many as given."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (rows, columns))
    return (left * values) @ right.T


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def decaying(rows, columns, power):
    return with_values(np.arange(1, min(rows, columns) + 1) ** -power, rows, columns)


def tops(rows, columns, *values):
    """These values above a power law that starts at half."""
    tail = 0.5 * np.arange(1, min(rows, columns) - len(values) + 1) ** -0.5
    return with_values(np.concatenate((values, tail)), rows, columns)


SPECTRA = {
    "flat": lambda m, n: with_values(np.ones(min(m, n)), m, n),
    "power law": lambda m, n: decaying(m, n, 1.0),
    "slow power law": lambda m, n: decaying(m, n, 0.3),
    "spiked": lambda m, n: gaussian(m, n) + 5 * math.sqrt(m) * with_values(np.ones(1), m, n),
    "rank one": lambda m, n: with_values(np.ones(1), m, n),
    "rank deficient": lambda m, n: with_values(np.arange(5.0, 0, -1), m, n),
    "clustered top": lambda m, n: tops(m, n, *(1 + 1e-5 * np.arange(6))),
    "two near-equal tops": lambda m, n: tops(m, n, 1.0, 1 - 1e-4),
    "gaussian": gaussian,
    "all positive": lambda m, n: np.random.default_rng(0).uniform(size=(m, n)),
}


def numpy_stable_rank(matrix):
    sigma = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    return float((sigma**2).sum() / sigma[0] ** 2)


def check(estimate, truth, rtol=RTOL):
    """The value within rtol and the truth, but for numpy's own rounding, in the interval."""
    assert estimate.status in ("exact", "certified")
    assert estimate.passes > 0
    assert estimate.value == pytest.approx(truth, rel=rtol)
    assert estimate.lower * (1 - 1e-13) <= truth <= estimate.upper * (1 + 1e-13)
    assert 1 <= estimate.lower <= estimate.value
    # Rounding in fp32 widens the upper side.
    assert estimate.upper <= (1 + rtol) * (1 + 2e-4) * estimate.lower


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(400, 150), (150, 400), (220, 220), (90, 60)], ids=str)
def test_the_value_is_within_rtol_and_the_truth_in_the_interval(spectrum, shape):
    matrix = SPECTRA[spectrum](*shape)
    # The range of fp8 ends at 448 and its resolution at 2^-9.
    matrix = torch.from_numpy(matrix * 200 / np.abs(matrix).max())
    for dtype in DTYPES:
        stored = matrix.to(dtype)
        check(stable_rank_certified(Dense(stored)), numpy_stable_rank(stored))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("rtol", "delta"), [(1e-4, 1e-6), (0.05, 0.01), (0.5, 1e-12)])
def test_any_accuracy_and_probability_in_range_may_be_asked_for(spectrum, rtol, delta):
    matrix = torch.from_numpy(SPECTRA[spectrum](300, 200)).float()
    estimate = stable_rank_certified(Dense(matrix), rtol=rtol, delta=delta)
    check(estimate, numpy_stable_rank(matrix), rtol)


def test_easy_spectra_are_certified_without_a_decomposition():
    easy = ("power law", "spiked", "rank one", "rank deficient", "two near-equal tops", "all positive")
    found = [top_of_spectrum(Dense(torch.from_numpy(SPECTRA[name](400, 300)).float())) for name in easy]
    assert [top.status for top in found] == ["certified"] * len(easy)
    assert max(top.passes for top in found) <= 12


def test_a_top_holds_both_norms_with_their_intervals():
    for shape in ((400, 150), (90, 60)):
        matrix = torch.from_numpy(SPECTRA["spiked"](*shape)).float()
        top, double = top_of_spectrum(Dense(matrix)), matrix.double().numpy()
        for estimate, truth in (
            (top.spectral_norm(), np.linalg.norm(double, 2)),
            (top.frobenius_norm(), np.linalg.norm(double)),
        ):
            assert estimate.lower <= truth <= estimate.upper
            assert estimate.value == pytest.approx(truth, rel=RTOL)


@pytest.mark.parametrize("spectrum", ["flat", "gaussian", "power law", "two near-equal tops"])
def test_wide_and_tall_give_the_same_answer(spectrum):
    matrix = torch.from_numpy(SPECTRA[spectrum](350, 140)).float()
    tall, wide = stable_rank_certified(Dense(matrix)), stable_rank_certified(Dense(matrix.mT.contiguous()))
    assert wide.value == pytest.approx(tall.value, rel=1e-5)
    assert wide.status == tall.status


@pytest.mark.parametrize("shape", [(350, 140), (140, 350), (80, 50)])
def test_layout_in_memory_does_not_matter(shape):
    matrix = torch.from_numpy(SPECTRA["power law"](*shape)).float()
    spread = torch.zeros(2 * shape[0], 3 * shape[1])[::2, ::3]
    spread.copy_(matrix)
    expected = stable_rank_certified(Dense(matrix)).value
    for same in (spread, matrix.mT.contiguous().mT):
        assert not same.is_contiguous()
        assert stable_rank_certified(Dense(same)).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(350, 140), (140, 350), (80, 50)])
def test_a_power_of_two_changes_no_bit(shape):
    matrix = torch.from_numpy(SPECTRA["power law"](*shape)).float()
    assert stable_rank_certified(Dense(matrix * 2.0**10)) == stable_rank_certified(Dense(matrix))
    assert stable_rank_certified(Dense(matrix * 2.0**-10)) == stable_rank_certified(Dense(matrix))


def test_rotations_leave_the_answer_within_its_accuracy():
    matrix = SPECTRA["power law"](160, 120)
    turned = ortho_group.rvs(160, random_state=0) @ matrix @ ortho_group.rvs(120, random_state=1)
    truth = numpy_stable_rank(torch.from_numpy(matrix))
    check(stable_rank_certified(Dense(torch.from_numpy(turned))), truth)


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e-300, 1e30, 1e-30])
@pytest.mark.parametrize("shape", [(150, 110), (40, 30)])
def test_no_scale_is_too_large_or_too_small(scale, shape):
    dtype = torch.float64 if not 1e-40 < scale < 1e40 else torch.float32
    matrix = torch.from_numpy(scale * SPECTRA["power law"](*shape)).to(dtype)
    unscaled = matrix.double().numpy() / scale
    top, norm = top_of_spectrum(Dense(matrix)), np.linalg.norm(unscaled) * scale
    check(top.stable_rank(), numpy_stable_rank(torch.from_numpy(unscaled)))
    assert top.frobenius_norm().lower <= norm <= top.frobenius_norm().upper


def orthogonal(size):
    return torch.from_numpy(ortho_group.rvs(size, random_state=0)).float()


@pytest.mark.parametrize(
    ("matrix", "truth"),
    [
        (torch.outer(torch.arange(1.0, 301.0), torch.arange(1.0, 201.0)), 1.0),
        (torch.arange(1.0, 1001.0)[None], 1.0),
        (torch.arange(1.0, 1001.0)[:, None], 1.0),
        (torch.tensor([[-2.5]]), 1.0),
        (torch.ones(300, 200), 1.0),
        (torch.eye(300), 300.0),
        (3 * torch.eye(50, 90), 50.0),
        (orthogonal(250), 250.0),
        (torch.diag(torch.tensor([2.0, 2.0] + [1.0] * 200)), 52.0),
        (torch.zeros(300, 200).index_fill(0, torch.tensor([7]), 1.0), 1.0),
    ],
    ids=["rank one", "row", "column", "one entry", "ones", "identity", "wide identity", "rotation", "pair", "lone row"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_matrices_whose_stable_rank_is_known(matrix, truth, dtype):
    stored = matrix.to(dtype)
    estimate = stable_rank_certified(Dense(stored))
    check(estimate, numpy_stable_rank(stored))
    # Storage in bf16 moves the rotation and the ramps a little.
    assert estimate.value == pytest.approx(truth, rel=0.01 if dtype == torch.bfloat16 else RTOL)


def spoiled(shape, value, dtype=torch.float32):
    matrix = torch.ones(shape)
    matrix[shape[0] // 2, -1] = value
    return Dense(matrix.to(dtype))


@pytest.mark.parametrize(
    ("operator", "status"),
    [
        (Dense(torch.zeros(300, 200)), "zero"),
        (Dense(torch.zeros(3, 4)), "zero"),
        (Difference(torch.ones(300, 200), torch.ones(300, 200)), "zero"),
        (Difference(torch.ones(3, 200).bfloat16(), torch.ones(3, 200)), "zero"),
        (Factored(torch.zeros(300, 2), torch.ones(2, 200)), "zero"),
        (spoiled((300, 200), math.nan), "non_finite"),
        (spoiled((300, 200), math.inf), "non_finite"),
        (spoiled((30, 20), -math.inf), "non_finite"),
        (spoiled((300, 200), math.nan, torch.float8_e4m3fn), "non_finite"),
        (spoiled((300, 200), math.nan, torch.bfloat16), "non_finite"),
        (Factored(torch.full((3, 2), math.nan), torch.ones(2, 4)), "non_finite"),
        (Difference(torch.full((3, 2), math.inf), torch.full((3, 2), math.inf)), "non_finite"),
        (Dense(torch.empty(0, 200)), "empty"),
        (Dense(torch.empty(200, 0)), "empty"),
        (Factored(torch.empty(3, 0), torch.empty(0, 4)), "empty"),
    ],
)
def test_a_matrix_without_a_stable_rank_says_why(operator, status):
    top = top_of_spectrum(operator)
    estimate = top.stable_rank()
    assert estimate.status == status
    assert all(map(math.isnan, (estimate.value, estimate.lower, estimate.upper)))
    norms = top.frobenius_norm(), top.spectral_norm()
    if status == "zero":
        assert all((norm.value, norm.lower, norm.upper, norm.status) == (0.0, 0.0, 0.0, "exact") for norm in norms)
    else:
        assert all(math.isnan(norm.value) and norm.status == status for norm in norms)


def test_factors_that_cancel_are_zero_within_bounds_that_hold_the_truth():
    left, right = torch.from_numpy(gaussian(60, 1)), torch.from_numpy(gaussian(1, 50))
    top = top_of_spectrum(Factored(torch.cat((left, left), dim=1), torch.cat((right, -right))))
    assert top.stable_rank().status == "zero"
    for norm in (top.frobenius_norm(), top.spectral_norm()):
        assert norm.lower == 0.0 < norm.upper < 1e-8
        assert norm.lower <= norm.value <= norm.upper


def test_an_unchanged_weight_is_not_decomposed(monkeypatch):
    monkeypatch.delattr(torch.linalg, "svdvals")
    same = torch.ones(300, 200)
    assert stable_rank_certified(Difference(same, same.clone())).status == "zero"


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), (40, 60)])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])
def test_a_difference_is_measured_after_conversion(rows, columns, dtypes):
    before = torch.from_numpy(gaussian(rows, columns))
    after = before + 0.05 * torch.from_numpy(SPECTRA["power law"](rows, columns))
    after, before = after.to(dtypes[0]), before.to(dtypes[1])
    check(stable_rank_certified(Difference(after, before)), numpy_stable_rank(after.double() - before.double()))


@pytest.mark.parametrize("rank", [1, 2, 8, 32])
@pytest.mark.parametrize("shape", [(70, 40), (40, 70), (300, 200), (20, 25)])
@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-6, 1e8])
def test_factored_equals_dense_to_ten_digits(rank, shape, scale):
    b, a = gaussian(shape[0], rank), gaussian(rank, shape[1], seed=1)
    estimate = stable_rank_certified(Factored(torch.from_numpy(b), torch.from_numpy(a), scale))
    truth = numpy_stable_rank(torch.from_numpy(scale * b @ a))
    check(estimate, truth, rtol=1e-10)


def test_same_seed_same_bits_and_another_seed_the_same_within_rtol():
    operator = Dense(torch.from_numpy(gaussian(400, 300)).float())
    first = top_of_spectrum(operator, rtol=0.05, seed=3)
    assert first == top_of_spectrum(operator, rtol=0.05, seed=3)
    other = top_of_spectrum(operator, rtol=0.05, seed=4)
    assert first.status == other.status == "certified"
    assert first != other
    assert first.stable_rank().value == pytest.approx(other.stable_rank().value, rel=0.05)


@pytest.mark.parametrize("width", [1, 2, 4, 16])
def test_any_block_width_gives_an_interval_that_holds(width):
    matrix = torch.from_numpy(SPECTRA["spiked"](300, 200))
    check(top_of_spectrum(Dense(matrix), width=width).stable_rank(), numpy_stable_rank(matrix))


def test_neither_the_matrix_nor_the_global_generator_moves():
    matrix = torch.from_numpy(SPECTRA["gaussian"](300, 200))
    before, state = matrix.clone(), torch.get_rng_state()
    stable_rank_certified(Dense(matrix))
    assert torch.equal(matrix, before)
    assert torch.equal(torch.get_rng_state(), state)


class Counted(Dense):
    """Counts the rows that are read."""

    read = 0

    def rows(self, chosen, *buffer):
        # One row alone is read to learn the dtype.
        if chosen != slice(0, 1):
            Counted.read += len(range(self.shape[0])[chosen])
        return super().rows(chosen, *buffer)


def test_passes_are_counted():
    matrix = torch.from_numpy(SPECTRA["spiked"](300, 200)).float()
    tall = matrix.repeat(80, 1)
    Counted.read = 0
    estimate = stable_rank_certified(Counted(tall))
    assert estimate.status == "certified"
    assert Counted.read == estimate.passes * len(tall)


def test_a_matrix_too_large_to_decompose_stays_open_with_an_interval_that_holds(monkeypatch):
    monkeypatch.setattr(certified, "LARGEST_GRAM", 0)
    matrix = torch.from_numpy(gaussian(130, 120))
    estimate = stable_rank_certified(Dense(matrix))
    assert estimate.status == "open"
    assert estimate.lower <= numpy_stable_rank(matrix) <= estimate.upper
    assert RTOL < estimate.value / estimate.lower - 1 < 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("rtol", 1e-5), ("rtol", 1.0), ("rtol", math.nan), ("delta", 0.0), ("delta", 0.5), ("delta", -1.0)],
)
def test_settings_outside_their_range_are_refused_with_the_range(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*must lie in \["):
        stable_rank_certified(Dense(torch.eye(200)), **{name: value})
