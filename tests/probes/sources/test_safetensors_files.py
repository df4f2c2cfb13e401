"""safetensors headers and tensors: the library's own writer and reader are the oracle, and files that lie are not."""

import json
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stablerank.errors import ModelError
from stablerank.probes.sources.safetensors_files import DTYPES, safetensors_contents


def random_tensors(seed=0):
    """One tensor of every dtype from random bits, NaN and denormals included, and the awkward shapes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randint(0, 256, (6 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        .view(dtype)
        .view(2, 3)
        for name, dtype in DTYPES.items()
        if dtype is not torch.bool
    }
    tensors["BOOL"] = torch.tensor([[True, False, True]])
    return tensors | {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "stack": torch.rand(2, 3, 4)}


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def contents(path):
    tensors, problems = safetensors_contents(path)
    assert all(problem.file == str(path) and problem.reason.endswith(".") for problem in problems)
    return {tensor.name: tensor for tensor in tensors}, {problem.tensor: problem.reason for problem in problems}


def test_every_dtype_and_shape_is_read_bit_for_bit(file):
    save_file(random_tensors(), file)
    ours, problems = contents(file)
    theirs = load_file(file)
    assert problems == {}
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        stored, read = ours[name], ours[name].read()
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert stored.shape == tuple(expected.shape)
        assert stored.nbytes == expected.nbytes
        assert stored.file == file
        assert bits(read) == bits(expected), name
    assert ours["BF16"].dtype == "BF16"


def test_what_is_read_is_a_private_copy(file):
    save_file({"a": torch.ones(2, 2)}, file)
    stored = contents(file)[0]["a"]
    stored.read().zero_()
    assert stored.read().sum() == 4


def test_a_stored_tensor_can_be_sent_to_another_process(file):
    save_file({"a": torch.arange(4.0)}, file)
    assert pickle.loads(pickle.dumps(contents(file)[0]["a"])).read().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (entry(4, 8, [1], "F4"), "'F4'"),
        (entry(4, 8, [2]), "4 bytes"),
        (entry(4, 12, [1]), "8 bytes"),
        (entry(8, 4, [1]), "-4 bytes"),
        (entry(-4, 0, [1]), "whole numbers"),
        (entry(4, 8, [-1]), "whole numbers"),
        (entry(4, 8, [1.0]), "whole numbers"),
        (entry(4, 8, [True]), "whole numbers"),
        (entry(4, 8, "1"), "whole numbers"),
        (entry(4, 4004, [1000]), "of which the file has 8"),
        (entry(4, 4, [0, 2**62, 2**62]), "elements"),
        ({"dtype": "F32", "shape": [1]}, "two offsets"),
        ([4, 8], "two offsets"),
        (None, "two offsets"),
    ],
)
def test_a_bad_tensor_is_named_and_the_others_are_read(file, bad, words):
    write(file, {"good": entry(0, 4, [1]), "bad": bad}, struct.pack("<f", 2.5) + bytes(4))
    tensors, problems = contents(file)
    assert tensors["good"].read().tolist() == [2.5]
    assert list(problems) == ["bad"]
    assert words in problems["bad"]


def test_a_name_that_comes_twice_is_seen(file):
    text = b'{"a":%s,"b":%s,"a":%s}' % tuple(json.dumps(entry(at, at + 4, [1])).encode() for at in (0, 4, 8))
    tensors, problems = contents(write(file, text, bytes(12)))
    assert list(tensors) == ["b"]
    assert "2 times" in problems["a"]


def test_overlapping_tensors_are_both_refused_and_named(file):
    spans = {"whole": entry(0, 16, [4]), "inside": entry(4, 8, [1]), "tail": entry(12, 16, [1])}
    tensors, problems = contents(write(file, spans | {"after": entry(16, 20, [1])}, bytes(20)))
    assert list(tensors) == ["after"]
    assert "'whole'" in problems["inside"]
    assert "'inside'" in problems["whole"]
    assert "'whole'" in problems["tail"]


@pytest.mark.parametrize(
    ("spans", "size", "first"),
    [
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "first at 4"),
        ({"a": entry(4, 8, [1])}, 8, "first at 0"),
        ({"a": entry(0, 4, [1])}, 8, "first at 4"),
    ],
)
def test_bytes_of_no_tensor_are_a_problem_because_the_library_refuses_them(file, spans, size, first):
    write(file, spans, bytes(size))
    with pytest.raises(SafetensorError):
        load_file(file)
    tensors, problems = contents(file)
    assert set(tensors) == set(spans)
    assert first in problems[None]


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"[]", None),
        (b'{"a":', None),
        (b'{"a": 1}', 4),
        (b"{}", 2**62),
        (b"{}", 10**8 + 1),
        (b"\xff\xfe{}", None),
        (b'{"\\ud800": {}}', None),
        (b"[" * 100_000, None),
        (b'{"a": ' + b"9" * 5000 + b"}", None),
    ],
)
def test_a_bad_header_condemns_the_file_in_one_sentence(file, header, length):
    write(file, header, length=length)
    with pytest.raises(ModelError) as error:
        safetensors_contents(file)
    assert str(file) in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("kept", [0, 7, 8, 100])
def test_a_file_cut_off_in_its_header(file, kept):
    save_file(random_tensors(), file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match="whole safetensors file"):
        safetensors_contents(file)


def test_a_file_cut_off_in_its_data_keeps_the_whole_tensors(file):
    save_file({"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}, file)
    file.write_bytes(file.read_bytes()[:-17])
    tensors, problems = contents(file)
    assert list(tensors) == ["a"]
    assert tensors["a"].read().tolist() == [1, 1, 1, 1]
    assert set(problems) == {"b", "c"}
    assert "the file has 31" in problems["b"]


def test_a_file_that_shrinks_after_the_header_was_read(file):
    save_file({"a": torch.ones(4)}, file)
    stored = contents(file)[0]["a"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"model\.safetensors now ends 4 bytes before its tensor 'a'"):
        stored.read()
    file.unlink()
    with pytest.raises(ModelError, match=r"'a' of .*model\.safetensors cannot be read"):
        stored.read()


def test_missing_and_unreadable_files(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            safetensors_contents(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bytes_of_the_header_never_do_more_than_a_problem(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    save_file({"a": torch.rand(3, 4), "b": torch.rand(5).bfloat16(), "c": torch.arange(6)}, path)
    whole = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        tensors, _ = safetensors_contents(path)
    except ModelError:
        return
    for stored in tensors:
        read = stored.read()
        assert tuple(read.shape) == stored.shape
        assert read.nbytes == stored.nbytes
        assert read.dtype is DTYPES[stored.dtype]
