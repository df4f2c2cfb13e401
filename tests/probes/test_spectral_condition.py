"""Both sides of the condition against numpy on dense gradients and inputs that were kept whole."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stablerank.probes.spectral_condition import general_threshold, record_condition

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "tie_word_embeddings": False,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=8, **SIZES)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=32, tie_word_embeddings=False)
    ),
}
BATCHES = [torch.randint(2, 40, (3, 11), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
MASK = torch.ones(3, 11, dtype=torch.long)
MASK[1, 7:] = 0


def model_of(family):
    torch.manual_seed(0)
    return MODELS[family]()


def ranks(matrix):
    values = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    return values.sum() ** 2 / (values**2).sum(), (values**2).sum() / values[0] ** 2


def run(model, batches=BATCHES, mask=MASK, **options):
    """The blocks by place, and every linear layer's inputs at the counted tokens, kept whole."""
    inputs, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].detach()[mask.bool()])
                )
            )
    with record_condition(model, **options) as recorder:
        for ids in batches:
            recorder.mask(mask)
            model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        blocks = recorder.blocks(run="run", seed=0, step=7)
    for hook in hooks:
        hook.remove()
    return blocks, {name: torch.cat(parts).numpy() for name, parts in inputs.items()}


def full_name(model, block):
    ends = block.module if block.layer is None else f".{block.layer}.{block.module}"
    named = ((name, module) for name, module in model.named_modules() if hasattr(module, "weight"))
    return next(name for name, _ in named if name.removesuffix(".default").endswith(ends))


@pytest.mark.parametrize("family", MODELS)
def test_both_sides_are_those_of_the_dense_matrices(family):
    model = model_of(family)
    blocks, inputs = run(model, head=True)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"]
    assert len(blocks) == len(linear)
    for block in blocks:
        name = full_name(model, block)
        nuclear, own = ranks(model.get_submodule(name).weight.grad)
        assert block.nuclear_rank == pytest.approx(nuclear, rel=1e-4)
        assert block.gradient_stable_rank == pytest.approx(own, rel=1e-4)
        assert block.stable_rank == pytest.approx(ranks(inputs[name])[1], rel=1e-5)
        assert block.favours == ("spectral" if nuclear >= ranks(inputs[name])[1] else "euclidean")


@pytest.mark.parametrize(
    ("family", "output", "query"),
    [
        ("llama", "self_attn.o_proj", "q_proj"),
        ("neox", "attention.dense", "query_key_value"),
        ("gpt2", "attn.c_proj", "c_attn"),
    ],
)
def test_an_attentions_output_has_both_inputs(family, output, query):
    blocks, inputs = run(model_of(family))
    for block in blocks:
        if block.module == output:
            (name,) = [n for n in inputs if f".{block.layer}." in n and n.endswith(query)]
            assert block.stream_stable_rank == pytest.approx(ranks(inputs[name])[1], rel=1e-5)
        else:
            assert block.stream_stable_rank is None


def test_the_embedding_has_one_over_the_share_of_the_commonest_token():
    model = model_of("llama")
    blocks, _ = run(model, embedding=True)
    (block,) = [block for block in blocks if block.module == "model.embed_tokens"]
    ids = torch.cat([ids[MASK.bool()] for ids in BATCHES])
    assert block.stable_rank == len(ids) / ids.bincount().max().item()
    assert block.nuclear_rank == pytest.approx(ranks(model.model.embed_tokens.weight.grad)[0], rel=1e-4)


def test_factors_of_lora_have_their_own_condition():
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(model_of("llama"), config)
    blocks, inputs = run(model)
    factors = [block for block in blocks if "lora_" in block.module]
    assert len(factors) == 8
    for block in factors:
        name = full_name(model, block)
        assert block.nuclear_rank == pytest.approx(ranks(model.get_submodule(name).weight.grad)[0], rel=1e-4)
        assert block.nuclear_rank <= 4 + 1e-6
        assert block.stable_rank == pytest.approx(ranks(inputs[name])[1], rel=1e-5)
        assert "cannot exceed r" in block.advice
    assert any(block.module == "self_attn.q_proj" for block in blocks), "the frozen weight has its own block"


def test_a_gated_down_projection_is_warned_about_and_no_other():
    warned = {family: [b.module for b in run(model_of(family))[0] if "gated" in b.advice] for family in MODELS}
    assert warned == {"llama": ["mlp.down_proj"] * 2, "qwen3": ["mlp.down_proj"] * 2, "neox": [], "gpt2": []}


def test_loss_tokens_restrict_both_sides():
    whole, _ = run(model_of("llama"))
    only, _ = run(model_of("llama"), loss_tokens=True)
    mask = MASK.clone()
    mask[:, :5] = 0
    fewer, inputs = run(model_of("llama"), mask=mask, loss_tokens=True)
    assert [b.nuclear_rank for b in whole] != [b.nuclear_rank for b in fewer]
    assert only[0].stable_rank == whole[0].stable_rank
    assert fewer[0].stable_rank == pytest.approx(ranks(inputs["model.layers.0.self_attn.q_proj"])[1], rel=1e-5)


def test_forward_passes_that_learn_nothing_do_not_count():
    model = model_of("llama")
    expected, _ = run(model)
    model.zero_grad()
    with record_condition(model) as recorder:
        for ids in BATCHES:
            recorder.mask(MASK)
            with torch.no_grad():
                model(input_ids=ids)
            model(input_ids=ids, attention_mask=MASK, labels=ids.masked_fill(MASK == 0, -100)).loss.backward()
        assert recorder.blocks(run="run", seed=0, step=7) == expected


def test_nothing_measured_is_undecided():
    with record_condition(model_of("llama")) as recorder:
        blocks = recorder.blocks(run="run", seed=0, step=0)
    assert {block.favours for block in blocks} == {"undecided"}
    assert all(math.isnan(block.nuclear_rank) and not block.is_strong for block in blocks)


def test_the_condition_implies_its_general_form():
    draw = np.random.default_rng(0)
    for _ in range(1000):
        gradient_stable, stable, alpha = 1 + draw.exponential(5), 1 + draw.exponential(5), draw.exponential(9)
        nuclear = max(stable, gradient_stable) * (1 + draw.random())  # nr >= st of the same matrix, always
        assert nuclear >= general_threshold(stable, gradient_stable, alpha)
    assert general_threshold(7.0, 3.0, 0.0) == 7.0
