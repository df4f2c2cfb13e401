"""What a user can point at: files, sharded folders, zoo names, and folders that are wrong in every usual way."""

import json

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from stablerank.errors import ModelError
from stablerank.probes.sources.folder import INDEX, open_source


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=32,
            dtype="bfloat16",
        )
    )


@pytest.fixture
def sharded(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def by_name(source):
    return {tensor.name: tensor for tensor in source.tensors}


def words(source):
    return [f"{problem.file} {problem.tensor}: {problem.reason}" for problem in source.problems]


def sentence_of(path):
    with pytest.raises(ModelError) as error:
        open_source(path)
    assert str(error.value).endswith(".")
    return str(error.value)


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def write_gguf(path, array):
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_tensor("output.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_sharded_folder_gives_every_weight_of_the_model(model, sharded):
    source = open_source(str(sharded))
    assert source.problems == ()
    assert source.config["model_type"] == "llama"
    expected = model.state_dict()
    assert set(by_name(source)) == set(expected)
    for name, tensor in by_name(source).items():
        assert torch.equal(tensor.read(), expected[name])


def test_one_file_one_model_and_a_folder_of_loose_files(tmp_path):
    save_file({"b": torch.ones(2, 2)}, tmp_path / "second.safetensors")
    save_file({"a": torch.ones(2, 2)}, tmp_path / "first.safetensors")
    assert [tensor.name for tensor in open_source(tmp_path).tensors] == ["a", "b"]
    assert [tensor.name for tensor in open_source(tmp_path / "second.safetensors").tensors] == ["b"]
    save_file({"m": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert [tensor.name for tensor in open_source(tmp_path).tensors] == ["m"]
    assert open_source(tmp_path).config == {}


def test_zoo_names():
    source = open_source("zoo:arith-student")
    assert source.problems == ()
    assert source.config["model_type"] == "qwen3"
    expected = load_file(source.path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in by_name(source).items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    assert "zoo:arith-teacher" in sentence_of("zoo:gpt5")


def test_a_missing_shard_is_named_and_the_rest_offered(sharded):
    lost = json.loads((sharded / INDEX).read_text())["weight_map"]["model.norm.weight"]
    whole = len(open_source(sharded).tensors)
    (sharded / lost).unlink()
    source = open_source(sharded)
    assert 0 < len(source.tensors) < whole
    assert [(problem.file, problem.tensor) for problem in source.problems] == [(str(sharded / lost), None)]
    assert "missing" in source.problems[0].reason


def test_a_cut_off_shard_and_one_with_a_bad_header(sharded):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    source = open_source(sharded)
    assert {problem.file for problem in source.problems} == {str(first), str(second)}
    assert [problem.tensor for problem in source.problems if problem.file == str(second)] == [None]
    assert all(problem.tensor for problem in source.problems if problem.file == str(first))
    assert all(tensor.file not in (second,) for tensor in source.tensors)


@pytest.mark.parametrize(
    "outside", ["../other.safetensors", "/etc/other.safetensors", "a/../../b.safetensors", "x.bin"]
)
def test_the_index_cannot_lead_out_of_the_folder(sharded, outside):
    save_file({"stray": torch.ones(1)}, sharded.parent / "other.safetensors")
    edit_index(sharded, lambda weight_map: weight_map.update(stray=outside))
    source = open_source(sharded)
    assert "stray" not in by_name(source)
    assert len(source.problems) == 1
    assert "inside the folder" in source.problems[0].reason


def test_links_as_in_the_cache_of_the_hub_are_followed(sharded, tmp_path_factory):
    blobs = tmp_path_factory.mktemp("blobs")
    for number, file in enumerate(sorted(sharded.glob("*.safetensors"))):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert open_source(sharded).problems == ()


def test_a_tensor_of_the_index_that_its_shard_lacks(sharded):
    shard = next(sharded.glob("*.safetensors")).name
    edit_index(sharded, lambda weight_map: weight_map.update(ghost=shard))
    (problem,) = open_source(sharded).problems
    assert (problem.file, problem.tensor) == (str(sharded / shard), "ghost")


def test_a_tensor_in_two_files_is_taken_from_where_the_index_says(tmp_path):
    save_file({"w": torch.zeros(2, 2), "u": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"w": torch.ones(2, 2)}, tmp_path / "b.safetensors")
    source = open_source(tmp_path)
    assert by_name(source)["w"].read().sum() == 0
    (problem,) = source.problems
    assert problem.tensor == "w"
    assert "a.safetensors and in b.safetensors" in problem.reason
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"u": "a.safetensors", "w": "b.safetensors"}}))
    source = open_source(tmp_path)
    assert by_name(source)["w"].read().sum() == 4
    assert "b.safetensors is used" in source.problems[0].reason


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_falls_back_on_the_files(sharded, text):
    whole = set(by_name(open_source(sharded)))
    (sharded / INDEX).write_text(text)
    source = open_source(sharded)
    assert set(by_name(source)) == whole
    assert [problem.file for problem in source.problems] == [str(sharded / INDEX)]


def test_a_broken_config_is_a_problem_and_no_more(sharded):
    for text in ("[1, 2", "[]", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        (sharded / "config.json").write_text(text)
        source = open_source(sharded)
        assert source.config == {}
        assert len(source.tensors) == len(by_name(source))
        assert [problem.file for problem in source.problems] == [str(sharded / "config.json")]


def test_scaled_fp8_codes_are_not_taken_for_weights(tmp_path):
    codes = torch.ones(2, 2).to(torch.float8_e4m3fn)
    tensors = {"a.weight": codes, "a.weight_scale_inv": torch.ones(1, 1), "b.weight": codes.clone()}
    save_file(tensors, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    assert set(by_name(source)) == {"a.weight_scale_inv", "b.weight"}
    (problem,) = source.problems
    assert "'a.weight_scale_inv'" in problem.reason
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    weight_map = {"a.weight": "a.safetensors", "b.weight": "a.safetensors", "b.weight_scale": "lost.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert set(by_name(open_source(tmp_path))) == {"a.weight_scale_inv"}


def test_pickles_are_refused_with_the_way_out_and_ignored_beside_safetensors(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        message = sentence_of(path)
        assert "pytorch_model.bin" in message
        assert "runs code" in message
        assert "save_pretrained" in message
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert open_source(tmp_path).problems == ()


def test_an_adapter_folder_is_told_from_a_model(model, tmp_path):
    get_peft_model(LlamaForCausalLM(model.config), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "--adapter" in sentence_of(tmp_path)
    assert open_source(tmp_path / "adapter_model.safetensors").tensors
    (tmp_path / "adapter_config.json").unlink()
    assert "--adapter" in sentence_of(tmp_path)


def test_nothing_to_read(tmp_path):
    assert "does not exist" in sentence_of(tmp_path / "absent")
    assert "does not exist" in sentence_of("~nobody-by-this-name/model\0")
    assert "holds no .safetensors" in sentence_of(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "neither" in sentence_of(tmp_path / "notes.txt")
    save_file({}, tmp_path / "model.safetensors")
    assert "no tensor" in sentence_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert "not a whole safetensors file" in sentence_of(tmp_path)


def test_gguf_folders_one_model_its_shards_or_a_choice(tmp_path):
    write_gguf(tmp_path / "m-00001-of-00002.gguf", np.ones((2, 3), np.float32))
    source = open_source(tmp_path)
    assert {name: tensor.shape for name, tensor in by_name(source).items()} == {"lm_head.weight": (2, 3)}
    write_gguf(tmp_path / "m-00002-of-00002.gguf", np.ones((2, 3), np.float32))
    assert len(open_source(tmp_path).problems) == 1
    write_gguf(tmp_path / "m-Q8_0.gguf", np.ones((2, 3), np.float32))
    assert "2 GGUF models" in sentence_of(tmp_path)
    assert len(open_source(tmp_path / "m-Q8_0.gguf").tensors) == 1
