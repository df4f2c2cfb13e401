"""Fused weights of real transformers models: what each model itself computes from a projection is the oracle.

One token at position 0 leaves queries and keys unrotated, so the key and value cache of the model holds exactly
`W_k x` and `W_v x` of the input `x` that a hook sees; the query is what remains of the rows.
"""

import pickle
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, ModernBertConfig, ModernBertModel

from stablerank.probes.sources import fused_layouts
from stablerank.probes.sources.folder import open_source
from stablerank.probes.sources.splitting import matrices, why_not
from stablerank.probes.sources.stored import StoredTensor

SMALL = {"vocab_size": 40, "num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 20}
OLD = {"vocab_size": 40, "n_layer": 1, "n_embd": 24, "n_head": 4, "n_positions": 16}
KV = {"num_key_value_heads": 2}
FUSED_ATTENTION = {
    "gpt2": ("gpt2", OLD, "c_attn"),
    "gpt_bigcode multi-query": ("gpt_bigcode", OLD, "c_attn"),
    "gpt_bigcode": ("gpt_bigcode", OLD | {"multi_query": False}, "c_attn"),
    "gpt_neox": ("gpt_neox", SMALL, "query_key_value"),
    "gpt_neox_japanese": ("gpt_neox_japanese", SMALL | {"intermediate_multiple_size": 2}, "query_key_value"),
    "bloom": ("bloom", OLD | {"hidden_size": 24}, "query_key_value"),
    "persimmon": ("persimmon", SMALL | {"qk_layernorm": False, "num_attention_heads": 3}, "query_key_value"),
    "falcon new": ("falcon", SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2}, "query_key_value"),
    "falcon multi-query": ("falcon", SMALL, "query_key_value"),
    "falcon": ("falcon", SMALL | {"multi_query": False}, "query_key_value"),
    "phi3": ("phi3", SMALL | KV | {"pad_token_id": 0}, "qkv_proj"),
    "phi3 head_dim": ("phi3", SMALL | KV | {"pad_token_id": 0, "head_dim": 8}, "qkv_proj"),
    "codegen": ("codegen", OLD | {"rotary_dim": 4}, "qkv_proj"),
    "mpt": ("mpt", {"d_model": 24, "n_heads": 4, "n_layers": 1, "vocab_size": 40, "expansion_ratio": 1}, "Wqkv"),
    "dbrx": (
        "dbrx",
        {
            "d_model": 24,
            "n_heads": 4,
            "n_layers": 1,
            "vocab_size": 40,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 100.0, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 24},
        },
        "Wqkv",
    ),
}


def build(model_type, settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.0 if name.endswith("bias") else 0.3)
    return model


def saved(model, folder):
    model.save_pretrained(folder)
    source = open_source(folder)
    assert source.problems == ()
    return source


def split(source, ending):
    """The parts of the one tensor with that ending, by last name, and the tensor."""
    (stored,) = [tensor for tensor in source.tensors if tensor.name.endswith(ending)]
    parts, tensor = matrices(stored, source.config), stored.read()
    assert all(part.note == "" for part in parts)
    assert all(tuple(part.select(tensor).shape) == part.shape for part in parts)
    return {part.name.rpartition(".")[2]: part.select(tensor) for part in parts}, tensor


def every_part(source):
    return {
        part.name: part.select(tensor.read()) for tensor in source.tensors for part in matrices(tensor, source.config)
    }


def fake(name, *shape, dtype="F32"):
    return StoredTensor(name, shape, dtype, 0, Path("model.safetensors"), lambda: torch.rand(shape))


def rows(*matrices_OI):
    return sorted(row.tolist() for matrix in matrices_OI for row in matrix)


@pytest.mark.parametrize("case", FUSED_ATTENTION)
def test_queries_keys_and_values_are_those_that_the_model_computes(case, tmp_path):
    model_type, settings, leaf = FUSED_ATTENTION[case]
    model = build(model_type, settings)
    parts, fused = split(saved(model, tmp_path), f".{leaf}.weight")
    seen = {}
    (module,) = [module for name, module in model.named_modules() if name.endswith(f".{leaf}")]
    module.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0].flatten()))
    with torch.no_grad():
        cache = model(torch.tensor([[7]]), use_cache=True).past_key_values.layers[0]

    by_column = type(module).__name__ == "Conv1D"
    w = {name: part.T if by_column else part for name, part in parts.items()}
    assert sorted(w) == ["k_proj", "q_proj", "v_proj"]
    assert rows(*w.values()) == rows(fused.T if by_column else fused)
    repeats = cache.keys.numel() // w["k_proj"].shape[0]  # the new falcon repeats its keys for every query of a group
    for name, held in (("k_proj", cache.keys), ("v_proj", cache.values)):
        torch.testing.assert_close(held[0, ::repeats].flatten(), w[name] @ seen["x"])


def test_lightning_attention_of_minimax(tmp_path):
    """Of one token it is `(q k) v` within each head, after an activation of all three."""
    settings = SMALL | KV | {"head_dim": 6, "layer_types": ["linear_attention"], "num_local_experts": 2}
    model, seen = build("minimax", settings), {}
    parts, _ = split(saved(model, tmp_path), ".qkv_proj.weight")
    attention = model.model.layers[0].self_attn
    attention.qkv_proj.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0].flatten()))
    attention.norm.register_forward_hook(lambda _, inputs, output: seen.update(mixed=inputs[0].flatten()))
    with torch.no_grad():
        model(torch.tensor([[7]]))
        q_HD, k_HD, v_HD = (attention.act_fn(part @ seen["x"]).view(4, 6) for part in parts.values())
    torch.testing.assert_close(seen["mixed"], ((q_HD * k_HD).sum(1, keepdim=True) * v_HD).flatten())


def test_an_encoder_without_a_cache(tmp_path):
    """ModernBERT: queries, keys and values as its own attention function receives them, and its gated MLP."""
    seen = {}

    def attention(module, query, key, value, *_, **__):
        seen.update(q_proj=query, k_proj=key, v_proj=value)
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register("seen", attention)
    torch.manual_seed(0)
    config = ModernBertConfig(**SMALL, pad_token_id=0, bos_token_id=0, eos_token_id=0, cls_token_id=0, sep_token_id=0)
    model = ModernBertModel._from_config(config, attn_implementation="seen").eval()
    source = saved(model, tmp_path)
    parts, _ = split(source, ".Wqkv.weight")
    model.layers[0].attn.Wqkv.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0].flatten()))
    model(torch.tensor([[7]]))
    for name, part in parts.items():
        torch.testing.assert_close(seen[name].flatten(), part @ seen["x"])
    assert_gated(split(source, ".Wi.weight")[0], model.layers[0].mlp, lambda mlp, y: mlp.Wo(y))


def assert_gated(parts, mlp, down):
    x_I = torch.rand(parts["gate_proj"].shape[1])
    activation = next(child for name, child in mlp.named_children() if name.startswith("act"))
    torch.testing.assert_close(mlp(x_I), down(mlp, activation(parts["gate_proj"] @ x_I) * (parts["up_proj"] @ x_I)))


@pytest.mark.parametrize("model_type", ["phi3", "glm", "glm4"])
def test_gate_and_up_of_a_dense_block(model_type, tmp_path):
    model = build(model_type, SMALL | KV | {"pad_token_id": 0, "head_dim": 6})
    parts, tensor = split(saved(model, tmp_path), ".gate_up_proj.weight")
    assert_gated(parts, model.model.layers[0].mlp, lambda mlp, y: mlp.down_proj(y))
    assert parts["up_proj"].untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("model_type", "experts"),
    [("qwen2_moe", "num_experts"), ("qwen3_moe", "num_experts"), ("mixtral", "num_local_experts")],
)
def test_a_fused_expert_stack_gives_what_the_library_saves_unfused(model_type, experts, tmp_path):
    model = build(model_type, SMALL | KV | {experts: 3, "moe_intermediate_size": 10, "num_experts_per_tok": 2})
    unfused = every_part(saved(model, tmp_path / "unfused"))
    (tmp_path / "fused").mkdir()
    save_file(model.state_dict(), tmp_path / "fused" / "model.safetensors")
    (tmp_path / "fused" / "config.json").write_bytes((tmp_path / "unfused" / "config.json").read_bytes())
    parts = every_part(open_source(tmp_path / "fused"))
    stacked = {name.partition(".experts.")[2]: part for name, part in parts.items() if ".experts." in name}
    assert len(stacked) == 9
    renamed = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for name, expected in unfused.items():
        _, inside, leaf = name.partition(".experts.")
        if inside:
            expert, _, projection = leaf.partition(".")
            assert torch.equal(stacked.pop(f"{expert}.{renamed.get(projection, projection)}"), expected)
    assert stacked == {}


def test_interleaved_columns_of_gpt_oss(tmp_path):
    """A gate of zero silences an expert, whose biases are zero; an up of zero does not."""
    model = build("gpt_oss", SMALL | KV | {"num_local_experts": 3, "head_dim": 6, "num_experts_per_tok": 2})
    source = saved(model, tmp_path)
    (stored,) = [tensor for tensor in source.tensors if tensor.name.endswith("experts.gate_up_proj")]
    experts, fused = model.model.layers[0].mlp.experts, stored.read()
    parts = {part.name.rpartition(".experts.")[2]: part for part in matrices(stored, source.config)}
    assert list(parts)[:3] == ["0.gate_proj", "0.up_proj", "1.gate_proj"]
    assert len(parts) == 6
    call = (torch.rand(1, 24), torch.tensor([[1]]), torch.tensor([[1.0]]))
    for name, silent in (("1.gate_proj", True), ("1.up_proj", False), ("0.gate_proj", False)):
        changed = fused.clone()
        view = parts[name].select(changed)
        assert view.untyped_storage().data_ptr() == changed.untyped_storage().data_ptr()
        assert tuple(view.shape) == parts[name].shape == (24, 20)
        view.zero_()
        with torch.no_grad():
            experts.gate_up_proj.copy_(changed)
            assert bool((experts(*call) == 0).all()) is silent


def test_column_stacks_without_interleaving():
    for model_type in ("llama4_text", "aria_text"):
        config = {"model_type": model_type, "hidden_size": 6}
        tensor = torch.rand(2, 6, 8)
        gate, up, *_ = matrices(fake("layers.0.mlp.experts.gate_up_proj", 2, 6, 8), config)
        assert torch.equal(torch.cat([gate.select(tensor), up.select(tensor)], dim=1), tensor[0])
        square = fake("layers.0.mlp.experts.gate_up_proj", 2, 6, 6)
        assert matrices(square, config)[0].shape == (6, 3)
        assert matrices(square, config | {"model_type": "olmoe"})[0].shape == (3, 6)


def test_granite_names_and_shared_expert(tmp_path):
    settings = SMALL | KV | {"num_local_experts": 3, "num_experts_per_tok": 2, "shared_intermediate_size": 10}
    model = build("granitemoeshared", settings)
    held = every_part(saved(model, tmp_path))
    layer = model.model.layers[0]
    gate, up = layer.block_sparse_moe.experts.gate_up_proj[2].chunk(2)
    assert torch.equal(held["model.layers.0.block_sparse_moe.experts.2.gate_proj"], gate)
    assert torch.equal(held["model.layers.0.block_sparse_moe.experts.2.up_proj"], up)
    assert held["model.layers.0.block_sparse_moe.experts.2.down_proj"].shape == (24, 20)
    x_I = torch.rand(24)
    gated = layer.shared_mlp.activation(held["model.layers.0.shared_mlp.gate_proj"] @ x_I)
    y_I = layer.shared_mlp.output_linear(gated * (held["model.layers.0.shared_mlp.up_proj"] @ x_I))
    torch.testing.assert_close(layer.shared_mlp(x_I), y_I)


def test_experts_of_dbrx_lie_below_each_other(tmp_path):
    model = build("dbrx", FUSED_ATTENTION["dbrx"][1])
    source = saved(model, tmp_path)
    (stored,) = [tensor for tensor in source.tensors if tensor.name.endswith(".w1")]
    parts = matrices(stored, source.config)
    assert [part.name.rpartition("ffn.")[2] for part in parts] == [f"experts.{number}.w1" for number in range(4)]
    assert torch.equal(torch.cat([part.select(stored.read()) for part in parts]), stored.read())
    (whole,) = matrices(stored, {"model_type": "dbrx"})
    assert (whole.name, whole.shape) == (stored.name, stored.shape)
    assert "moe_num_experts" in whole.note


def test_cross_attention_of_gpt2_holds_keys_and_values():
    tensor = torch.rand(6, 12)
    key, value = matrices(fake("h.0.crossattention.c_attn.weight", 6, 12), {"model_type": "gpt2"})
    assert (key.name, value.name) == ("h.0.crossattention.k_proj", "h.0.crossattention.v_proj")
    assert torch.equal(torch.cat([key.select(tensor), value.select(tensor)], dim=1), tensor)


@pytest.mark.parametrize(
    ("name", "shape", "config", "words"),
    [
        ("a.query_key_value.weight", (12, 4), {}, "model type ''"),
        ("a.query_key_value.weight", (12, 4), {"model_type": "chatglm"}, "'chatglm'"),
        ("a.query_key_value.weight", (12, 4), {"model_type": "bloom"}, "num_attention_heads"),
        ("a.query_key_value.weight", (12, 4), {"model_type": "bloom", "n_head": 5}, "12"),
        ("a.query_key_value.weight", (12, 4), {"model_type": "bloom", "n_head": True}, "num_attention_heads"),
        ("a.query_key_value.weight", (12, 4), {"model_type": "bloom", "n_head": "2"}, "num_attention_heads"),
        ("a.query_key_value.weight", (12, 4), {"model_type": ["bloom"]}, "bloom"),
        ("a.query_key_value.weight", (12, 4), {"model_type": "falcon", "hidden_size": 4, "n_head": 9}, "12"),
        ("a.qkv_proj.weight", (12, 4), {"model_type": "phi3", "num_attention_heads": 4}, "hidden_size"),
        ("a.qkv_proj.weight", (13, 4), {"model_type": "codegen"}, "13"),
        ("a.Wqkv.weight", (12, 4), {"model_type": "dbrx", "d_model": 4, "n_heads": 2, "attn_config": 3}, "kv_n_heads"),
        ("a.c_attn.weight", (4, 13), {"model_type": "gpt2"}, "13"),
        ("a.gate_up_proj.weight", (13, 4), {"model_type": "phi3"}, "13"),
        ("visual.blocks.0.attn.qkv.weight", (12, 4), {"model_type": "qwen2_vl"}, "tower"),
        ("vision_tower.layers.0.mlp.gate_up_proj.weight", (12, 4), {"model_type": "phi4_multimodal"}, "tower"),
        ("blk.0.attn_qkv.weight", (12, 4), {"model_type": "phi3"}, "attn_qkv"),
        ("a.experts.gate_up_proj", (2, 12, 4), {}, "hidden_size"),
        ("a.experts.gate_up_proj", (2, 12, 4), {"model_type": "x", "hidden_size": 5}, "hidden size 5"),
        ("a.experts.gate_up_proj", (2, 13, 4), {"model_type": "x", "hidden_size": 4}, "13"),
        ("a.experts.gate_up_proj", (2, 4, 4), {"model_type": "qwen3_vl_moe", "hidden_size": 4}, "two ways"),
    ],
)
def test_what_the_config_does_not_say_stays_whole_with_the_reason(name, shape, config, words):
    parts = matrices(fake(name, *shape), config)
    assert all(words in part.note and part.note.startswith("fused and kept whole") for part in parts)
    assert [part.select(torch.rand(shape)).shape for part in parts] == [shape[-2:]] * len(parts)
    assert len(parts) == (2 if len(shape) == 3 else 1)


def test_a_nested_text_config_is_used():
    config = {"model_type": "outer", "text_config": {"model_type": "phi3", "num_attention_heads": 2, "hidden_size": 4}}
    parts = matrices(fake("model.language_model.layers.0.self_attn.qkv_proj.weight", 12, 4), config)
    assert [part.shape for part in parts] == [(4, 4)] * 3


def test_plain_matrices_are_themselves():
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight", "odd"):
        (part,) = matrices(fake(name, 3, 5, dtype="BF16"), {"model_type": "llama"})
        assert (part.name, part.shape, part.note) == (name.removesuffix(".weight"), (3, 5), "")
        tensor = torch.rand(3, 5)
        assert part.select(tensor) is tensor


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (fake("norm.weight", 4), "vector"),
        (fake("scale"), "vector"),
        (fake("experts.gate_up_proj_bias", 2, 4), "vector"),
        (fake("conv.weight", 4, 1, 3, 3), "convolution"),
        (fake("mixer.conv1d.weight", 4, 1, 3), "convolution"),
        (fake("q.weight", 4, 4, dtype="U8"), "integer"),
        (fake("mask", 4, 4, dtype="BOOL"), "integer"),
        (fake("q.qweight", 4, 4, dtype="I32"), "integer"),
        (fake("c", 4, 4, dtype="C64"), "complex"),
        (fake("e.weight", 0, 4), "empty"),
        (fake("q_proj.weight_scale_inv", 2, 4), "quantisation scales"),
        (fake("q_proj.scales", 2, 4), "quantisation scales"),
        (fake("w.weight", 4, 4, dtype="Q4_1"), None),
        (fake("w.weight", 4, 4, dtype="F8_E4M3"), None),
        (fake("w.weight", 4, 4, dtype="IQ4_NL"), None),
        (fake("mlp.experts.down_proj", 2, 4, 4), None),
    ],
)
def test_why_a_tensor_holds_no_matrix(tensor, reason):
    assert why_not(tensor) == reason
    assert bool(matrices(tensor, {})) is (reason is None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_dtypes_are_split_and_parts_can_be_sent_to_another_process(dtype):
    config = {"model_type": "gpt_neox", "num_attention_heads": 2}
    parts = matrices(fake("h.query_key_value.weight", 12, 4), config)
    tensor = torch.arange(48.0).view(12, 4).to(dtype)
    key = pickle.loads(pickle.dumps(parts[1].select))(tensor)
    assert key.dtype is dtype
    assert torch.equal(key.float(), tensor.float()[[2, 3, 8, 9]])


def test_every_model_type_of_the_rules_exists_in_transformers():
    known = set(transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES)
    named = {name for rules in fused_layouts._RULES.values() for name in rules} | fused_layouts._COLUMN_STACKS
    assert named - known == set()
