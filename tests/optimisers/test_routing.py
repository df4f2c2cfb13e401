"""Routing, exact polar steps and Muon against torch's own optimisers, scipy and numpy."""

import copy

import numpy as np
import pytest
import scipy.linalg
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from stablerank.errors import ModelError
from stablerank.optimisers.routing import favoured_names, matching_names, routed, spectral_names
from stablerank.optimisers.spectral_descent import SpecGD, polar_factor


def network():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(11, 8),
            "layers": nn.ModuleList(
                nn.ModuleDict({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8)}) for _ in range(2)
            ),
            "head": nn.Linear(8, 11, bias=False),
        }
    )


def backward(model, seed):
    model.zero_grad()
    ids = torch.randint(0, 11, (5, 4), generator=torch.Generator().manual_seed(seed))
    x = model["embed"](ids)
    for layer in model["layers"]:
        x = x + layer["down"](torch.relu(layer["up"](x)).square())
    nn.functional.cross_entropy(model["head"](x).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def optimiser(model, method="muon"):
    names = spectral_names(model, "hidden")
    return routed(model, names, muon_lr=0.02, adamw_lr=1e-3, method=method, weight_decay=0.1)


def train(model, opt, steps, schedule=None):
    for step in steps:
        backward(model, step)
        opt.step()
        if schedule is not None:
            schedule.step()


def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw_as_torch_has_them():
    model, twin = network(), network()
    opt = optimiser(model)
    hidden = [f"layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("up", "down")]
    assert spectral_names(model, "hidden") == set(hidden)
    named = dict(twin.named_parameters())
    muon = Muon([named[name] for name in hidden], lr=0.02, momentum=0.95, weight_decay=0.1)
    matrices = [weight for name, weight in named.items() if name not in hidden and weight.ndim == 2]
    vectors = [weight for weight in named.values() if weight.ndim == 1]
    adamw = AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3)
    for step in range(3):
        train(model, opt, [step])
        backward(twin, step)
        muon.step()
        adamw.step()
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize("method", ["muon", "specgd"])
def test_a_resumed_run_ends_with_the_same_bits(method, tmp_path):
    def start():
        model = network()
        opt = optimiser(model, method)
        return model, opt, LambdaLR(opt, lambda step: 1 / (1 + step))

    model, opt, schedule = start()
    train(model, opt, range(3), schedule)
    saved = {"model": model.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")
    train(model, opt, range(3, 6), schedule)
    again, other, later = start()
    found = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again.load_state_dict(found["model"])
    other.load_state_dict(found["opt"])
    later.load_state_dict(found["schedule"])
    train(again, other, range(3, 6), later)
    assert same(weights(model), weights(again))


def test_a_schedule_reaches_every_part_also_after_loading_and_under_accelerate():
    model = network()
    opt = optimiser(model)
    prepared = Accelerator(cpu=True).prepare_optimizer(opt)
    LambdaLR(prepared.optimizer, lambda step: 0.0)
    before = weights(model)
    train(model, prepared, [0])
    assert same(before, weights(model)), "a learning rate of zero moves nothing"


def test_a_state_of_another_route_is_refused():
    model = network()
    with pytest.raises(ModelError, match="route as the saved run did"):
        optimiser(model).load_state_dict(optimiser(model, "specgd").state_dict())


def test_names_by_place_and_what_is_refused():
    model = network()
    assert favoured_names(model, [(1, "down"), (None, "head")]) == {"layers.1.down.weight", "head.weight"}
    with pytest.raises(ModelError, match=r"embed\.weight is no trained matrix of a linear layer"):
        routed(model, ["embed.weight"], muon_lr=1, adamw_lr=1)
    with pytest.raises(ModelError, match="'lora_A' finds no trained matrix"):
        spectral_names(model, "lora_A")
    with pytest.raises(ModelError, match=r"shape \(12,\)"):
        SpecGD([model["layers"][0]["up"].bias], lr=1)
    assert routed(model, [], muon_lr=1, adamw_lr=1).spectral == []
    assert matching_names(model, ["down", r"^head"]) == {"head.weight", *(f"layers.{n}.down.weight" for n in (0, 1))}
    with pytest.raises(ModelError, match="'gate' finds no trained matrix"):
        matching_names(model, ["down", "gate"])
    with pytest.raises(ModelError, match="no regular expression"):
        matching_names(model, ["("])


def test_a_route_chosen_before_the_first_step_is_as_if_chosen_at_once():
    model, twin = network(), network()
    at_once, later = optimiser(model), routed(twin, [], muon_lr=0.02, adamw_lr=1e-3, weight_decay=0.1)
    later.take(at_once.spectral)
    train(model, at_once, range(3))
    train(twin, later, range(3))
    assert same(weights(model), weights(twin))
    with pytest.raises(ModelError, match="after the first step"):
        later.take([])


def test_loading_takes_over_the_saved_route():
    model, twin = network(), network()
    first = optimiser(model)
    train(model, first, range(2))
    twin.load_state_dict(model.state_dict())
    other = routed(twin, [], muon_lr=0.02, adamw_lr=1e-3, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    assert other.spectral == first.spectral
    train(model, first, range(2, 4))
    train(twin, other, range(2, 4))
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize("part", ["A", "B"])
def test_factors_of_lora_by_rule(part):
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["up"]), network())
    expected = {f"layers.{layer}.up.lora_{part}.default.weight" for layer in (0, 1)}
    assert spectral_names(model, f"lora_{part}") == expected
    assert spectral_names(model, "lora") > expected
    assert favoured_names(model, [(0, f"up.lora_{part}"), (1, f"up.lora_{part}")]) == expected


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_polar_factor_is_scipys_and_keeps_zero_directions_zero(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    factor, nuclear = polar_factor(torch.from_numpy(matrix))
    assert np.allclose(factor, scipy.linalg.polar(matrix)[0], atol=1e-12)
    assert nuclear.item() == pytest.approx(np.linalg.norm(matrix, "nuc"))
    rank_one = np.outer(matrix[:, 0], matrix[0])
    values = np.linalg.svd(polar_factor(torch.from_numpy(rank_one))[0].numpy(), compute_uv=False)
    assert values == pytest.approx([1, *[0] * (len(values) - 1)], abs=1e-12)
    assert not polar_factor(torch.zeros(shape))[0].any()


@pytest.mark.parametrize("seed", range(20))
def test_specgd_decreases_random_quadratics_by_what_it_guarantees(seed):
    draw = torch.Generator().manual_seed(seed)
    out, inner, tokens = torch.randint(1, 12, (3,), generator=draw).tolist()
    a = torch.randn(inner, tokens, generator=draw, dtype=torch.float64)
    y = torch.randn(out, tokens, generator=draw, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(out, inner, generator=draw, dtype=torch.float64))

    def loss():
        return (weight @ a - y).square().sum() / (2 * tokens)

    before = loss()
    before.backward()
    l_op = (a.square().sum() / tokens).item()
    guaranteed = np.linalg.norm(weight.grad.numpy(), "nuc") ** 2 / (2 * l_op)
    SpecGD([weight], lr=1 / l_op).step()
    assert (before - loss()).item() >= guaranteed * (1 - 1e-10)


def test_muons_newton_schulz_is_the_polar_factor_within_its_band():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(24, 16))
    gradient = torch.randn(24, 16)
    weight.grad = copy.copy(gradient)
    Muon([weight], lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0).step()
    step = -weight.detach().double().numpy() / np.sqrt(24 / 16)
    assert np.all(np.abs(np.linalg.svd(step, compute_uv=False) - 1) <= 0.5)
    exact = polar_factor(gradient)[0].double().numpy()
    aligned = exact.T @ step
    assert np.linalg.norm(aligned - aligned.T) < 0.05 * np.linalg.norm(aligned), "the same singular vectors"
