"""Every metric by name against numpy and scipy, on a weight, a pair of checkpoints and an adapter's factors."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from stablerank.errors import StablerankError
from stablerank.probes.evaluate import (
    HEAD,
    INTRUDER_COSINE,
    INTRUDERS,
    MASK_RANK,
    METRICS,
    OVERLAPS,
    PAIR,
    SPECTRUM,
    STORED_PAIR,
    TOP,
    Subject,
    check_accuracy,
    check_metrics,
    read,
)
from stablerank.spectral.operators import Dense, Difference, Factored

OUT, IN, RANK = 120, 80, 4
RTOL, DELTA = 1e-3, 1e-6
FACTORED = tuple(metric for metric in METRICS if metric not in STORED_PAIR)
STATUSES = {"exact", "certified", "open", "estimated", "refused", "zero", "non_finite", "empty"}


def weight(seed=0, dtype=torch.float32):
    """A power-law spectrum: well separated leading directions, no gap that an oracle could dispute."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(OUT, IN, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(IN, IN, generator=generator, dtype=torch.float64))
    return (u * torch.arange(1, IN + 1, dtype=torch.float64) ** -0.7 @ v.mT).to(dtype)


BASE = weight()
AFTER = BASE + 0.05 * weight(1)
FACTORS = Factored(weight(2)[:, :RANK].contiguous(), weight(3)[:RANK].contiguous(), 0.5)
DELTA_FACTORS = FACTORS.scale * FACTORS.b_OR.double().numpy() @ FACTORS.a_RI.double().numpy()
SUBJECTS = {
    "weight": (Subject(Dense(BASE)), (*TOP, *SPECTRUM)),
    "bf16 weight": (Subject(Dense(weight(4, torch.bfloat16))), (*TOP, *SPECTRUM)),
    "pair": (Subject(Difference(AFTER, BASE), BASE), METRICS),
    "adapter": (Subject(FACTORS, BASE), FACTORED),
    "adapter alone": (Subject(FACTORS), (*TOP, *SPECTRUM)),
}


def readings(subject, metrics):
    found = read(subject, metrics, rtol=RTOL, delta=DELTA)
    assert [reading.metric for reading in found] == list(metrics)
    return {reading.metric: reading for reading in found}


def values(subject, metrics):
    return {metric: reading.estimate.value for metric, reading in readings(subject, metrics).items()}


def statuses(subject, metrics):
    return {metric: reading.estimate.status for metric, reading in readings(subject, metrics).items()}


def matrix(name):
    operator = SUBJECTS[name][0].operator
    if isinstance(operator, Factored):
        return DELTA_FACTORS
    return operator.materialised().numpy()


def nonzero_spectrum(name):
    sigma = np.linalg.svd(matrix(name), compute_uv=False)
    return sigma[:RANK] if name.startswith("adapter") else sigma


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_top_of_the_spectrum(name):
    sigma, found = nonzero_spectrum(name), values(*SUBJECTS[name])
    assert found["frobenius"] == pytest.approx(np.linalg.norm(matrix(name)), rel=1e-6)
    assert found["spectral_norm"] == pytest.approx(sigma[0], rel=RTOL)
    assert found["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=RTOL)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_whole_spectrum(name):
    sigma, found = nonzero_spectrum(name), values(*SUBJECTS[name])
    energies, nuclear = sigma**2 / (sigma**2).sum(), np.linalg.norm(matrix(name), "nuc")
    assert found["nuclear_rank"] == pytest.approx((nuclear / np.linalg.norm(matrix(name))) ** 2, rel=1e-6)
    assert found["participation_ratio"] == pytest.approx(1 / (energies**2).sum(), rel=1e-6)
    assert found["spectral_entropy"] == pytest.approx(scipy.stats.entropy(energies), rel=1e-6)
    assert found["effective_rank"] == pytest.approx(math.exp(scipy.stats.entropy(sigma)), rel=1e-6)
    assert found["numerical_rank"] == np.linalg.matrix_rank(matrix(name).astype(np.float32))
    if not name.startswith("adapter"):
        assert found["condition_number"] == pytest.approx(np.linalg.cond(matrix(name)), rel=1e-6)


@pytest.mark.parametrize("name", ["pair", "adapter"])
def test_an_update_beside_its_base(name):
    found, update, base = values(*SUBJECTS[name]), matrix(name), BASE.double().numpy()
    head = RANK if name == "adapter" else HEAD
    before, after = np.linalg.svd(base), np.linalg.svd(base + update)
    u, v = before.U[:, :head], before.Vh[:head].T
    energy = np.linalg.norm(update) ** 2
    assert found["relative_norm"] == pytest.approx(np.linalg.norm(update) / np.linalg.norm(base), rel=1e-6)
    assert found["nss"] == pytest.approx(np.linalg.norm(after.S - before.S) / np.linalg.norm(base), rel=1e-6)
    assert found["head_energy"] == pytest.approx(np.linalg.norm(update @ v) ** 2 / energy, rel=1e-6)
    assert found["head_energy_two_sided"] == pytest.approx(np.linalg.norm(u.T @ update @ v) ** 2 / energy, rel=1e-6)
    angle = np.rad2deg(scipy.linalg.subspace_angles(u, after.U[:, :head]).max())
    assert found["principal_angle"] == pytest.approx(angle, rel=1e-5)
    cosines = np.abs(before.U[:, :IN].T @ after.U[:, :INTRUDERS]).max(0)
    assert found["intruder_dimensions"] == (cosines < INTRUDER_COSINE).sum()


def test_a_strong_random_update_has_intruders():
    """So that the agreement above is not one of zeros."""
    update = Difference(BASE + 20 * FACTORS.matmat(torch.eye(IN)), BASE)
    assert values(Subject(update, BASE), ["intruder_dimensions"])["intruder_dimensions"] > 0


def test_metrics_of_storage():
    after = BASE.clone()
    after[: OUT // 4] *= 1.5
    found = values(Subject(Difference(after, BASE), BASE), STORED_PAIR)
    assert found["sparsity"] == pytest.approx(0.75)
    assert found["representable_fraction"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overlaps_of_the_entries_that_moved(dtype):
    before, after = BASE.to(dtype), AFTER.to(dtype)
    after[: OUT // 2] = before[: OUT // 2]
    after[-1] = before[-1].double() * (1 + 1e-5)  # too little for bf16, so not moved
    found = readings(Subject(Difference(after, before), before), OVERLAPS)
    moved = (after.bfloat16() != before.bfloat16()).numpy()
    assert not moved[-1].any()
    base = before.double().numpy()
    u, sigma, vh = np.linalg.svd(base)
    head = np.abs(u[:, :MASK_RANK] * sigma[:MASK_RANK] @ vh[:MASK_RANK])
    masks = {
        "principal_overlap": head >= np.median(head),
        "low_magnitude_overlap": np.abs(base) <= np.median(np.abs(base)),
    }
    for metric, mask in masks.items():
        drawn = scipy.stats.hypergeom(moved.size, mask.sum(), moved.sum())
        assert found[metric].estimate.value == pytest.approx(mask[moved].mean(), abs=2 / moved.sum())
        assert found[metric].null.kind == "random_mask"
        assert found[metric].null.median == pytest.approx(drawn.median() / moved.sum(), abs=2 / moved.sum())
        assert found[metric].null.low < found[metric].null.median < found[metric].null.high


def test_an_update_of_the_head_and_one_of_small_entries_are_told_apart():
    base = weight(5)
    head = torch.linalg.svd(base, full_matrices=False)
    large = (head.U[:, :1] @ head.Vh[:1]).abs() > 0.02
    small = base.abs() < 0.003
    for moved, above, below in ((large, *OVERLAPS), (small, *reversed(OVERLAPS))):
        found = readings(Subject(Difference(base + moved * 0.1, base), base), OVERLAPS)
        assert found[above].estimate.value > found[above].null.high
        assert found[below].estimate.value < found[below].null.low


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_reading_has_a_status_and_a_value_inside_its_bounds(name):
    for reading in readings(*SUBJECTS[name]).values():
        estimate = reading.estimate
        assert estimate.status in STATUSES
        if estimate.status in ("exact", "certified", "open"):
            assert estimate.lower <= estimate.value <= estimate.upper
        elif estimate.status == "estimated":
            assert math.isfinite(estimate.value) and math.isnan(estimate.lower)
        else:
            assert math.isnan(estimate.value)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_null_has_the_structure_of_the_update(name):
    kind = "gaussian_factors" if name.startswith("adapter") else "gaussian_matrix"
    found = readings(*SUBJECTS[name])
    for metric in ("stable_rank", "nuclear_rank", "spectral_entropy"):
        null = found[metric].null
        assert null.kind.startswith(kind)
        assert null.low <= null.median <= null.high
    assert found["frobenius"].null.kind == "none"


def test_the_tail_is_refused_where_there_are_too_few_values():
    assert statuses(*SUBJECTS["adapter"])["tail_exponent"] == "refused"
    assert statuses(*SUBJECTS["weight"])["tail_exponent"] == "estimated"


def test_an_update_of_zero():
    subject = Subject(Difference(BASE, BASE), BASE)
    for metric, reading in readings(subject, METRICS).items():
        if metric in ("frobenius", "spectral_norm", "relative_norm"):
            assert (reading.estimate.value, reading.estimate.status) == (0.0, "exact")
        else:
            assert reading.estimate.status == "zero", metric
            assert math.isnan(reading.estimate.value)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_an_update_that_is_not_finite(spoilt):
    after = AFTER.clone()
    after[3, 4] = spoilt
    assert set(statuses(Subject(Difference(after, BASE), BASE), METRICS).values()) == {"non_finite"}


NEEDS_BASE = tuple(metric for metric in PAIR if metric not in STORED_PAIR)


@pytest.mark.parametrize(("base", "status"), [(torch.zeros_like(BASE), "refused"), (BASE * math.nan, "non_finite")])
def test_a_base_that_nothing_can_be_relative_to(base, status):
    subject = Subject(FACTORS, base)
    assert set(statuses(subject, NEEDS_BASE).values()) == {status}
    assert all(math.isnan(value) for value in values(subject, NEEDS_BASE).values())
    assert statuses(subject, ["stable_rank"]) == {"stable_rank": "exact"}


def test_fp8_weights_and_bases():
    after, base = AFTER.to(torch.float8_e4m3fn), BASE.to(torch.float8_e4m3fn)
    update = after.double().numpy() - base.double().numpy()
    found = values(Subject(Difference(after, base), base), METRICS)
    assert found["stable_rank"] == pytest.approx((np.linalg.norm(update) / np.linalg.norm(update, 2)) ** 2, rel=RTOL)
    relative = np.linalg.norm(update) / np.linalg.norm(base.double().numpy())
    assert found["relative_norm"] == pytest.approx(relative, rel=1e-6)


KNOWN = {"update": True, "base": True, "stored": True}


def test_metrics_asked_twice_are_measured_once():
    assert check_metrics(["nss", "stable_rank", "nss"], **KNOWN) == ("nss", "stable_rank")
    assert check_metrics(METRICS, **KNOWN) == METRICS


@pytest.mark.parametrize(
    ("names", "known", "words"),
    [
        ([], {}, ["No metric is named", "stable_rank", "principal_angle"]),
        (["stable_rnak"], {}, ["'stable_rnak'", "stable_rank", "principal_angle"]),
        (["nss"], {"update": False, "base": False}, ["nss", "--against"]),
        (["head_energy"], {"base": False, "stored": False}, ["head_energy", "--against"]),
        (["sparsity"], {"stored": False}, ["sparsity", "not an adapter"]),
        (["sparsity"], {"base": False, "stored": False}, ["sparsity", "not an adapter"]),
        (["principal_overlap"], {"stored": False}, ["principal_overlap", "not an adapter"]),
    ],
)
def test_metrics_that_this_input_cannot_have(names, known, words):
    with pytest.raises(StablerankError) as error:
        check_metrics(names, **{**KNOWN, **known})
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence
    assert all(word in sentence for word in words)


@pytest.mark.parametrize(
    ("rtol", "delta", "words"),
    [(0, 1e-6, "rtol is 0"), (1.0, 1e-6, "rtol is 1.0"), (math.nan, 1e-6, "rtol is nan"), (1e-3, 0.9, "delta is 0.9")],
)
def test_an_accuracy_that_the_solver_refuses(rtol, delta, words):
    with pytest.raises(StablerankError, match=words):
        check_accuracy(rtol, delta)
    check_accuracy(RTOL, DELTA)
