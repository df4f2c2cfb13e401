"""Activation rows on real models: numpy's SVD of the inputs that independent hooks stack up is the oracle."""

import math
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stablerank.errors import DataError, ModelError
from stablerank.probes.activations import gram_stable_rank, record_activations
from stablerank.spectral.nulls import dense_null
from stablerank.zoo.resolve import resolve

LENGTHS = (9, 4, 7)


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


@pytest.fixture(scope="module")
def student():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))


def padded_batch(side="right", garbage=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), garbage)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(longest - length, longest)
        ids[row, place] = torch.randint(2, 40, (length,), generator=generator)
        mask[row, place] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def measure(model, batches, modules=None, **settings):
    with record_activations(model, modules, **settings) as recorder, torch.no_grad():
        for batch in batches:
            recorder.mask(batch["attention_mask"])
            model(**batch)
    rows = recorder.rows(run="run", seed=3, step=10)
    return {(row.layer, row.module): row for row in rows}


def stacked_inputs(model, batches):
    """Every linear layer's unpadded inputs as one numpy matrix."""
    inputs, handles = defaultdict(list), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(lambda m, args, out, name=name: inputs[name].append(args[0])))
    kept = defaultdict(list)
    for batch in batches:
        inputs.clear()
        with torch.no_grad():
            model(**batch)
        for name, (x,) in inputs.items():
            kept[name].append(x.double().numpy()[batch["attention_mask"].numpy() == 1])
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def numpy_stable_rank(matrix):
    return np.linalg.norm(matrix) ** 2 / np.linalg.norm(matrix, 2) ** 2


def key(name):
    parts = name.split(".")
    return (int(parts[2]), ".".join(parts[3:])) if "layers" in parts else (None, name)


@pytest.mark.parametrize("which", ["student", "llama"])
def test_rows_match_numpy_on_the_stacked_inputs_of_all_batches(which, student):
    model = student if which == "student" else tiny_llama()
    batches = [padded_batch(lengths=LENGTHS), padded_batch(lengths=(20, 30))]
    rows, inputs = measure(model, batches), stacked_inputs(model, batches)
    assert set(rows) == {key(name) for name in inputs}
    for name, matrix in inputs.items():
        row, expected = rows[key(name)], numpy_stable_rank(matrix)
        assert row.value == pytest.approx(expected, rel=1e-12)
        assert row.lower <= expected * (1 + 1e-13) and expected * (1 - 1e-13) <= row.upper
        assert row.upper - row.lower < 1e-6 * row.value
        assert row.tokens == len(matrix) == 70


def test_a_row_carries_its_place_its_certificate_and_a_gaussian_token_matrix_as_null():
    row = measure(tiny_llama(), [padded_batch()])[1, "mlp.down_proj"]
    null = dense_null(20, 48)
    assert (row.run, row.seed, row.step, row.kind, row.metric) == ("run", 3, 10, "activation", "stable_rank")
    assert (row.status, row.passes, row.confidence, row.tokens) == ("exact", 1, 1.0, 20)
    assert (row.null, row.null_low, row.null_high, row.null_kind) == (null.median, null.low, null.high, null.kind)


def test_gaussian_inputs_lie_inside_their_null():
    layer = nn.Linear(24, 5)
    generator = torch.Generator().manual_seed(0)
    inside = []
    for _ in range(20):
        with record_activations(layer) as recorder:
            recorder.mask(None)
            layer(torch.randn(60, 24, generator=generator))
        (row,) = recorder.rows(run="run", seed=0, step=0)
        inside.append(row.null_low <= row.value <= row.null_high)
    assert sum(inside) >= 16


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_what_stands_under_it_do_not_count(side, student):
    alone = [
        {name: tensor[[row], :length] for name, tensor in padded_batch().items()} for row, length in enumerate(LENGTHS)
    ]
    expected = measure(student, alone)
    for garbage in (0, 7):
        for place, row in measure(student, [padded_batch(side, garbage)]).items():
            assert row.tokens == expected[place].tokens == 20
            assert row.value == pytest.approx(expected[place].value, rel=1e-5)


def test_nan_under_the_mask_does_not_count():
    layer = nn.Linear(4, 3)
    x = torch.randn(2, 3, 4)
    x[1, 2] = math.nan
    with record_activations(layer) as recorder:
        recorder.mask(torch.tensor([[1, 1, 1], [1, 1, 0]]))
        layer(x)
    (row,) = recorder.rows(run="run", seed=0, step=0)
    assert row.value == pytest.approx(numpy_stable_rank(x.reshape(-1, 4)[:5].numpy()), rel=1e-5)


def test_batches_add_up_to_one_big_batch_and_not_to_an_average_of_ratios():
    model, whole = tiny_llama(), padded_batch(lengths=(8, 8, 8, 8))
    halves = [{name: tensor[part] for name, tensor in whole.items()} for part in (slice(0, 2), slice(2, 4))]
    big, added = measure(model, [whole]), measure(model, halves)
    averaged = [measure(model, [half]) for half in halves]
    for place, row in big.items():
        assert added[place].value == pytest.approx(row.value, rel=1e-6)
        assert added[place].tokens == row.tokens == 32
    assert all(sum(half[place].value for half in averaged) / 2 < 0.999 * big[place].value for place in big)


def test_bf16_inputs_are_measured_as_they_are():
    model, batches = tiny_llama().bfloat16(), [padded_batch()]
    rows, inputs = measure(model, batches), stacked_inputs(model, batches)
    for name, matrix in inputs.items():
        assert rows[key(name)].value == pytest.approx(numpy_stable_rank(matrix), rel=1e-12)


def test_the_indicator_of_an_embedding_has_stable_rank_one_over_the_largest_share(student):
    batches = [padded_batch(garbage=9), padded_batch(lengths=(20, 30))]
    row = measure(student, batches, "embed_tokens")[None, "model.embed_tokens"]
    ids = torch.cat([batch["input_ids"][batch["attention_mask"] == 1] for batch in batches])
    one_hot = nn.functional.one_hot(ids).double().numpy()
    assert row.value == row.lower == row.upper == pytest.approx(numpy_stable_rank(one_hot), rel=1e-12)
    assert (row.tokens, row.status, row.null_kind) == (70, "exact", "none")


def test_modules_that_share_an_input_share_one_gram_and_one_spectrum(monkeypatch):
    spectra = []
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: spectra.append(gram) or eigvalsh(gram))
    rows = measure(tiny_llama(), [padded_batch(), padded_batch()])
    assert len(rows) == 2 * 7 + 1
    assert len(spectra) == 2 * 4 + 1, "q, k, v share one, gate and up share one"


def test_modules_that_stop_sharing_an_input_go_their_own_ways():
    left, right = nn.Linear(6, 2), nn.Linear(6, 2)
    generator = torch.Generator().manual_seed(0)
    shared, only_left, only_right = (torch.randn(5, 6, generator=generator) for _ in range(3))
    with record_activations(nn.ModuleDict({"left": left, "right": right})) as recorder:
        recorder.mask(None)
        changed = shared.clone()
        left(changed)
        right(changed.mul_(2))
        left(shared)
        right(shared)
        left(only_left)
        right(only_right)
    rows = recorder.rows(run="run", seed=0, step=0)
    expected = (torch.cat([shared, shared, only_left]), torch.cat([2 * shared, shared, only_right]))
    for row, matrix in zip(rows, expected, strict=True):
        assert row.value == pytest.approx(numpy_stable_rank(matrix.double().numpy()), rel=1e-12)


def test_an_adapter_is_measured_at_both_factors_under_the_names_of_its_updates():
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    batches = [padded_batch()]
    rows, inputs = measure(model, batches), stacked_inputs(model, batches)
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    for ours, theirs in (("", "base_layer"), (".lora_A", "lora_A.default"), (".lora_B", "lora_B.default")):
        row = rows[1, f"self_attn.q_proj{ours}"]
        assert row.value == pytest.approx(numpy_stable_rank(inputs[f"{prefix}.{theirs}"]), rel=1e-12)
    assert (1, "self_attn.k_proj") in rows


def test_gpt2_style_layers_are_measured():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32))
    rows = measure(model.eval(), [padded_batch()])
    assert {module for _, module in rows} == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head"}
    assert {row.status for row in rows.values()} == {"exact"}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_counts_once(use_reentrant):
    model, batch = tiny_llama().train(), padded_batch()
    expected = measure(model, [batch])
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    with record_activations(model) as recorder:
        recorder.mask(batch["attention_mask"])
        model(**batch).logits.sum().backward()
    rows = recorder.rows(run="run", seed=3, step=10)
    assert rows == list(expected.values())
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_inference_mode_is_measured_too():
    model, batch = tiny_llama(), padded_batch()
    expected = measure(model, [batch])
    with record_activations(model) as recorder, torch.inference_mode():
        recorder.mask(batch["attention_mask"])
        model(**batch)
    assert recorder.rows(run="run", seed=3, step=10) == list(expected.values())


def test_rows_start_the_recorder_afresh():
    model, batch = tiny_llama(), padded_batch()
    with record_activations(model, "down_proj") as recorder:
        recorder.mask(batch["attention_mask"])
        measured = []
        for _ in range(2):
            model(**batch)
            measured.append(recorder.rows(run="run", seed=0, step=0))
    assert measured[0] == measured[1]
    assert {row.status for row in recorder.rows(run="run", seed=0, step=0)} == {"empty"}


def test_too_many_features_are_refused_by_name_and_the_rest_is_measured():
    model = tiny_llama()
    with record_activations(model, max_features=32) as recorder:
        recorder.mask(None)
        model(input_ids=padded_batch()["input_ids"])
    rows = {row.module: row for row in recorder.rows(run="run", seed=0, step=0)}
    assert (rows["mlp.down_proj"].status, rows["lm_head"].status) == ("refused", "exact")
    assert math.isnan(rows["mlp.down_proj"].value)
    assert "48 input features exceed max_features=32" in recorder.refused["model.layers.0.mlp.down_proj"]
    assert recorder.features["model.layers.0.mlp.down_proj"] == 48


def test_inputs_that_the_mask_cannot_be_laid_over_are_refused():
    model, batch = tiny_llama(), padded_batch()
    with record_activations(model) as recorder:
        recorder.mask(batch["attention_mask"])
        model(**batch, logits_to_keep=2)
    rows = {row.module: row for row in recorder.rows(run="run", seed=0, step=0)}
    assert (rows["lm_head"].status, rows["mlp.up_proj"].status) == ("refused", "exact")
    assert "(3, 2, 32)" in recorder.refused["lm_head"]


def test_inputs_of_other_ranks_are_flattened_with_their_mask():
    layer = nn.Linear(4, 3)
    x, mask = torch.randn(2, 3, 5, 4), torch.tensor([[1, 0, 1], [0, 1, 1]])
    with record_activations(layer) as recorder:
        recorder.mask(mask)
        layer(x)
        layer(x[:, :, 0].reshape(6, 4))
    (row,) = recorder.rows(run="run", seed=0, step=0)
    kept = torch.cat([x[mask == 1].reshape(-1, 4), x[:, :, 0][mask == 1]])
    assert (row.tokens, row.value) == (24, pytest.approx(numpy_stable_rank(kept.double().numpy()), rel=1e-12))


def test_a_forgotten_or_misshapen_mask_and_an_unknown_module_are_refused():
    model = tiny_llama()
    with record_activations(model) as recorder:
        with pytest.raises(DataError, match=r"q_proj ran before .*recorder\.mask"):
            model(**padded_batch())
        with pytest.raises(DataError, match=r"\(4,\)"):
            recorder.mask(torch.ones(4))
    with pytest.raises(ModelError, match="'w_out'"), record_activations(model, "w_out"):
        pass


@pytest.mark.parametrize(
    ("rows", "status"),
    [(torch.zeros(3, 4), "zero"), (torch.full((3, 4), math.inf), "non_finite"), (torch.zeros(0, 4), "empty")],
)
def test_inputs_without_a_stable_rank_have_a_named_status(rows, status):
    rows = rows.double()
    estimate = gram_stable_rank(rows.mT @ rows, len(rows))
    assert estimate.status == status
    assert all(map(math.isnan, (estimate.value, estimate.lower, estimate.upper)))


def test_one_token_has_stable_rank_one_and_orthonormal_tokens_have_all():
    one = torch.randn(1, 7, dtype=torch.float64)
    assert gram_stable_rank(one.mT @ one, 1).value == gram_stable_rank(one.mT @ one, 1).upper == 1
    assert isinstance(gram_stable_rank(one.mT @ one, 1).upper, float), "a column of a table has one type"
    assert gram_stable_rank(torch.eye(5, dtype=torch.float64), 5).value == pytest.approx(5)


def test_recording_disturbs_nothing_and_leaves_no_hook():
    model, batch = tiny_llama(attention_dropout=0.1).train(), padded_batch()

    def loss_and_gradient():
        torch.manual_seed(1)
        model.zero_grad()
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        return loss.item(), [weight.grad.clone() for weight in model.parameters()], torch.get_rng_state()

    states = np.random.get_state()[1].copy(), random.getstate()
    loss, gradients, rng = loss_and_gradient()
    with pytest.raises(KeyboardInterrupt), record_activations(model) as recorder:
        recorder.mask(batch["attention_mask"])
        recorded = loss_and_gradient()
        recorder.rows(run="run", seed=0, step=0)
        raise KeyboardInterrupt
    assert recorded[0] == loss
    assert all(torch.equal(*pair) for pair in zip(recorded[1], gradients, strict=True))
    assert torch.equal(recorded[2], rng)
    assert np.array_equal(np.random.get_state()[1], states[0]) and random.getstate() == states[1]
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
