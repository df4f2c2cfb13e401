"""What there is to measure in a checkpoint, between two, and in an adapter: which matrices, and exactly which entries.

The oracles are safetensors, the modules of transformers models, and the weights that PEFT merges.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from stablerank.errors import ModelError
from stablerank.probes.checkpoints import adapter_updates, differences, is_adapter, weights
from stablerank.zoo.catalogue import ENTRIES
from stablerank.zoo.resolve import resolve

EMBEDDED = [f"zoo:{entry.name}" for entry in ENTRIES.values() if entry.source is None]
STUDENT = "zoo:arith-student"
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def subjects(work):
    return {name: subject for task in work.tasks for name, subject in task.subjects()}


def entries(work):
    found = {}
    for name, subject in subjects(work).items():
        operator = subject.operator
        if hasattr(operator, "b_OR"):
            found[name] = operator.scale * operator.b_OR.double() @ operator.a_RI.double()
        else:
            found[name] = operator.materialised()
    return found


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, matrix in expected.items():
        assert torch.equal(found[name], matrix.double()), name


def matrices_of(model):
    """The weights of every linear map and embedding of a model."""
    return {
        name.removesuffix(".weight"): tensor.detach()
        for name, tensor in model.named_parameters()
        if tensor.ndim == 2 and name.endswith(".weight")
    }


def llama(seed=0, **settings):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES | settings))


def saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def student():
    return AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float32)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_zoo_model(name):
    stored = load_file(Path(resolve(name)) / "model.safetensors")
    work = weights(name)
    expected = {key.removesuffix(".weight"): tensor for key, tensor in stored.items() if tensor.ndim == 2}
    assert len(expected) == 29
    assert_equal(entries(work), expected)
    assert (work.kind, work.problems, work.missing, work.extra, work.notes) == ("weight", (), (), (), ())
    assert work.skipped == (("vector", len(stored) - len(expected)),)
    assert work.nbytes == sum(tensor.nbytes for tensor in stored.values() if tensor.ndim == 2)


def test_a_sharded_folder_is_the_single_file(tmp_path):
    model = llama(dtype="bfloat16")
    whole = weights(saved(model, tmp_path / "whole"))
    sharded = weights(saved(model, tmp_path / "sharded", max_shard_size="6KB"))
    assert len({task.file for task in sharded.tasks}) > 2
    assert_equal(entries(sharded), entries(whole))
    assert_equal(entries(whole), matrices_of(model))
    assert {task.tensor for task in sharded.tasks} == {task.tensor for task in whole.tasks}


def test_a_fused_projection_gives_one_matrix_a_projection(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0)
    )
    found = entries(weights(saved(model, tmp_path)))
    for layer, block in enumerate(model.transformer.h):
        fused = block.attn.c_attn.weight.detach().double()  # Conv1D: (inputs, outputs)
        for leaf, part in zip("qkv", fused.split(16, dim=1), strict=True):
            assert torch.equal(found[f"transformer.h.{layer}.attn.{leaf}_proj"], part)
        assert not any("c_attn" in name for name in found)


def test_phi3_is_cut_as_its_config_says(tmp_path):
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**SIZES | {"num_key_value_heads": 1, "pad_token_id": 0}))
    found = entries(weights(saved(model, tmp_path)))
    layer = model.model.layers[0]
    stem, fused = "model.layers.0.self_attn", layer.self_attn.qkv_proj.weight.detach().double()
    for leaf, part in zip("qkv", fused.split([16, 8, 8]), strict=True):
        assert torch.equal(found[f"{stem}.{leaf}_proj"], part)
    gate, up = layer.mlp.gate_up_proj.weight.detach().double().chunk(2)
    assert torch.equal(found["model.layers.0.mlp.gate_proj"], gate)
    assert torch.equal(found["model.layers.0.mlp.up_proj"], up)


def test_a_fused_weight_that_no_config_explains_stays_whole_and_a_note_says_so(tmp_path):
    save_file({"model.layers.0.self_attn.qkv_proj.weight": torch.randn(24, 8)}, tmp_path / "model.safetensors")
    work = weights(tmp_path)
    assert list(subjects(work)) == ["model.layers.0.self_attn.qkv_proj"]
    assert len(work.notes) == 1
    assert "fused and kept whole" in work.notes[0]


def test_the_update_between_two_checkpoints(tmp_path):
    after, before = llama(1), llama(0)
    work = differences(saved(after, tmp_path / "after"), saved(before, tmp_path / "before"))
    bases = matrices_of(before)
    expected = {name: matrix.double() - bases[name].double() for name, matrix in matrices_of(after).items()}
    assert (work.kind, work.problems, work.missing, work.extra) == ("update", (), (), ())
    assert_equal(entries(work), expected)
    for name, subject in subjects(work).items():
        assert torch.equal(subject.base_OI, bases[name])
    assert work.nbytes == sum(2 * matrix.nbytes for matrix in bases.values())
    assert {task.base_file for task in work.tasks} == {str(tmp_path / "before" / "model.safetensors")}


def test_names_that_one_checkpoint_lacks_are_listed(tmp_path):
    tensors = {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4), "c.weight": torch.randn(4, 4)}
    save_file({**tensors, "new.weight": torch.randn(2, 2)}, tmp_path / "after.safetensors")
    save_file({**tensors, "old.weight": torch.randn(2, 2), "old.bias": torch.ones(2)}, tmp_path / "before.safetensors")
    work = differences(tmp_path / "after.safetensors", tmp_path / "before.safetensors")
    assert sorted(subjects(work)) == ["a", "b", "c"]
    assert (set(work.missing), work.extra, work.problems) == ({"old.weight", "old.bias"}, ("new.weight",), ())


def test_another_shape_is_a_problem(tmp_path):
    save_file({"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4)}, tmp_path / "after.safetensors")
    save_file({"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 5)}, tmp_path / "before.safetensors")
    work = differences(tmp_path / "after.safetensors", tmp_path / "before.safetensors")
    (problem,) = work.problems
    assert (problem.file, problem.tensor) == (str(tmp_path / "after.safetensors"), "b.weight")
    assert "(4, 4)" in problem.reason and "(4, 5)" in problem.reason
    assert (list(subjects(work)), work.missing, work.extra) == (["a"], (), ())


def test_a_tensor_that_cannot_be_read_is_a_problem_and_not_missing(tmp_path):
    tensors = {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4)}
    for name in ("after", "before"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    cut = tmp_path / "before.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    for work in (differences(tmp_path / "after.safetensors", cut), differences(cut, tmp_path / "after.safetensors")):
        assert [(problem.file, problem.tensor) for problem in work.problems] == [(str(cut), "b.weight")]
        assert (list(subjects(work)), work.missing, work.extra) == (["a"], (), ())


def test_every_file_that_decides_the_numbers_is_named(tmp_path):
    after, before = saved(llama(1), tmp_path / "after", max_shard_size="6KB"), saved(llama(0), tmp_path / "before")
    files = set(differences(after, before).files)
    shards = {str(path) for path in after.glob("*.safetensors")}
    assert files == shards | {str(path) for path in (after / "config.json", before / "config.json")} | {
        str(before / "model.safetensors")
    }


def random_adapter(model, folder, **settings):
    """A LoRA adapter whose both factors are random; returns the merged weights in fp64."""
    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, **settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 8)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped


def test_an_adapter_is_what_peft_merges(student, tmp_path):
    random_adapter(student, tmp_path, target_modules=["q_proj", "down_proj"]).unload()
    model = AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in matrices_of(model).items()}
    merged = matrices_of(PeftModel.from_pretrained(model, tmp_path, autocast_adapter_dtype=False).merge_and_unload())
    alone, beside = adapter_updates(tmp_path, None, None), adapter_updates(tmp_path, STUDENT, None)
    assert len(alone.tasks) == len(beside.tasks) == 8
    for work in (alone, beside):
        assert (work.kind, work.problems) == ("update", ())
        for name, update in entries(work).items():
            np.testing.assert_allclose(update, merged[name] - before[name], rtol=0, atol=1e-8)
    for name, subject in subjects(beside).items():
        assert torch.equal(subject.base_OI.double(), before[name])
    assert all(subject.base_OI is None for subject in subjects(alone).values())
    assert {task.file for task in alone.tasks} == {str(tmp_path / "adapter_model.safetensors")}
    assert {task.base_file for task in beside.tasks} == {str(Path(resolve(STUDENT)) / "model.safetensors")}
    assert set(alone.files) == {str(tmp_path / name) for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert set(beside.files) > set(alone.files)


def test_a_module_saved_whole_is_a_difference_from_the_base(tmp_path):
    saved(llama(0), tmp_path / "base")
    wrapped = random_adapter(llama(0), tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        wrapped.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    head = llama(0).lm_head.weight.detach().double()
    assert "lm_head" not in entries(adapter_updates(tmp_path / "adapter", None, None))
    assert torch.equal(entries(adapter_updates(tmp_path / "adapter", tmp_path / "base", None))["lm_head"], head)


def test_a_new_head_is_extra_and_not_a_problem(tmp_path):
    saved(llama(0), tmp_path / "base")
    random_adapter(llama(0), tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name.replace("lm_head", "score"): tensor for name, tensor in load_file(file).items()}, file)
    work = adapter_updates(tmp_path / "adapter", tmp_path / "base", None)
    assert (work.extra, work.problems) == (("score.weight",), ())


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(4, 6, 3)


def test_a_convolution_beside_its_base(tmp_path):
    torch.manual_seed(0)
    model = Convolution()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    before = model.wide.weight.detach().clone()
    merged = random_adapter(model, tmp_path / "adapter", target_modules=["wide"]).merge_and_unload().wide.weight
    work = adapter_updates(tmp_path / "adapter", tmp_path / "model.safetensors", None)
    (subject,) = subjects(work).values()
    assert torch.equal(subject.base_OI, before.flatten(1))
    np.testing.assert_allclose(entries(work)["wide"], (merged - before).detach().flatten(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (llama(0, hidden_size=32), ["(16, 16)", "(32, 32)", "trained on"]),
        (llama(0, num_hidden_layers=1), ["no weight of this name", "trained on"]),
    ],
    ids=["other width", "fewer layers"],
)
def test_an_adapter_beside_a_base_that_is_not_its_own(tmp_path, base, words):
    random_adapter(llama(0), tmp_path / "adapter", target_modules=["q_proj"])
    work = adapter_updates(tmp_path / "adapter", saved(base, tmp_path / "base"), None)
    with pytest.raises(ModelError) as error:
        list(work.tasks[-1].subjects())
    assert all(word in str(error.value) for word in [str(tmp_path / "base"), *words])


def test_a_prefix_that_adapter_or_base_lacks(tmp_path):
    """A base saved without its head has no ``model.`` in its names."""
    random_adapter(llama(0), tmp_path / "adapter", target_modules=["q_proj"])
    saved(llama(0).model, tmp_path / "base")
    work = adapter_updates(tmp_path / "adapter", tmp_path / "base", None)
    assert all(subject.base_OI is not None for subject in subjects(work).values())


def test_pissa_with_its_first_factors(tmp_path):
    wrapped = get_peft_model(llama(0), LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "first", save_embedding_layers=False)
    with torch.no_grad():
        wrapped.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.mul_(1.1)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged, before = matrices_of(wrapped.merge_and_unload()), matrices_of(llama(0))
    work = adapter_updates(tmp_path / "adapter", None, tmp_path / "first")
    for name, update in entries(work).items():
        np.testing.assert_allclose(update, (merged[name] - before[name]).double(), rtol=0, atol=1e-6)
    assert str(tmp_path / "first" / "adapter_model.safetensors") in work.files


def test_what_an_adapter_is(tmp_path):
    assert not is_adapter(tmp_path)
    assert not is_adapter(STUDENT)
    assert not is_adapter("absent\0")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert is_adapter(tmp_path) and is_adapter(str(tmp_path))
