"""GGUF files written by the gguf package; its reader, its dequantiser and its name map are the oracle."""

import struct

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from stablerank.errors import ModelError
from stablerank.probes.sources import gguf_files
from stablerank.probes.sources.gguf_files import (
    BLOCK_NAMES,
    LLAMA_LIKE,
    OUTER_NAMES,
    SANDWICH_NORMS,
    gguf_contents,
)

TYPES = gguf.GGMLQuantizationType
QUANTISED = (TYPES.Q4_0, TYPES.Q4_1, TYPES.Q5_0, TYPES.Q8_0, TYPES.TQ1_0)
RNG = np.random.default_rng(0)


def write(path, tensors, architecture="llama", values=()):
    """``tensors``: name to an array, or to (array, quantised type)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    for key, value in values:
        writer.add_uint32(key, value)
    for name, tensor in tensors.items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, array if kind is None else quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(path):
    tensors, problems = gguf_contents(path)
    assert all(problem.file == str(path) and problem.reason.endswith(".") for problem in problems)
    return {tensor.name: tensor for tensor in tensors}, {problem.tensor: problem.reason for problem in problems}


def weights(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.gguf"


def assert_agrees_with_the_package(path):
    """Shapes, types and values, under the names in the file."""
    ours, problems = contents(path)
    assert problems == {}
    reader = gguf.GGUFReader(path)
    assert list(ours) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        stored = ours[tensor.name]
        assert stored.shape == tuple(reversed(tensor.shape.tolist()))
        assert (stored.dtype, stored.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
        read = stored.read()
        assert tuple(read.shape) == stored.shape
        expected = dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(read.float().numpy().reshape(expected.shape), expected)


def test_quantised_and_plain_tensors_agree_with_the_package(file, monkeypatch):
    monkeypatch.setattr(gguf_files, "_BLOCK_ELEMENTS", 600)  # two rows and a bit: the last block is a short one
    tensors = {kind.name: (weights(5, 256), kind) for kind in QUANTISED}
    tensors |= {"stack": (weights(2, 3, 64), TYPES.Q8_0), "BF16": (weights(3, 8), TYPES.BF16)}
    tensors |= {"F32": weights(3, 7), "F16": weights(2, 3).astype(np.float16), "vector": weights(6)}
    write(file, tensors, architecture="other")
    assert_agrees_with_the_package(file)
    ours, _ = contents(file)
    assert (ours["BF16"].read().dtype, ours["F16"].read().dtype) == (torch.bfloat16, torch.float16)
    assert ours["Q4_0"].read().dtype is torch.float32


def test_integers_and_doubles_are_kept(file):
    write(file, {"i": np.arange(6, dtype=np.int32), "d": weights(2, 2).astype(np.float64)}, architecture="other")
    ours, _ = contents(file)
    assert ours["i"].read().tolist() == [0, 1, 2, 3, 4, 5]
    assert ours["d"].read().dtype is torch.float64


@pytest.mark.parametrize("architecture", sorted(LLAMA_LIKE))
def test_names_agree_with_the_map_of_the_package(file, architecture):
    """Every name that the package's map from Hugging Face names knows comes back as the name in the file."""
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    stems = [*OUTER_NAMES, *(f"blk.3.{name}" for name in BLOCK_NAMES | SANDWICH_NORMS)]
    values = [("llama.attention.head_count", 1)]
    write(file, {f"{stem}.weight": weights(2, 2) for stem in stems}, architecture=architecture, values=values)
    renamed = [name.removesuffix(".weight") for name in contents(file)[0]]
    known = {ours: gguf.get_tensor_name_map(number, 8).get_name(ours) for ours in renamed}
    assert {ours: theirs for ours, theirs in known.items() if theirs not in (None, stems[renamed.index(ours)])} == {}
    assert {"blk.3.attn_q", "blk.3.attn_output", "blk.3.ffn_norm", "token_embd"} <= set(known.values())


def test_rows_of_a_llama_query_and_key_are_put_back(file):
    """transformers reads the same file with the same permutation undone."""
    heads, kv_heads = 4, 2
    stored = {"blk.0.attn_q.weight": weights(32, 8), "blk.0.attn_k.weight": weights(16, 8)}
    values = [("llama.attention.head_count", heads), ("llama.attention.head_count_kv", kv_heads)]
    write(file, stored | {"blk.0.attn_v.weight": weights(16, 8)}, values=values)
    ours, _ = contents(file)
    for name, array in stored.items():
        config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        expected = LlamaTensorProcessor(config=config).process(array, name).weights
        projection = "q_proj" if "attn_q" in name else "k_proj"
        np.testing.assert_array_equal(ours[f"model.layers.0.self_attn.{projection}.weight"].read().numpy(), expected)
    write(file, stored)
    tensors, problems = contents(file)
    assert tensors == {}
    assert "None heads" in problems["model.layers.0.self_attn.q_proj.weight"]


def test_other_architectures_keep_names_and_rows(file):
    write(file, {"blk.0.attn_q.weight": weights(8, 8), "blk.0.attn_qkv.weight": weights(8, 8)}, architecture="falcon")
    assert list(contents(file)[0]) == ["blk.0.attn_q.weight", "blk.0.attn_qkv.weight"]


def test_a_file_cut_off_in_its_data_keeps_the_whole_tensors(file):
    write(file, {"a": weights(8, 32), "b": (weights(8, 32), TYPES.Q8_0)}, architecture="other")
    file.write_bytes(file.read_bytes()[:-100])
    tensors, problems = contents(file)
    assert list(tensors) == ["a"]
    assert "which has" in problems["b"]


def test_a_file_cut_off_in_its_header_or_of_another_kind(file):
    write(file, {"a": weights(2, 2)}, architecture="other")
    whole = file.read_bytes()
    for broken in (b"", b"GG", whole[:30], whole[:120], b"not GGUF at all", b"\x80\x02}" * 9):
        file.write_bytes(broken)
        with pytest.raises(ModelError, match=r"model\.gguf is not a whole GGUF file"):
            gguf_contents(file)
    with pytest.raises(ModelError, match="cannot be read"):
        gguf_contents(file.with_name("absent.gguf"))


@pytest.mark.parametrize("count", [2**62, 2**64 - 1])
def test_counts_and_lengths_that_lie_end_at_once(file, count):
    """The package's own reader loops over such an array without end."""
    head = b"GGUF" + struct.pack("<I", 3)
    array = struct.pack("<Q1sIIQ", 1, b"k", 9, 5, count)
    strings = struct.pack("<Q1sIIQ", 1, b"k", 9, 8, count)
    for body in (
        struct.pack("<QQ", count, 0),
        struct.pack("<QQ", 0, count),
        struct.pack("<QQ", 0, 1) + array,
        struct.pack("<QQ", 0, 1) + strings,
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", count),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q1s", 1, b"k") + struct.pack("<IQ", 9, 1) * 50,
    ):
        file.write_bytes(head + body)
        with pytest.raises(ModelError, match="is not a whole GGUF file"):
            gguf_contents(file)


def one_tensor(shape, kind=0, offset=0, name=b"t"):
    info = struct.pack(f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *reversed(shape), kind, offset)
    return info


@pytest.mark.parametrize(
    ("tensors", "named", "words"),
    [
        ([one_tensor((2**40, 2**40))], "t", "takes bytes"),
        ([one_tensor((1, 1), offset=2**63)], "t", "takes bytes"),
        ([one_tensor((1, 33), kind=8)], "t", "blocks of 32"),
        ([one_tensor((1, 1), kind=999)], "t", "999"),
        ([one_tensor((2, 0))], "t", "takes bytes"),
        ([one_tensor((1, 1)), one_tensor((1, 1))], "t", "2 times"),
        ([one_tensor((2, 2)), one_tensor((1, 1), offset=4, name=b"u")], "u", "'t'"),
    ],
)
def test_a_bad_tensor_is_named(file, tensors, named, words):
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + b"".join(tensors)
    file.write_bytes(head + bytes(-len(head) % 32) + bytes(64))
    found, problems = contents(file)
    assert named not in found
    assert words in problems[named]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_flipped_bytes_never_do_more_than_a_problem(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    if not path.exists():
        write(path, {"blk.0.attn_v.weight": (weights(4, 64), TYPES.Q4_1), "output.weight": weights(3, 8)})
        path.with_suffix(".whole").write_bytes(path.read_bytes())
    whole = bytearray(path.with_suffix(".whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        tensors, _ = gguf_contents(path)
    except ModelError:
        return
    for stored in tensors:
        assert tuple(stored.read().shape) == stored.shape
