"""Gradient rows on real models: autograd's own ``weight.grad`` and numpy's SVD are the oracle."""

import math
import random
import weakref

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from stablerank.errors import ModelError
from stablerank.probes.gradients import record_gradients, stable_rank_null
from stablerank.spectral.nulls import dense_null, factored_null
from stablerank.spectral.spectrum_nulls import spectrum_null
from stablerank.zoo.resolve import resolve

BATCHES = [torch.randint(2, 40, (3, 11), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)


def tiny_llama(**changes):
    torch.manual_seed(0)
    settings = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes))


def lora_llama(frozen=True, config=LORA, **changes):
    model = get_peft_model(tiny_llama(**changes), config)
    if not frozen:
        model.requires_grad_(True)
    return model


def backward(model, ids):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach()


def measure(model, batches=BATCHES, modules=None, mask=None):
    with record_gradients(model, modules) as recorder:
        recorder.mask(mask)
        for ids in batches:
            backward(model, ids)
    return by_place(recorder.rows(run="run", seed=3, step=10))


def by_place(rows):
    return {(row.layer, row.module, row.metric): row for row in rows}


def place(name):
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]), ".".join(parts[parts.index("layers") + 2 :])


def plain_gradients(model, batches=BATCHES):
    """``weight.grad`` of every matrix inside the blocks, from runs that no recorder watches."""
    model.zero_grad()
    for ids in batches:
        backward(model, ids)
    named = model.named_parameters()
    gradients = {name: weight.grad.clone() for name, weight in named if weight.ndim == 2 and weight.grad is not None}
    model.zero_grad()
    return {place(name.removesuffix(".weight")): grad for name, grad in gradients.items() if ".layers." in name}


def assert_rows_match(rows, where, gradient, rel=1e-5):
    sigma = np.linalg.svd(gradient.double().numpy(), compute_uv=False)
    expected = {
        "nuclear_rank": sigma.sum() ** 2 / (sigma**2).sum(),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "frobenius": math.sqrt((sigma**2).sum()),
    }
    for metric, value in expected.items():
        row = rows[*where, metric]
        assert row.value == pytest.approx(value, rel=rel)
        assert row.lower <= row.value <= row.upper
        assert row.upper - row.lower < 1e-7 * row.value


@pytest.mark.parametrize("which", ["student", "llama"])
def test_rows_of_trained_weights_match_weight_grad_over_several_backward_passes(which):
    model = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student")) if which == "student" else tiny_llama()
    expected = plain_gradients(model)
    rows = measure(model)
    assert {key[:2] for key in rows} == set(expected)
    for where, gradient in expected.items():
        assert_rows_match(rows, where, gradient)


def test_frozen_weights_under_an_adapter_have_the_gradient_they_would_have_if_trained():
    expected = plain_gradients(lora_llama(frozen=False))
    rows = measure(lora_llama())
    assert len(rows) == 3 * (2 * 7 + 2 * 2 * 2)
    for (layer, module), gradient in expected.items():
        where = layer, module.removesuffix(".base_layer").removesuffix(".default")
        assert_rows_match(rows, where, gradient)
    assert {module for _, module, _ in rows} > {"self_attn.q_proj.lora_A", "self_attn.q_proj.lora_B", "mlp.up_proj"}


def test_a_wholly_frozen_model_is_measured_too():
    model = tiny_llama()
    expected = plain_gradients(model)
    model.requires_grad_(False)
    rows = measure(model)
    for where, gradient in expected.items():
        assert_rows_match(rows, where, gradient)


def test_factor_gradients_are_the_full_gradient_seen_through_the_other_factor():
    model = lora_llama()
    full = plain_gradients(lora_llama(frozen=False))[1, "self_attn.q_proj.base_layer"]
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    rows = measure(model)
    b, a, s = layer.lora_B.default.weight.detach(), layer.lora_A.default.weight.detach(), layer.scaling["default"]
    assert_rows_match(rows, (1, "self_attn.q_proj.lora_A"), s * b.T @ full, rel=1e-4)
    assert_rows_match(rows, (1, "self_attn.q_proj.lora_B"), s * full @ a.T, rel=1e-4)
    assert rows[1, "self_attn.q_proj.lora_A", "nuclear_rank"].value <= 4


def test_a_fresh_adapter_has_a_zero_gradient_at_a_and_a_full_one_everywhere_else():
    rows = measure(lora_llama(config=LoraConfig(r=4, target_modules=["q_proj"])))
    at_a, at_b = (rows[1, f"self_attn.q_proj.lora_{factor}", "nuclear_rank"] for factor in "AB")
    assert (at_a.status, at_b.status) == ("zero", "exact")
    assert math.isnan(at_a.value) and at_a.null_kind == "none"
    assert rows[1, "self_attn.q_proj.lora_A", "frobenius"].value == 0


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("make", [tiny_llama, lora_llama])
def test_gradient_checkpointing_counts_once(make, use_reentrant):
    expected = measure(make().train())
    model = make().train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for where, row in measure(model).items():
        assert row.value == pytest.approx(expected[where].value, rel=1e-5)
        assert row.tokens == expected[where].tokens
        # A first token attends to itself alone: the gradient of its query and key is 0 but for rounding, or 0.
        assert row.tokens == 90 or (81 <= row.tokens < 90 and ("q_proj" in where[1] or "k_proj" in where[1]))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_checkpointed_inputs_are_dropped_until_the_backward_pass(checkpointed):
    model, stored = tiny_llama().train(), []
    model.requires_grad_(False)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    layer = model.model.layers[0].mlp.down_proj
    with record_gradients(model, "down_proj") as recorder:
        layer.register_forward_pre_hook(lambda module, args: stored.append(weakref.ref(args[0].untyped_storage())))
        loss = model(input_ids=BATCHES[0], labels=BATCHES[0]).loss
        assert (stored[0]() is None) == checkpointed
        loss.backward()
    assert {row.status for row in recorder.rows(run="run", seed=0, step=0)} == {"exact"}


def test_two_backward_passes_through_one_graph_add():
    model = tiny_llama()
    with record_gradients(model) as recorder:
        loss = model(input_ids=BATCHES[0], labels=BATCHES[0]).loss
        loss.backward(retain_graph=True)
        loss.backward()
    once = measure(tiny_llama(), BATCHES[:1])
    for where, row in by_place(recorder.rows(run="run", seed=3, step=10)).items():
        factor = 2 if where[2] == "frobenius" else 1
        assert row.value == pytest.approx(factor * once[where].value, rel=1e-5)


def test_tokens_without_gradient_are_not_counted_and_padding_changes_nothing():
    ids = BATCHES[0]
    padding = torch.full((3, 4), 1)
    for order in (slice(None), slice(None, None, -1)):
        wide = torch.cat([ids, padding][order], dim=1)
        attention = torch.cat([torch.ones_like(ids), torch.zeros_like(padding)][order], dim=1)
        with record_gradients(model := tiny_llama()) as recorder:
            positions = (attention.cumsum(-1) - 1).clamp(min=0)
            labels = wide.masked_fill((attention == 0) | (positions == 0), -100)
            model(input_ids=wide, attention_mask=attention, position_ids=positions, labels=labels).loss.backward()
        alone = measure(tiny_llama(), [ids])
        for where, row in by_place(recorder.rows(run="run", seed=3, step=10)).items():
            assert row.value == pytest.approx(alone[where].value, rel=1e-4)
            assert row.tokens == alone[where].tokens == 30, "the last token of a sequence predicts nothing"


def test_a_mask_restricts_the_sum_to_its_tokens():
    layer = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    generator = torch.Generator().manual_seed(1)
    x, mask = torch.randn(2, 3, 5, generator=generator), torch.tensor([[1, 1, 0], [0, 1, 1]])
    with record_gradients(layer, "0") as recorder:
        recorder.mask(mask)
        layer(x).square().sum().backward()
    rows = recorder.rows(run="run", seed=0, step=0)
    layer.zero_grad()
    layer(x[mask == 1]).square().sum().backward()
    expected = np.linalg.norm(layer[0].weight.grad.numpy())
    assert {row.metric: row.value for row in rows}["frobenius"] == pytest.approx(expected, rel=1e-5)


def test_a_mask_that_cannot_be_laid_over_the_tokens_is_refused():
    with record_gradients(model := tiny_llama()) as recorder:
        recorder.mask(torch.ones(3, 10))
        backward(model, BATCHES[0])
    rows = recorder.rows(run="run", seed=0, step=0)
    assert {row.status for row in rows} == {"refused"}
    assert "(3, 11, 32)" in recorder.refused["model.layers.0.self_attn.q_proj"]


def test_bf16_models_are_accumulated_in_fp32():
    model = tiny_llama().bfloat16()
    pairs = {}

    def keep(module, args, output):
        output.register_hook(lambda delta: pairs.update(x=args[0].double(), delta=delta.double()))

    model.model.layers[1].mlp.up_proj.register_forward_hook(keep)
    rows = measure(model, BATCHES[:1])
    exact = pairs["delta"].flatten(0, 1).T @ pairs["x"].flatten(0, 1)
    assert_rows_match(rows, (1, "mlp.up_proj"), exact.detach(), rel=1e-6)
    rounded = np.linalg.norm(model.model.layers[1].mlp.up_proj.weight.grad.double().numpy())
    assert abs(rounded / exact.norm().item() - 1) > 1e-6, "the oracle can tell bf16 from fp32"


def test_a_backward_pass_under_autocast_is_not_rounded_to_bf16():
    layer, x = nn.Linear(32, 24), torch.randn(50, 32)
    with record_gradients(layer, "") as recorder:
        y = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y.square().sum().backward()
    norm = recorder.rows(run="run", seed=0, step=0)[2].value
    y = y.detach().double()
    assert norm == pytest.approx(np.linalg.norm((2 * y.T @ x.double()).numpy()), rel=1e-6)


def test_gpt2_style_layers_and_a_named_head_are_measured():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32)).eval()
    backward(model, BATCHES[0])
    expected = model.transformer.h[0].mlp.c_fc.weight.grad.clone()
    rows = measure(model, BATCHES[:1], "c_fc|lm_head")
    assert_rows_match(rows, (0, "mlp.c_fc"), expected)
    assert rows[None, "lm_head", "nuclear_rank"].status == "exact"


def test_nulls_have_the_rank_that_the_tokens_allow():
    model = tiny_llama()
    few, many = measure(model, [BATCHES[0][:1]]), measure(model)
    rows = {10: few, 90: many}
    nulls = {
        (10, "nuclear_rank"): spectrum_null("nuclear_rank", 48, 32, 10),
        (90, "nuclear_rank"): spectrum_null("nuclear_rank", 48, 32),
        (10, "stable_rank"): stable_rank_null(48, 32, 10),
        (90, "stable_rank"): dense_null(48, 32),
    }
    for (tokens, metric), null in nulls.items():
        row = rows[tokens][1, "mlp.up_proj", metric]
        assert (row.tokens, row.null_kind) == (tokens, "gaussian_factors" if tokens == 10 else "gaussian_matrix")
        assert (row.null, row.null_low, row.null_high) == (null.median, null.low, null.high)
    assert few[1, "mlp.up_proj", "frobenius"].null_kind == "none"


@pytest.mark.parametrize("rank", [9, 140])
def test_the_stable_rank_null_of_few_tokens_is_that_of_random_factors(rank):
    ours, theirs = stable_rank_null(200, 300, rank), factored_null(200, 300, rank, draws=100)
    assert ours.kind == theirs.kind
    assert ours.median == pytest.approx(theirs.median, rel=0.05)
    assert theirs.low < ours.median < theirs.high


def test_a_row_carries_its_place_and_its_certificate():
    row = measure(tiny_llama())[1, "mlp.down_proj", "nuclear_rank"]
    assert (row.run, row.seed, row.step, row.kind) == ("run", 3, 10, "gradient")
    assert (row.status, row.passes, row.confidence, row.tokens) == ("exact", 1, 1.0, 90)


def test_measuring_releases_the_gradients():
    with record_gradients(model := tiny_llama()) as recorder:
        backward(model, BATCHES[0])
        first = recorder.rows(run="run", seed=0, step=0)
        backward(model, BATCHES[1])
        second = recorder.rows(run="run", seed=0, step=0)
    assert [row.value for row in second] == [row.value for row in measure(tiny_llama(), BATCHES[1:2]).values()]
    assert first[0].value != second[0].value
    assert {row.status for row in recorder.rows(run="run", seed=0, step=0)} == {"empty"}


def test_a_factor_gradient_without_a_token_behind_it_has_no_null():
    model = lora_llama()
    backward(model, BATCHES[0])
    rows = measure(model, BATCHES[:1], "q_proj.base_layer", mask=torch.zeros(3, 11))
    assert rows[0, "self_attn.q_proj", "nuclear_rank"].status == "zero"
    factor = rows[0, "self_attn.q_proj.lora_A", "nuclear_rank"]
    assert (factor.status, factor.tokens, factor.null_kind) == ("exact", 0, "none")


def test_a_diverged_block_has_a_named_status():
    layer = nn.Linear(4, 3)
    with record_gradients(layer, "") as recorder:
        (layer(torch.randn(5, 4)) * math.inf).sum().backward()
    rows = recorder.rows(run="run", seed=0, step=0)
    assert [row.status for row in rows] == ["non_finite"] * 3
    assert all(math.isnan(row.value) for row in rows)


def test_recording_disturbs_nothing_and_leaves_no_hook():
    model = lora_llama(attention_dropout=0.1).train()

    def step():
        torch.manual_seed(1)
        model.zero_grad()
        loss = backward(model, BATCHES[0])
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
        return loss, gradients, torch.get_rng_state()

    states = np.random.get_state()[1].copy(), random.getstate()
    loss, gradients, rng = step()
    with pytest.raises(KeyboardInterrupt), record_gradients(model) as recorder:
        recorded = step()
        late = model(input_ids=BATCHES[0], labels=BATCHES[0]).loss
        rows = recorder.rows(run="run", seed=0, step=0)
        raise KeyboardInterrupt
    late.backward()
    assert {row.status for row in recorder.rows(run="run", seed=0, step=0)} == {"empty"}, "the block had ended"
    assert {row.status for row in rows} == {"exact"}
    assert torch.equal(recorded[0], loss)
    assert all(torch.equal(recorded[1][name], gradient) for name, gradient in gradients.items())
    assert torch.equal(recorded[2], rng)
    assert np.array_equal(np.random.get_state()[1], states[0]) and random.getstate() == states[1]
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if "lora_" not in name)


def test_a_forward_pass_without_gradient_is_ignored_and_an_unknown_module_refused():
    with record_gradients(model := tiny_llama()) as recorder, torch.no_grad():
        assert not model(input_ids=BATCHES[0]).logits.requires_grad
    assert {row.status for row in recorder.rows(run="run", seed=0, step=0)} == {"empty"}
    with pytest.raises(ModelError, match="'w_out'"), record_gradients(model, "w_out"):
        pass
