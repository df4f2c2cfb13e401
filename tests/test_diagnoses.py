"""Findings on rows that the real spectral code measured on planted matrices: each rule speaks, and stays silent."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from stablerank.diagnoses import (
    CONCENTRATED,
    OUTLYING_Z,
    diagnose,
    layer_ranges,
    module_type,
    short_names,
    three_digits,
)
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.exact import Estimate, singular_values, stable_rank_exact
from stablerank.spectral.nulls import Null, dense_null, factored_null
from stablerank.spectral.operators import Dense, Difference, Factored
from stablerank.spectral.representable import representable_fraction
from stablerank.spectral.subspace_nulls import head_energy_null
from stablerank.spectral.subspaces import head_energy, singular_subspaces
from stablerank.spectral.tail import power_law_fit

RANK, SHAPE = 8, (96, 64)
NO_NULL = Null(math.nan, math.nan, math.nan, "none")


def row(layer, module, kind, metric, estimate, null=NO_NULL):
    return GeometryRow(
        "run", 0, 0, layer, module, kind, metric, estimate.value, estimate.lower, estimate.upper, 1.0,
        estimate.status, estimate.passes, null.median, null.low, null.high, null.kind, None,
    )  # fmt: skip


def value(number, status="estimated"):
    return Estimate(number, math.nan, math.nan, 1, status)


def update(layer, decay=0.0, module="self_attn.q_proj", rank=RANK):
    """A Gaussian update of rank 8 whose columns shrink by ``exp(-decay)`` one after the other."""
    generator = torch.Generator().manual_seed(layer if layer is not None else 99)
    b_OR = torch.randn(SHAPE[0], rank, generator=generator) * torch.exp(-decay * torch.arange(rank))
    factored = Factored(b_OR, torch.randn(rank, SHAPE[1], generator=generator))
    return row(layer, module, "update", "stable_rank", stable_rank_exact(factored), factored_null(*SHAPE, rank))


def weight(layer, power, module="mlp.up_proj", seed=0):
    torch.manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, 64))[0] for size in SHAPE)
    dense = Dense(left * torch.arange(1.0, 65.0) ** -power @ right.T)
    return row(layer, module, "weight", "stable_rank", stable_rank_exact(dense), dense_null(*SHAPE))


def sentences(rows):
    return [finding.sentence for finding in diagnose(rows)]


def test_nothing_is_said_about_nothing():
    assert diagnose([]) == []
    assert diagnose([weight(layer, 0.5) for layer in range(12)]) == []


def test_rank_one_updates_are_named_with_their_layers_and_null():
    rows = [update(layer, decay=3.0) for layer in (3, 4, 5, 6, 7, 9)] + [update(1, decay=0.35)]
    (finding,) = diagnose(rows)
    null = factored_null(*SHAPE, RANK)
    assert finding.sentence.startswith("q_proj updates are rank-1-like (stable rank 1.00)")
    assert "in layers 3-7, 9; random factors of the same rank would give" in finding.sentence
    assert f"{null.median:.2f} (null {null.low:.2f} to {null.high:.2f})" in finding.sentence
    assert str(CONCENTRATED) in finding.rule and "fault" in finding.caveat and finding.severity == "note"


def test_concentrated_updates_are_told_from_rank_one_ones():
    low = factored_null(*SHAPE, RANK).low
    spread = next(update(0, decay) for decay in np.linspace(2, 0.2, 50) if update(0, decay).value > 0.45 * low)
    assert spread.upper < 0.5 * low
    assert "concentrated in few directions" in sentences([spread])[0]


def test_the_bound_decides_and_not_the_value():
    low = update(0, decay=3.0)
    assert diagnose([replace(low, status="certified")])
    assert sentences([replace(low, upper=low.null_low, status="open")])[0].startswith("The interval holds")
    assert len(diagnose([replace(low, upper=low.null_low, status="open")])) == 1
    assert diagnose([replace(low, lower=math.nan, upper=math.nan, status="estimated")]) == []


def test_random_updates_look_like_noise_and_rank_one_factors_are_not_judged():
    inside = [update(layer) for layer in range(40)]
    inside = [found for found in inside if found.null_low <= found.value <= found.null_high]
    assert len(inside) > 30
    (finding,) = diagnose(inside)
    assert "look like random noise of their structure" in finding.sentence
    assert diagnose([update(layer, rank=1) for layer in range(4)]) == []


def test_a_gaussian_weight_looks_untrained_and_a_decaying_one_does_not():
    draws = (stable_rank_exact(Dense(torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)))) for s in range(9))
    null = dense_null(*SHAPE)
    gaussian = next(found for found in draws if null.low < found.lower and found.upper < null.high)
    (finding,) = diagnose([row(None, "lm_head", "weight", "stable_rank", gaussian, null), weight(3, 0.5)])
    assert finding.sentence.startswith("lm_head weights look untrained (stable rank")
    assert "in layer" not in finding.sentence


def test_a_layer_that_stands_out_does_so_by_scipy_too():
    powers = [0.5, 0.52, 0.54, 0.56, 0.58, 0.6, 0.62, 1.6, 0.66, 0.68]
    rows = [weight(layer, power) for layer, power in enumerate(powers)]
    logs = np.log([found.value for found in rows])
    score = (logs - np.median(logs)) / median_abs_deviation(logs, scale="normal")
    assert np.flatnonzero(np.abs(score) >= OUTLYING_Z).tolist() == [7]
    (finding,) = diagnose(rows)
    assert finding.sentence.startswith("up_proj weights stand out in layer 7 (stable rank 1.17)")
    assert diagnose(rows[5:]) == [], "five layers are too few to compare"


def test_equal_layers_do_not_stand_out():
    same = [replace(weight(0, 0.5), layer=layer) for layer in range(10)]
    assert diagnose(same) == []


def test_rounding_noise_is_named_once_and_left_out_of_everything_else():
    torch.manual_seed(3)
    before = torch.randn(512, 512).bfloat16()
    scaled = before.float().norm() * 1e-4
    tiny = torch.outer(torch.randn(512), torch.randn(512))
    after = (before.float() + tiny / tiny.norm() * scaled).bfloat16()
    fraction = representable_fraction(after, before).fraction
    assert fraction < 0.5
    null = dense_null(512, 512)
    rows = [
        row(0, "mlp.up_proj", "update", "stable_rank", stable_rank_exact(Difference(after, before)), null),
        row(0, "mlp.up_proj", "update", "representable_fraction", value(fraction)),
    ]
    assert [finding.severity for finding in diagnose(rows)] == ["warning"]
    assert f"representable fraction {three_digits(fraction)}" in sentences(rows)[0]
    assert "rounding, not training: up_proj in layer 0" in sentences(rows)[0]
    assert "concentrated" in sentences(rows[:1])[0], "without the fraction the same update is read as geometry"


def test_statuses_become_sentences_and_problems_come_first():
    zero = stable_rank_exact(Factored(torch.zeros(6, 2), torch.ones(2, 5)))
    broken = stable_rank_exact(Dense(torch.full((4, 4), torch.inf)))
    rows = [
        update(8, decay=3.0),
        *(row(layer, "mlp.up_proj", "update", "stable_rank", zero) for layer in (0, 1, 2)),
        row(None, "lm_head", "weight", "stable_rank", zero),
        row(5, "mlp.up_proj", "weight", "frobenius", broken),
        row(5, "mlp.up_proj", "weight", "stable_rank", broken),
    ]
    found = diagnose(rows)
    assert [finding.severity for finding in found] == ["problem", "warning", "warning", "note"]
    assert found[0].sentence == "NaN or infinite entries: up_proj in layer 5."
    assert found[1].sentence == "Did not change at all: up_proj in layers 0-2."
    assert found[2].sentence == "All entries are zero: lm_head."


def test_a_long_list_of_places_ends_in_a_count():
    broken = stable_rank_exact(Dense(torch.full((4, 4), torch.nan)))
    rows = [row(0, f"part_{letter}", "weight", "stable_rank", broken) for letter in "abcdefghij"]
    assert sentences(rows)[0].endswith("part_f in layer 0; and 4 other module types.")


@pytest.mark.parametrize(("power", "words"), [(0.08, "above 6"), (4.0, "below 2")])
def test_tail_exponents_outside_the_healthy_range_carry_the_dispute(power, words):
    fit = power_law_fit(torch.arange(1.0, 201.0, dtype=torch.float64) ** -power)
    (finding,) = diagnose([row(2, "mlp.up_proj", "weight", "tail_exponent", value(fit.alpha, fit.status))])
    assert finding.sentence == f"up_proj has a tail exponent {words} ({three_digits(fit.alpha)}) in layer 2."
    assert finding.caveat.startswith("Contested: WeightWatcher")


def test_a_refused_tail_says_nothing():
    fit = power_law_fit(singular_values(Dense(torch.randn(20, 20))))
    assert fit.status == "refused"
    assert diagnose([row(2, "mlp.up_proj", "weight", "tail_exponent", value(fit.alpha, fit.status))]) == []


def test_head_energy_is_read_against_its_null():
    torch.manual_seed(5)
    base, k = torch.randn(96, 64), 8
    spaces = singular_subspaces(base, k)
    null = head_energy_null(96, 64, k)
    principal = spaces.u_OK @ spaces.v_IK.T
    residual = torch.randn(96, 64, dtype=torch.float64)
    avoiding = residual - residual @ spaces.v_IK @ spaces.v_IK.T
    energies = [value(head_energy(Dense(delta), spaces.v_IK)) for delta in (principal, avoiding)]
    energies.append(value(null.median))
    said = [sentences([row(1, "mlp.up_proj", "update", "head_energy", found, null)])[0] for found in energies]
    assert sentences([row(1, "mlp.up_proj", "initial", "head_energy", energies[0], null)]) == []
    assert "lie in the weight's principal directions (head energy 1.00)" in said[0]
    assert "avoid the weight's principal directions" in said[1]
    assert "are as off-principal as random ones" in said[2]


def test_experts_of_a_layer_are_one_group():
    rows = [update(2, decay=3.0, module=f"mlp.experts.{expert}.up_proj") for expert in range(3)]
    (finding,) = diagnose(rows)
    assert finding.sentence.startswith("up_proj updates are rank-1-like") and "in layer 2;" in finding.sentence


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("mlp.experts.12.up_proj", "mlp.experts.*.up_proj"),
        ("experts[3].w1", "experts[*].w1"),
        ("mlp.fc1", "mlp.fc1"),
        ("conv_2d.v2.3", "conv_2d.v2.*"),
    ],
)
def test_module_types_forget_indices_and_nothing_else(module, expected):
    assert module_type(module) == expected


NAME = st.lists(st.sampled_from(["attn", "mlp", "q", "up", "0", "7"]), min_size=1, max_size=4).map(".".join)


@given(st.lists(NAME, max_size=12))
def test_short_names_tell_types_apart_and_are_ends_of_them(modules):
    names = short_names(modules)
    assert set(names) == {module_type(module) for module in modules}
    assert len(set(names.values())) == len(names)
    assert all(whole == name or whole.endswith(f".{name}") for whole, name in names.items())


@given(st.sets(st.integers(0, 60)))
def test_layer_ranges_can_be_read_back(layers):
    read = set()
    for part in filter(None, layer_ranges(layers).split(", ")):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == layers


@given(st.floats(1e-12, 1e12))
def test_three_digits_lose_less_than_half_a_per_cent(number):
    assert float(three_digits(number)) == pytest.approx(number, rel=5.01e-3)
