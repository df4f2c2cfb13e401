"""Only biases train, and adding zero ones changes nothing but that there are some."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from stablerank.adapters.selective.bitfit import train_biases
from stablerank.errors import ModelError

# Each decoder layer: attention's four for Llama and Qwen3, and the MLP's three, which Qwen3 has no switch for.
ADDED = {"llama": 2 * (4 + 3), "qwen3": 2 * 4}


def step(model, ids):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimiser.step()


def test_only_biases_move_and_all_of_them(load, ids):
    base, model = load("gpt_neox"), train_biases(load("gpt_neox"))
    step(model, ids)
    before = base.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in base.named_parameters() if name.endswith("bias")}
    assert any("layernorm" in name for name in moved) and any("query_key_value" in name for name in moved)


@pytest.mark.parametrize(("architecture", "switches"), [("llama", "attention_bias, mlp_bias"), ("qwen3", "attention_")])
def test_a_model_without_biases_is_refused_with_the_remedy(load, architecture, switches):
    with pytest.raises(ModelError, match=rf"ForCausalLM has no bias; set `biases: added`.*{switches}"):
        train_biases(load(architecture))


@pytest.mark.parametrize("architecture", ADDED)
@pytest.mark.parametrize("autocast", [False, True])
def test_added_biases_leave_the_function_bitwise(load, ids, architecture, autocast):
    base, model = load(architecture), train_biases(load(architecture), biases="added")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(model(ids).logits, base(ids).logits)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert len(trained) == ADDED[architecture]


@pytest.mark.parametrize("architecture", ADDED)
def test_trained_added_biases_load_in_stock_transformers(load, ids, tmp_path: Path, architecture):
    model = train_biases(load(architecture), biases="added")
    untrained = model(ids).logits
    step(model, ids)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert (model(ids).logits - untrained).abs().max() > 0.01


def test_ties_generation_settings_and_the_path_of_the_reference_survive(tmp_path: Path, ids):
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    config.tie_word_embeddings = True
    made = LlamaForCausalLM(config)
    made.generation_config.temperature, made.generation_config.do_sample = 0.7, True
    made.save_pretrained(tmp_path)
    model = train_biases(AutoModelForCausalLM.from_pretrained(tmp_path), biases="added")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.temperature == 0.7
    assert model.config._name_or_path == str(tmp_path)
    assert model.config.attention_bias and model.config.mlp_bias


def test_added_is_refused_where_the_architecture_has_no_switch(load):
    mistral = MistralForCausalLM(
        MistralConfig(vocab_size=48, hidden_size=32, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4)
    )
    with pytest.raises(ModelError, match=r"MistralForCausalLM has no bias; its configuration cannot switch any on"):
        train_biases(mistral)
    for model in (mistral, load("gpt_neox")):
        with pytest.raises(ModelError, match=rf"{type(model).__name__}'s configuration has no switch"):
            train_biases(model, biases="added")


def test_biases_are_counted_on_a_weightless_model(load):
    config = load("llama").config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = train_biases(model, biases="added").num_parameters(only_trainable=True)
    # q, k, v, o; gate, up, down
    assert counted == 2 * (32 + 16 + 16 + 32 + 56 + 56 + 32)
