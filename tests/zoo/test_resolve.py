"""Names and folders: what passes unchanged, and one sentence for each thing that cannot be loaded."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from stablerank.errors import ModelError
from stablerank.zoo.resolve import resolve


@pytest.fixture
def folder(tmp_path):
    """A model folder as far as files go: a config and one whole safetensors file."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    save_file({"weight": np.ones((2, 3), dtype=np.float32)}, place / "model.safetensors")
    return place


def sharded(folder, names):
    (folder / "model.safetensors").unlink()
    for name in names:
        save_file({name: np.ones(2, dtype=np.float32)}, folder / name)
    index = {"weight_map": {f"tensor-{name}": name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def sentence_of(path):
    with pytest.raises(ModelError) as caught:
        resolve(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message, "a remedy follows the fault"
    return message


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M-Instruct", "a-b/c_d.e"])
def test_hub_id_is_returned_unchanged(name):
    assert resolve(name) == name


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent-model", "a/b/c", "../absent", "a/../b", "a b"])
def test_a_path_that_is_not_there_is_no_hub_id(name):
    assert name in sentence_of(name)


def test_whole_folders_pass(folder, monkeypatch):
    assert resolve(str(folder)) == str(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/model") == str(folder)
    sharded(folder, ["model-1.safetensors", "model-2.safetensors"])
    assert resolve(str(folder)) == str(folder)


def test_a_file_is_not_a_folder(folder):
    assert "is a file" in sentence_of(folder / "model.safetensors")


def test_config_missing_or_not_json(folder):
    (folder / "config.json").write_text("[1, 2")
    assert "not a JSON object" in sentence_of(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in sentence_of(folder)


def test_an_adapter_folder_is_told_from_a_model(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "PEFT adapter" in sentence_of(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")
    message = sentence_of(folder)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in sentence_of(folder)


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_cut_off_weights_are_found_without_loading(folder, kept):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "model.safetensors cannot be read" in sentence_of(folder)


def test_a_large_file_pointer_in_place_of_weights(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 269060552\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "model.safetensors cannot be read" in sentence_of(folder)


def test_missing_shard_and_broken_index(folder):
    sharded(folder, ["model-1.safetensors", "model-2.safetensors"])
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors cannot be read" in sentence_of(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "not an index" in sentence_of(folder)


def test_unknown_zoo_name():
    assert "zoo:arith-teacher" in sentence_of("zoo:gpt5")
