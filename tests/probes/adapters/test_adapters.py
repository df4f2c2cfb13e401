"""Against PEFT itself: every update is PEFT's merged weight minus the original weight.

Models are wrapped in fp32 (some initialisers ask for it), then trained, saved and merged in fp64, so a disagreement
beyond 1e-10 is a wrong formula.
"""

import json
import pickle
import shutil

import numpy as np
import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from stablerank.errors import ModelError
from stablerank.probes.adapters.folder import MEASURABLE, open_adapter
from stablerank.spectral.exact import spectrum, stable_rank_exact
from stablerank.spectral.operators import Dense, Factored

Q = "model.layers.0.self_attn.q_proj"
LINEAR = ["q_proj", "v_proj", "up_proj", "down_proj"]


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(4, 6, 3, padding=1)
        self.narrow = nn.Conv2d(6, 4, 1)
        self.line = nn.Conv1d(4, 6, 3)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.head = nn.Linear(8, 6)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 36, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_hidden_layers=2, **sizes))


def gpt2():
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=1, n_head=2, vocab_size=40, n_positions=8, **ids))


def mixtral():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1}
    return MixtralForCausalLM(MixtralConfig(vocab_size=40, num_hidden_layers=1, num_local_experts=3, **sizes))


def convolutions():
    torch.manual_seed(0)
    return Convolutions()


def trained(model, config):
    """The wrapped model with every adapter parameter moved, as training would."""
    wrapped = get_peft_model(model, config).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return wrapped


def saved(wrapped, folder):
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def weights(model):
    return {name.removesuffix(".weight"): tensor.double().clone() for name, tensor in model.state_dict().items()}


def materialised(update):
    operator = update.build()
    if isinstance(operator, Dense):
        return operator.matrix_OI.double()
    return operator.scale * (operator.b_OR.double() @ operator.a_RI.double())


def assert_updates(source, before, after, atol=1e-10):
    """Each update of ``source`` is ``after - before``, and no weight changed without one."""
    assert source.problems == ()
    for update in source.updates:
        expected = (after[update.name] - before[update.name]).flatten(1)
        found = materialised(update)
        assert update.shape == tuple(expected.shape) == update.build().shape
        assert expected.norm() > 0
        torch.testing.assert_close(found, expected, rtol=0, atol=atol * max(1.0, expected.abs().max().item()))
    changed = {name for name, weight in after.items() if name in before and not torch.equal(weight, before[name])}
    assert changed == {update.name for update in source.updates}


def check(model, config, folder, **opening):
    before = weights(model)
    wrapped = trained(model, config)
    saved(wrapped, folder)
    source = open_adapter(folder, **opening)
    assert_updates(source, before, weights(wrapped.merge_and_unload()))
    return source


LORA = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 5},
        "alpha_pattern": {r"^model.layers.0.self_attn.q_proj": 3, "down_proj": 11},
    },
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "bias": {"r": 4, "bias": "lora_only"},
    "orthogonal": {"r": 4, "init_lora_weights": "orthogonal"},
    "mica": {"r": 4, "init_lora_weights": "mica"},
}


@pytest.mark.parametrize("settings", LORA.values(), ids=LORA)
def test_lora(settings, tmp_path):
    source = check(llama(), peft.LoraConfig(**{"target_modules": LINEAR, **settings}), tmp_path)
    assert all(isinstance(update.build(), Factored) for update in source.updates)
    assert source.peft_type == "LORA"


def test_spectrum_and_size_of_a_lora_update(tmp_path):
    model = llama()
    wrapped = trained(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    delta = wrapped.get_submodule(f"base_model.model.{Q}").get_delta_weight("default").detach().numpy()
    [update, _] = open_adapter(saved(wrapped, tmp_path)).updates
    found = spectrum(update.build()).values_NK[0, :4].numpy()
    np.testing.assert_allclose(found, np.linalg.svd(delta, compute_uv=False)[:4], rtol=1e-10)
    assert (update.name, update.dtype, update.nbytes) == (Q, "F64", 8 * 4 * (24 + 24))


def test_fan_in_fan_out_keeps_the_stored_orientation(tmp_path):
    source = check(gpt2(), peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), tmp_path)
    assert (24, 72) in {update.shape for update in source.updates}


def test_convolutions(tmp_path):
    source = check(convolutions(), peft.LoraConfig(r=3, target_modules=["wide", "narrow", "line", "head"]), tmp_path)
    assert {update.name: update.shape for update in source.updates} == {
        "wide": (6, 36),
        "narrow": (4, 6),
        "line": (6, 12),
        "head": (6, 8),
    }


def test_grouped_convolution_is_a_problem(tmp_path):
    wrapped = trained(convolutions(), peft.LoraConfig(r=4, target_modules=["grouped", "head"]))
    source = open_adapter(saved(wrapped, tmp_path))
    assert [update.name for update in source.updates] == ["head"]
    assert "grouped convolution" in source.problems[0].reason


def experts_config(**settings):
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    return peft.LoraConfig(r=4, lora_alpha=6, **{"target_modules": ["q_proj"], "target_parameters": targets} | settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"rank_pattern": {"experts.gate_up_proj": 2}}, {"target_parameters": ["gate_up_proj", "down_proj"]}],
    ids=["holder", "pattern", "bare"],
)
def test_expert_stacks(settings, tmp_path):
    model = mixtral()
    before = weights(model)
    wrapped = trained(model, experts_config(**settings))
    source = open_adapter(saved(wrapped, tmp_path))
    after = weights(wrapped.merge_and_unload())
    assert source.problems == ()
    found = {update.name: materialised(update) for update in source.updates}
    experts = "model.layers.0.mlp.experts"
    names = [f"{experts}.{parameter}.{e}" for parameter in ("down_proj", "gate_up_proj") for e in range(3)]
    assert set(found) == {*names, Q}
    for name in names:
        parameter, _, expert = name.rpartition(".")
        torch.testing.assert_close(found[name], (after[parameter] - before[parameter])[int(expert)])


def test_one_parameter_of_a_linear_layer(tmp_path):
    check(llama(), peft.LoraConfig(r=4, target_modules=[], target_parameters=["q_proj.weight"]), tmp_path)


def test_parameters_that_the_file_does_not_tell_apart(tmp_path):
    saved(trained(mixtral(), experts_config()), tmp_path)
    edit_config(tmp_path, target_parameters=["experts.first", "experts.second"])
    source = open_adapter(tmp_path)
    assert [update.name for update in source.updates] == [Q]
    assert len(source.problems) == 2 and "first, second" in source.problems[0].reason


def base_of(model):
    stored = weights(model)
    return stored.get


DORA = {
    "linear": (llama, {"target_modules": LINEAR}),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "convolution": (convolutions, {"target_modules": ["wide", "narrow", "line", "head"]}),
}


@pytest.mark.parametrize(("model", "settings"), DORA.values(), ids=DORA)
def test_dora_with_its_base(model, settings, tmp_path):
    model = model()
    config = peft.LoraConfig(r=3, use_dora=True, **settings)
    source = check(model, config, tmp_path, base_weight=base_of(model))
    assert all(isinstance(update.build(), Dense) for update in source.updates)


def test_dora_without_its_base(tmp_path):
    saved(trained(llama(), peft.LoraConfig(r=3, use_dora=True, target_modules=["q_proj"])), tmp_path)
    source = open_adapter(tmp_path)
    assert source.updates == ()
    assert [problem.tensor for problem in source.problems] == [Q, Q.replace("0", "1")]
    assert "--against BASE" in source.problems[0].reason


@pytest.mark.parametrize(("weight", "words"), [(None, "no weight"), (torch.ones(24, 25), r"\(24, 25\)")])
def test_dora_with_another_base(weight, words, tmp_path):
    saved(trained(llama(), peft.LoraConfig(r=3, use_dora=True, target_modules=["q_proj"])), tmp_path)
    [update, _] = open_adapter(tmp_path, base_weight=lambda name: weight).updates
    with pytest.raises(ModelError, match=words):
        update.build()


def edit_config(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def edit_tensors(folder, change):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def subtracting(init, folder, **settings):
    """Original weights, the trained model, and the folders of the first and of the trained adapter."""
    model = llama()
    before = weights(model)
    wrapped = get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=init, target_modules=LINEAR, **settings)
    ).double()
    wrapped.peft_config["default"].init_lora_weights = True  # as PEFT asks before the first adapter is saved
    first = saved(wrapped, folder / "first")
    wrapped.peft_config["default"].init_lora_weights = init
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return before, wrapped, first


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_initialisers_that_change_the_base(init, tmp_path):
    before, wrapped, first = subtracting(init, tmp_path)
    last = saved(wrapped, tmp_path / "last")
    converted = tmp_path / "converted"
    wrapped.save_pretrained(converted, path_initial_model_for_weight_conversion=str(first), save_embedding_layers=False)
    residual = {name.replace(".base_layer", ""): weight for name, weight in weights(wrapped.get_base_model()).items()}
    after = weights(wrapped.merge_and_unload())

    bare = open_adapter(last)
    assert_updates(bare, {name: residual[name] for name in after}, after)
    assert any("relative to that residual base" in note for note in bare.notes)

    exact = open_adapter(last, initial=first)
    assert_updates(exact, before, after, atol=1e-6)  # PEFT rounds the residual base to fp32
    assert {update.build().b_OR.shape[1] for update in exact.updates} == {8}
    assert exact.notes == ()

    plain = open_adapter(converted)
    assert plain.notes == ()
    for update, same in zip(plain.updates, exact.updates, strict=True):
        torch.testing.assert_close(materialised(update), materialised(same), rtol=0, atol=1e-12)

    twice = open_adapter(converted, initial=first)
    assert twice.updates == () and "converted" in twice.problems[0].reason


def test_dora_over_a_changed_base_needs_the_first_adapter(tmp_path):
    before, wrapped, first = subtracting("pissa", tmp_path, use_dora=True)
    last = saved(wrapped, tmp_path / "last")
    after = weights(wrapped.merge_and_unload())
    assert_updates(open_adapter(last, initial=first, base_weight=before.get), before, after, atol=1e-6)
    alone = open_adapter(last, base_weight=before.get)
    assert alone.updates == () and "initial adapter" in alone.problems[0].reason


def test_kasa(tmp_path):
    model = llama()
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], kasa_config=peft.KasaConfig())
    wrapped = trained(model, config)
    source = open_adapter(saved(wrapped, tmp_path))
    truncated = weights(wrapped.get_base_model())
    after = weights(wrapped.merge_and_unload())
    for update in source.updates:
        torch.testing.assert_close(materialised(update), after[update.name] - truncated[f"{update.name}.base_layer"])
    assert len(source.updates) == 2 and any("kasa_config" in note for note in source.notes)


@pytest.mark.parametrize("alpha", [5, 0])
@pytest.mark.parametrize("budget", [False, True])
def test_adalora(alpha, budget, tmp_path):
    settings = {"init_r": 4, "target_r": 2, "total_step": 100, "lora_alpha": alpha, "target_modules": ["q_proj"]}
    model = llama()
    before = weights(model)
    wrapped = trained(model, peft.AdaLoraConfig(**settings))
    if budget:
        kept = {f"{Q}.lora_E": [True, False, True, True], f"{Q.replace('0', '1')}.lora_E": [False, True, False, False]}
        wrapped.peft_config["default"].rank_pattern = kept
    saved(wrapped, tmp_path)
    reloaded = PeftModel.from_pretrained(llama().double(), tmp_path)
    assert_updates(open_adapter(tmp_path), before, weights(reloaded.merge_and_unload()))


LYCORIS = {
    "loha": (llama, peft.LoHaConfig, {"target_modules": LINEAR}),
    "lokr": (llama, peft.LoKrConfig, {"target_modules": LINEAR}),
    "lokr both": (llama, peft.LoKrConfig, {"target_modules": LINEAR, "decompose_both": True, "r": 1}),
    "lokr whole": (llama, peft.LoKrConfig, {"target_modules": LINEAR, "r": 30}),
    "loha kernels": (convolutions, peft.LoHaConfig, {"use_effective_conv2d": True}),
    "loha flat": (convolutions, peft.LoHaConfig, {"use_effective_conv2d": False}),
    # PEFT cannot merge a Tucker LoKr on a Conv1d: torch.kron fails on kernels of width one.
    "lokr kernels": (convolutions, peft.LoKrConfig, {"use_effective_conv2d": True, "r": 1, "target_modules": ["wide"]}),
    "lokr flat": (convolutions, peft.LoKrConfig, {"use_effective_conv2d": False, "r": 1}),
    "lokr whole kernels": (convolutions, peft.LoKrConfig, {"r": 30}),
}


@pytest.mark.parametrize(("model", "config", "settings"), LYCORIS.values(), ids=LYCORIS)
def test_loha_and_lokr(model, config, settings, tmp_path):
    settings = {
        "r": 3,
        "alpha": 6,
        "init_weights": False,
        "target_modules": ["wide", "narrow", "line", "head"],
    } | settings
    check(model(), config(**settings, rank_pattern={}, alpha_pattern={"q_proj": 3}), tmp_path)


LAYERS = {
    "C3A": lambda: peft.C3AConfig(block_size=12, target_modules=LINEAR),
    "DELORA": lambda: peft.DeloraConfig(r=4, target_modules=LINEAR),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=20, target_modules=LINEAR),
    "GRALORA": lambda: peft.GraloraConfig(r=4, gralora_k=2, target_modules=LINEAR),
    "PVERA": lambda: peft.PveraConfig(r=4, target_modules=LINEAR),
    "RANDLORA": lambda: peft.RandLoraConfig(r=4, target_modules=LINEAR),
    "SHIRA": lambda: peft.ShiraConfig(r=2, target_modules=LINEAR),
    "VBLORA": lambda: peft.VBLoRAConfig(r=4, num_vectors=16, vector_length=6, topk=2, target_modules=LINEAR),
    "VERA": lambda: peft.VeraConfig(r=4, target_modules=LINEAR),
    "VERA drawn": lambda: peft.VeraConfig(r=4, save_projection=False, target_modules=LINEAR),
    "RANDLORA drawn": lambda: peft.RandLoraConfig(r=4, save_projection=False, target_modules=LINEAR),
    "WAVEFT": lambda: peft.WaveFTConfig(n_frequency=20, target_modules=LINEAR),
}
FROM_THE_FILE = ("C3A", "DELORA", "GRALORA")


@pytest.mark.parametrize("kind", LAYERS)
def test_types_that_peft_computes(kind, tmp_path):
    model = llama()
    before = weights(model)
    wrapped = trained(model, LAYERS[kind]())
    saved(wrapped, tmp_path)
    after = weights(wrapped.eval().merge_and_unload())
    state = torch.get_rng_state()
    source = open_adapter(tmp_path, base_weight=None if kind in FROM_THE_FILE else before.get)
    # C3A and PEFT's own draws stay in fp32.
    assert_updates(source, before, after, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert any("drawn again" in note for note in source.notes) == ("drawn" in kind)


@pytest.mark.parametrize("kind", sorted(set(LAYERS) - set(FROM_THE_FILE)))
def test_types_whose_shapes_only_the_base_knows(kind, tmp_path):
    saved(trained(llama(), LAYERS[kind]()), tmp_path)
    with pytest.raises(ModelError, match="--against BASE"):
        open_adapter(tmp_path)
    with pytest.raises(ModelError, match="the base has no weight"):
        open_adapter(tmp_path, base_weight=lambda name: None)


def test_shared_projection_of_another_base(tmp_path):
    saved(trained(llama(), LAYERS["VERA"]()), tmp_path)
    update, *_ = open_adapter(tmp_path, base_weight=lambda name: torch.zeros(48, 48)).updates
    with pytest.raises(ModelError, match="says PEFT"):
        update.build()


def test_a_lost_shared_tensor(tmp_path):
    model = llama()
    before = weights(model)
    saved(trained(model, LAYERS["VBLORA"]()), tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.pop("base_model.vblora_vector_bank"))
    update, *_ = open_adapter(tmp_path, base_weight=before.get).updates
    with pytest.raises(ModelError, match="vblora_vector_bank"):
        update.build()


def lora_folder(folder, model=llama, **settings):
    return saved(trained(model(), peft.LoraConfig(r=4, **{"target_modules": ["q_proj"]} | settings)), folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_keep_their_dtype(dtype, tmp_path):
    wrapped = trained(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"])).to(dtype)
    update = open_adapter(saved(wrapped, tmp_path)).updates[0]
    factored = update.build()
    assert factored.b_OR.dtype == factored.a_RI.dtype == dtype
    layer = wrapped.get_submodule(f"base_model.model.{update.name}")
    assert torch.equal(factored.a_RI, layer.lora_A["default"].weight)
    assert torch.equal(factored.b_OR, layer.lora_B["default"].weight)


def test_what_is_not_an_update_is_told(tmp_path):
    settings = {"modules_to_save": ["ln_f"], "bias": "all", "trainable_token_indices": {"wte": [1, 2]}}
    model = gpt2()
    wrapped = trained(model, peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, **settings))
    source = open_adapter(saved(wrapped, tmp_path))
    [norm] = source.replaced
    assert norm.name == "transformer.ln_f.weight"
    assert torch.equal(norm.read(), weights(wrapped)["base_model.model.transformer.ln_f.modules_to_save.default"])
    told = " ".join(source.notes)
    biases = sum(name.endswith(".bias") for name in load_file(tmp_path / "adapter_model.safetensors"))
    assert f"no spectrum: {biases}." in told and "of a matrix: 2." in told and "the base: 1." in told


def test_several_adapters_in_one_folder(tmp_path):
    wrapped = trained(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    wrapped.add_adapter("second", peft.LoraConfig(r=2, target_modules=["v_proj"]))
    saved(wrapped, tmp_path)
    assert "second" in " ".join(open_adapter(tmp_path).notes)
    second = open_adapter(tmp_path, adapter="second")
    assert [update.build().b_OR.shape for update in second.updates] == [(12, 2)] * 2
    (tmp_path / "adapter_config.json").unlink()
    assert open_adapter(tmp_path).path == tmp_path / "second"
    shutil.copytree(tmp_path / "second", tmp_path / "third")
    with pytest.raises(ModelError, match="second, third"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("kind", ["IA3", "OFT", "BOFT", "PROMPT_TUNING", "XLORA", "not one"])
def test_types_without_an_additive_update(kind, tmp_path):
    edit_config(lora_folder(tmp_path), peft_type=kind)
    with pytest.raises(ModelError, match=f"{kind} adapter, and this type has no additive weight update"):
        open_adapter(tmp_path)


def test_the_types_are_those_of_peft():
    assert set(MEASURABLE) <= {kind.value for kind in peft.PeftType}


@pytest.mark.parametrize("setting", ["use_qalora", "use_bdlora", "arrow_config"])
def test_settings_that_make_another_update(setting, tmp_path):
    edit_config(lora_folder(tmp_path), **{setting: {"nblocks": 2}})
    source = open_adapter(tmp_path)
    assert source.updates == () and setting in source.problems[0].reason


def test_a_setting_that_peft_does_not_know(tmp_path):
    edit_config(lora_folder(tmp_path), sine_omega=200.0, another=None)
    source = open_adapter(tmp_path)
    assert len(source.updates) == 2
    [problem] = source.problems
    assert "sine_omega = 200.0" in problem.reason and "another" not in problem.reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 8}, "rank 4, but adapter_config.json gives it rank 8"),
        ({"r": 0}, "rank 0"),
        ({"r": None}, "r = None"),
        ({"lora_alpha": "much"}, "lora_alpha = 'much'"),
        ({"rank_pattern": {"(": 3}}, "no regular expression"),
        ({"rank_pattern": [3]}, "not a mapping"),
    ],
)
def test_settings_that_cannot_be(settings, words, tmp_path):
    edit_config(lora_folder(tmp_path), **settings)
    source = open_adapter(tmp_path)
    assert source.updates == ()
    assert all(words in problem.reason for problem in source.problems) and len(source.problems) == 2


def test_peft_refuses_the_rank_that_we_refuse(tmp_path):
    edit_config(lora_folder(tmp_path), r=8)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(llama(), tmp_path)


def lose(part):
    return lambda tensors: tensors.pop(f"base_model.model.{Q}.{part}")


def replace(part, tensor):
    return lambda tensors: tensors.update({f"base_model.model.{Q}.{part}": tensor})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lose("lora_B.weight"), "lora_A without lora_B"),
        (lose("lora_A.weight"), "lora_B without lora_A"),
        (replace("lora_B.weight", torch.ones(24, 3)), "do not chain"),
        (replace("lora_A.weight", torch.ones(0)), "shards"),
        (replace("lora_theta", torch.ones(4, 4)), "lora_theta beside its factors"),
        (replace("lora_diag", torch.ones(3)), "diagonal of shape"),
    ],
)
def test_one_bad_module_does_not_stop_the_others(change, words, tmp_path):
    edit_tensors(lora_folder(tmp_path), change)
    source = open_adapter(tmp_path)
    assert [update.name for update in source.updates] == [Q.replace("0", "1")]
    [problem] = source.problems
    assert (problem.file, problem.tensor) == (str(tmp_path / "adapter_model.safetensors"), Q)
    assert words in problem.reason


@pytest.mark.parametrize("kind", ["loha", "lokr", "C3A", "DELORA", "GRALORA"])
def test_one_bad_module_of_another_type(kind, tmp_path):
    lycoris = {"loha": peft.LoHaConfig, "lokr": peft.LoKrConfig}
    config = lycoris[kind](r=2, target_modules=LINEAR) if kind in lycoris else LAYERS[kind]()
    saved(trained(llama(), config), tmp_path)
    whole = len(open_adapter(tmp_path).updates)
    part = {"loha": "hada_w1_a", "lokr": "lokr_w1", "C3A": "c3a_kernel", "DELORA": "delora_B", "GRALORA": "gralora_A"}
    edit_tensors(tmp_path, replace(part[kind], torch.ones(3)))
    source = open_adapter(tmp_path)
    assert len(source.updates) == whole - 1 and [problem.tensor for problem in source.problems] == [Q]


def test_parts_that_do_not_fit(tmp_path):
    saved(trained(llama(), peft.LoHaConfig(r=2, target_modules=["q_proj"])), tmp_path)
    edit_tensors(tmp_path, replace("hada_w2_a", torch.ones(2, 3)))
    with pytest.raises(ModelError, match="do not fit together"):
        open_adapter(tmp_path).updates[0].build()


def test_rank_of_other_types(tmp_path):
    saved(trained(llama(), peft.LoHaConfig(r=2, target_modules=["q_proj"])), tmp_path)
    edit_config(tmp_path, r=4)
    assert all("parts of rank 2" in problem.reason for problem in open_adapter(tmp_path).problems)


def test_a_file_that_is_cut_off(tmp_path):
    file = lora_folder(tmp_path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    source = open_adapter(tmp_path)
    assert [update.name for update in source.updates] == [Q]
    assert len(source.problems) == 2  # the tensor that is cut, and the module that lacks it
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        open_adapter(tmp_path)


def remove_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def pickle_weights(folder):
    remove_weights(folder)
    torch.save({}, folder / "adapter_model.bin")


def empty_weights(folder):
    save_file({}, folder / "adapter_model.safetensors")


def write_config(text):
    return lambda folder: (folder / "adapter_config.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (shutil.rmtree, "is not a folder"),
        (write_config("{"), "not readable as JSON"),
        (write_config("[" * 100_000), "not readable as JSON"),
        (write_config("[]"), "no peft_type"),
        (write_config("{}"), "no peft_type"),
        (remove_weights, "no adapter_model.safetensors"),
        (pickle_weights, "is a pickle.*save_pretrained"),
        (empty_weights, "holds no tensor"),
    ],
)
def test_folders_that_cannot_be_read(spoil, words, tmp_path):
    spoil(lora_folder(tmp_path / "adapter"))
    with pytest.raises(ModelError, match=words):
        open_adapter(tmp_path / "adapter")


def test_an_initial_adapter_of_another_run(tmp_path):
    lora_folder(tmp_path / "last")
    lora_folder(tmp_path / "first", target_modules=["v_proj"])
    source = open_adapter(tmp_path / "last", initial=tmp_path / "first")
    assert source.updates == () and "no factors in the initial adapter" in source.problems[0].reason
    edit_config(tmp_path / "first", peft_type="LOHA")
    with pytest.raises(ModelError, match="these two are LORA and LOHA"):
        open_adapter(tmp_path / "last", initial=tmp_path / "first")


def test_an_expert_stack_has_no_initial_adapter(tmp_path):
    saved(trained(mixtral(), experts_config()), tmp_path)
    source = open_adapter(tmp_path, initial=tmp_path)
    assert [update.name for update in source.updates] == [Q]
    assert all("expert stack" in problem.reason for problem in source.problems)


def test_non_finite_factors_are_left_to_the_estimator(tmp_path):
    edit_tensors(lora_folder(tmp_path), replace("lora_A.weight", torch.full((4, 24), torch.nan)))
    source = open_adapter(tmp_path)
    assert source.problems == ()
    assert stable_rank_exact(source.updates[0].build()).status == "non_finite"


def test_updates_travel_to_other_processes(tmp_path):
    update = pickle.loads(pickle.dumps(open_adapter(lora_folder(tmp_path)).updates[0]))
    assert update.build().shape == update.shape


def test_base_model_name(tmp_path):
    assert open_adapter(lora_folder(tmp_path)).base_model_name is None
    edit_config(tmp_path, base_model_name_or_path="somewhere/absent")
    source = open_adapter(tmp_path)
    assert source.base_model_name == "somewhere/absent" and len(source.updates) == 2
