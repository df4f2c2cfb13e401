"""Updates against the weights they change: numpy's SVD of the dense matrices is the oracle."""

import math

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from stablerank.errors import ModelError
from stablerank.peft import SpectralLoraConfig
from stablerank.probes.alignment import base_head
from stablerank.probes.updates import (
    adapter_updates,
    base_heads,
    first_products,
    full_updates,
    measure_updates,
    snapshot,
)
from stablerank.spectral.subspace_nulls import head_energy_null, head_energy_two_sided_null

RANK, HEAD = 3, 4
METHODS = {
    "lora": {},
    "dora": {"use_dora": True},
    "pissa": {"spectral": {"method": "pissa", "svd": "exact"}},
    "polar": {"spectral": {"method": "polar"}},
    "sinelora": {"spectral": {"method": "sinelora", "omega": 30.0}},
}
METRICS = ("relative_norm", "head_energy", "head_energy_two_sided", *(f"alignment_{k}" for k in range(1, HEAD + 1)))


def network():
    """Well separated singular values, no gap that an oracle could dispute."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24))
    with torch.no_grad():
        for layer in model:
            u, _, vh = torch.linalg.svd(torch.randn(layer.weight.shape, generator=generator), full_matrices=False)
            layer.weight.copy_(u * torch.arange(1, len(vh) + 1) ** -0.8 @ vh)
    return model


def adapted(method, trained=True):
    torch.manual_seed(1)
    config = SpectralLoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0", "1"], **METHODS[method])
    model = get_peft_model(network(), config)
    if trained:
        move(model)
    return model


@torch.no_grad()
def move(model):
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))


def rows_of(updates, **settings):
    rows = measure_updates(updates, run="run", seed=0, step=1, **settings)
    found = {}
    for row in rows:
        found.setdefault(row.module, {})[row.metric] = row
    return list(found.values())


def expected(delta, weight):
    """Every metric from two dense matrices."""
    u, _, vh = np.linalg.svd(weight)
    rotated, total = u.T @ delta @ vh.T, np.linalg.norm(delta) ** 2
    squares = np.square(rotated).sum(0)[:HEAD] / total
    return {
        "relative_norm": np.linalg.norm(delta) / np.linalg.norm(weight),
        "head_energy": squares.sum(),
        "head_energy_two_sided": np.square(rotated[:HEAD, :HEAD]).sum() / total,
        **{f"alignment_{k}": square for k, square in enumerate(squares, start=1)},
    }


def dense(operator):
    return operator.matmat(torch.eye(operator.shape[1], dtype=torch.float64)).numpy()


@pytest.mark.parametrize("method", METHODS)
def test_an_adapters_rows_match_numpy_and_carry_the_null_of_their_structure(method):
    updates = adapter_updates(adapted(method))
    measured = rows_of(updates, heads=base_heads(updates, HEAD))
    assert len(measured) == 2
    for update, rows in zip(updates, measured, strict=True):
        assert tuple(rows) == ("stable_rank", "frobenius", *METRICS)
        oracle = expected(dense(update.operator), update.weight().double().numpy())
        assert {metric: rows[metric].value for metric in METRICS} == pytest.approx(oracle, rel=1e-4)
        inner = {"lora": RANK, "polar": RANK, "pissa": 2 * RANK}.get(method)
        shape = update.operator.shape
        assert rows["head_energy"].null == head_energy_null(*shape, HEAD, rank=inner).median
        assert rows["alignment_2"].null_high == head_energy_null(*shape, 1, rank=inner).high
        assert rows["head_energy_two_sided"].null == head_energy_two_sided_null(*shape, HEAD, rank=inner).median
        assert rows["relative_norm"].null_kind == "none"
        assert rows["head_energy"].status == "estimated"


def test_full_updates_match_numpy():
    model = network()
    initial = snapshot(model)
    heads = base_heads(full_updates(model, initial), HEAD)
    move(model)
    updates = full_updates(model, initial)
    for update, rows in zip(updates, rows_of(updates, heads=heads), strict=True):
        oracle = expected(dense(update.operator), initial[f"{update.name}.weight"].double().numpy())
        assert {metric: rows[metric].value for metric in METRICS} == pytest.approx(oracle, rel=1e-4)
        assert rows["head_energy"].null_kind == "gaussian_matrix"


def test_pissas_first_product_lies_in_the_head_and_its_update_need_not():
    model = adapted("pissa", trained=False)
    products, updates = first_products(model), adapter_updates(model)
    heads = base_heads(updates, RANK)
    for rows in rows_of(products, kind="initial", heads=heads):
        assert rows["head_energy"].value == pytest.approx(1, abs=1e-5)
        assert rows["head_energy_two_sided"].value == pytest.approx(1, abs=1e-5)
        assert {row.kind for row in rows.values()} == {"initial"}
    move(model)
    for rows in rows_of(adapter_updates(model), heads=heads):
        assert rows["head_energy"].value < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_an_update_of_zero_has_a_relative_norm_of_zero_and_no_place(method):
    updates = adapter_updates(adapted(method, trained=False))
    for rows in rows_of(updates, heads=base_heads(updates, HEAD)):
        assert rows["relative_norm"].value < 1e-14
        assert rows["relative_norm"].lower == 0
        for metric in METRICS[1:]:
            assert (rows[metric].status, math.isnan(rows[metric].value)) == ("zero", True)


def test_a_diverged_update_and_a_base_of_zero_are_named():
    model = adapted("lora")
    updates = adapter_updates(model)
    heads = base_heads(updates, HEAD)
    heads[updates[1].name] = base_head(torch.zeros(24, 40), HEAD)
    with torch.no_grad():
        model.base_model.model[0].lora_A["default"].weight[0, 0] = math.nan
    diverged, from_nothing = rows_of(updates, heads=heads)
    assert {diverged[metric].status for metric in METRICS} == {"non_finite"}
    assert {from_nothing[metric].status for metric in METRICS} == {"refused"}


def test_a_small_matrix_has_as_many_directions_as_it_has():
    head = base_head(torch.eye(3, 5), 16)
    assert (head.u_OK.shape, head.v_IK.shape, head.shape) == ((3, 3), (5, 3), (3, 5))


def test_heads_are_kept_in_fp32_on_the_cpu():
    head = base_head(torch.randn(6, 5, dtype=torch.float64), 2)
    assert {head.u_OK.dtype, head.v_IK.dtype} == {torch.float32}
    assert head.u_OK.device.type == "cpu"


def test_the_heads_of_another_model_are_refused():
    updates = adapter_updates(adapted("lora"))
    heads = base_heads(updates, HEAD)
    first, second = (update.name for update in updates)
    with pytest.raises(ModelError, match=rf"no entry '{second}'"):
        rows_of(updates, heads={first: heads[first]})
    with pytest.raises(ModelError, match=r"update of shape \(40, 24\), but its base weight is \(24, 40\)"):
        rows_of(updates, heads={first: heads[second], second: heads[first]})


@pytest.mark.parametrize("method", METHODS)
def test_the_spectrum_shift_matches_numpy(method):
    updates = adapter_updates(adapted(method))
    for update, rows in zip(updates, rows_of(updates, nss=True), strict=True):
        weight = update.weight().double().numpy()
        before = np.linalg.svd(weight, compute_uv=False)
        after = np.linalg.svd(weight + dense(update.operator), compute_uv=False)
        shift = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert rows["nss"].value == pytest.approx(shift, rel=1e-6)
        assert rows["nss"].null_low < rows["nss"].null < rows["nss"].null_high
