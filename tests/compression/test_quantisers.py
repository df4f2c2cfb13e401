"""Quantisers against scipy, kmeans1d, torch and bitsandbytes."""

from itertools import pairwise

import bitsandbytes.functional as bnb
import kmeans1d
import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

from stablerank.compression.quantisers.base import nearest
from stablerank.compression.quantisers.kmeans import SKETCH, KMeans, codebook
from stablerank.compression.quantisers.methods import QUANTISERS
from stablerank.compression.quantisers.normal_float import NormalFloat, levels
from stablerank.compression.quantisers.uniform import Affine, Symmetric

SHAPES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "heavy": lambda rng, size: rng.standard_t(3, size),
    "two humps": lambda rng, size: rng.normal(size=size) * 0.1 + rng.choice([-1, 1], size),
}


def values(shape, size, seed=0):
    drawn = SHAPES[shape](np.random.default_rng(seed), size)
    return (drawn / np.abs(drawn).max()).astype(np.float32)


def round_trip(quantiser, values_GN, bits):
    codes, side = quantiser.encode(values_GN, bits)
    assert codes.dtype == np.uint8
    assert codes.max(initial=0) < 1 << bits
    assert side.dtype == np.float16
    assert side.shape == (len(values_GN), quantiser.side_numbers(bits))
    return quantiser.decode(codes, side.astype(np.float32), bits)


def distortion(values_GN, decoded_GN):
    return float(((values_GN.astype(np.float64) - decoded_GN) ** 2).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_kmeans_has_the_distortion_of_scipys(shape, bits):
    drawn = values(shape, 3000)
    ours = distortion(drawn, round_trip(KMeans(), drawn[None], bits)[0])
    rng = np.random.default_rng(3)
    starts = [kmeans2(drawn.astype(np.float64), 1 << bits, iter=200, minit="++", rng=rng) for _ in range(30)]
    theirs = min(distortion(drawn, centres[labels]) for centres, labels in starts)
    assert ours == pytest.approx(theirs, rel=5e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [1, 3, 5, 6])
def test_kmeans_of_many_values_has_the_distortion_of_the_exact_programme(shape, bits):
    drawn = values(shape, 3 * SKETCH)
    exact = kmeans1d.cluster(drawn.astype(np.float64), 1 << bits)
    theirs = distortion(drawn, np.asarray(exact.centroids)[exact.clusters])
    assert distortion(drawn, round_trip(KMeans(), drawn[None], bits)[0]) == pytest.approx(theirs, rel=5e-3)


def test_codebooks_of_few_values_hold_them_all():
    drawn = np.array([[0.5, -1.0, 0.5, 0.25]], dtype=np.float32)
    assert np.array_equal(round_trip(KMeans(), drawn, 4), drawn)
    assert np.array_equal(codebook(drawn[0], 4), np.array([-1, 0.25, 0.5, 0.5], dtype=np.float16))
    many = np.tile(drawn[0], SKETCH)
    assert np.array_equal(codebook(many, 2), codebook(drawn[0], 2)), "weights are counts"


@pytest.mark.parametrize("bits", range(1, 9))
def test_affine_rounds_as_torch_does(bits):
    drawn = values("normal", 600).reshape(3, 200)
    codes, side = Affine().encode(drawn, bits)
    decoded = Affine().decode(codes, side.astype(np.float32), bits)
    for row, (low, step), found in zip(drawn, side.astype(np.float32), decoded, strict=True):
        shifted = torch.from_numpy(row - low)
        wanted = torch.fake_quantize_per_tensor_affine(shifted, float(step), 0, 0, (1 << bits) - 1)
        np.testing.assert_allclose(found, wanted.numpy() + low, atol=1e-6)
        assert np.abs(found - row).max() <= 0.63 * step


@pytest.mark.parametrize("bits", range(1, 9))
def test_symmetric_rounds_as_torch_does(bits):
    drawn = values("heavy", 500)[None]
    codes, side = Symmetric().encode(drawn, bits)
    found = Symmetric().decode(codes, side.astype(np.float32), bits)
    step, top = float(side[0, 0]), (1 << bits) - 1
    shifted = torch.from_numpy(drawn + step * top / 2)
    wanted = torch.fake_quantize_per_tensor_affine(shifted, step, 0, 0, top).numpy() - step * top / 2
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    if bits == 1:
        assert np.array_equal(np.sign(found), np.sign(drawn))


def test_levels_of_nf4_are_those_of_bitsandbytes():
    np.testing.assert_allclose(levels(), bnb.get_4bit_type("nf4", device="cpu").numpy(), atol=1e-6)


def test_nf4_gives_the_values_of_bitsandbytes():
    drawn = values("normal", 64 * 40).reshape(40, 64)
    # Largest magnitudes that fp16 holds, as ours are stored so.
    drawn /= np.abs(drawn).max(axis=1, keepdims=True)
    packed, state = bnb.quantize_4bit(torch.from_numpy(drawn), blocksize=64, quant_type="nf4")
    theirs = bnb.dequantize_4bit(packed, state).numpy()
    ours = round_trip(NormalFloat(), drawn, 4)
    different = ours != pytest.approx(theirs, abs=1e-6)
    assert not different
    assert distortion(drawn, ours) == pytest.approx(distortion(drawn, theirs), rel=1e-4)


@pytest.mark.parametrize("name", QUANTISERS)
def test_zeros_and_constants_stay(name):
    quantiser = QUANTISERS[name]
    for bits in quantiser.bits:
        for constant in (0.0, 0.75, -1.0):
            drawn = np.full((2, 8), constant, dtype=np.float32)
            if name == "nf4" and constant == 0.75:
                assert np.array_equal(round_trip(quantiser, drawn, bits), drawn)
            np.testing.assert_allclose(round_trip(quantiser, drawn, bits), drawn, atol=1e-3)


@pytest.mark.parametrize("name", QUANTISERS)
def test_groups_do_not_see_one_another(name):
    quantiser = QUANTISERS[name]
    bits = quantiser.bits[-1]
    drawn = values("normal", 300).reshape(3, 100) * np.array([[1.0], [0.1], [0.001]], dtype=np.float32)
    whole = round_trip(quantiser, drawn, bits)
    for row, found in zip(drawn, whole, strict=True):
        assert np.array_equal(round_trip(quantiser, row[None], bits)[0], found)


@pytest.mark.parametrize("name", ["kmeans", "affine", "symmetric"])
def test_more_bits_lose_less(name):
    drawn = values("normal", 4000)[None]
    lost = [distortion(drawn, round_trip(QUANTISERS[name], drawn, bits)) for bits in range(1, 9)]
    assert all(fewer > more for fewer, more in pairwise(lost))


def test_nearest_is_nearest():
    ladder = np.array([-1, -0.2, 0.1, 0.7], dtype=np.float32)
    drawn = values("uniform", 500)
    assert np.array_equal(nearest(drawn, ladder), np.abs(drawn[:, None] - ladder).argmin(axis=1))
