"""The file: exact, of the size it says, and refused where it is damaged."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

from stablerank.compression import container as container_module
from stablerank.compression.compress import compress, encode_adapter, expand, load_compressed, read_adapter
from stablerank.compression.container import is_container, read_container, write_container
from stablerank.compression.spec import CompressionSpec
from stablerank.compression.tensors import decode_tensor, encode_tensor
from stablerank.errors import ModelError

SPECS = [
    *(CompressionSpec("kmeans", bits) for bits in range(1, 9)),
    *(
        CompressionSpec(method, bits, group)
        for method in ("affine", "symmetric")
        for bits, group in ((3, "row"), (6, 7))
    ),
    *(CompressionSpec("kmeans", 2, group, entropy=False) for group in ("row", 16)),
    CompressionSpec("nf4", group=64),
    CompressionSpec("fp16"),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def parts_of(file):
    with safe_open(file, framework="numpy") as opened:
        return json.loads(opened.metadata()[container_module.FORMAT]), {
            name: opened.get_tensor(name).copy() for name in ("index", "payload", "side")
        }


def save(arrays, file, metadata):
    safetensors.numpy.save_file(arrays, file, metadata={container_module.FORMAT: json.dumps(metadata)})


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_tensor_returns_as_it_was_quantised(spec, tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{module}.lora_{side}.weight": torch.randn(shape, generator=generator).mul(scale).to(dtype)
        for (module, scale), dtype in zip((("a", 1.0), ("b", 3e-6), ("c", 4e4), ("d", 1e-3)), DTYPES, strict=True)
        for side, shape in (("A", (3, 21)), ("B", (11, 3)))
    } | {"a.bias": torch.randn(5), "empty": torch.empty(0, 4)}
    encoded, config = encode_adapter({"peft_type": "LORA"}, tensors, spec)
    file = tmp_path / "file.safetensors"
    sizes = write_container(file, config, encoded, "print")
    found = read_container(file)
    assert sum(sizes.values()) == file.stat().st_size
    assert (found.config, found.fingerprint) == (config, "print")
    assert list(found.tensors) == list(tensors)
    for part in encoded:
        again, before = found.tensors[part.record.name], tensors[part.record.name]
        assert again.dtype == before.dtype
        assert again.shape == before.shape
        assert torch.equal(again, decode_tensor(part.record, part.payload, part.side))
    if spec.method == "fp16":
        for name, tensor in tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=5e-4, atol=1e-6 * float(tensor.abs().sum()))


@pytest.mark.parametrize("power", [-20, 0, 13])
@pytest.mark.parametrize("method", ["kmeans", "affine", "symmetric", "nf4", "fp16"])
def test_scaling_by_a_power_of_two_changes_nothing_else(method, power):
    tensor = torch.randn(8, 33, generator=torch.Generator().manual_seed(1))
    one, other = (encode_tensor("x", tensor * factor, CompressionSpec(method)) for factor in (1.0, 2.0**power))
    assert one.payload == other.payload
    decoded = [decode_tensor(part.record, part.payload, part.side) for part in (one, other)]
    assert torch.equal(decoded[0] * 2.0**power, decoded[1])


def test_the_same_adapter_gives_the_same_bytes(adapters, tmp_path):
    _, folder = adapters("lora")
    files = [tmp_path / name for name in ("one", "two")]
    for file in files:
        compress(folder, file)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def whole(adapters, tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    compress(adapters("dora")[1], file, CompressionSpec(bits=3))
    return file


def test_the_header_says_what_it_is(whole, base_folder):
    metadata, _ = parts_of(whole)
    assert metadata["version"] == 1
    assert metadata["method"] == "fp16 16 bits, kmeans 3 bits"
    assert metadata["base"] == str(base_folder)
    assert len(metadata["base_fingerprint"]) == 64
    assert is_container(whole)
    assert not is_container(whole.parent)


@pytest.mark.parametrize("part", ["payload", "side"])
def test_every_damaged_tensor_is_named(whole, tmp_path, part):
    metadata, arrays = parts_of(whole)
    at = 0
    for record in read_container(whole).records:
        length = getattr(record, part)
        if not length:
            continue
        broken = {name: array.copy() for name, array in arrays.items()}
        broken[part][at + length // 2] ^= 0x10
        at += length
        file = tmp_path / "broken"
        save(broken, file, metadata)
        with pytest.raises(ModelError, match=rf"Tensor {record.name} in .* is damaged \(its checksum"):
            read_container(file)


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_index_is_named(whole, tmp_path, place):
    metadata, arrays = parts_of(whole)
    arrays["index"][place] ^= 1
    save(arrays, tmp_path / "broken", metadata)
    with pytest.raises(ModelError, match=r"index of .* is damaged"):
        read_container(tmp_path / "broken")


@pytest.mark.parametrize("change", [{"bits": 4}, {"layout": "gzip"}, {"shape": [1, 2]}, {"group": "row"}, {"side": 0}])
def test_an_index_that_lies_is_refused(whole, tmp_path, change):
    metadata, arrays = parts_of(whole)
    plain = container_module.expanded(arrays["index"].tobytes(), metadata["index_bytes"])
    index = json.loads(plain)
    fields = list(read_container(whole).records[0].__dataclass_fields__)
    for name, value in change.items():
        index["tensors"][0][fields.index(name)] = value
    frame = container_module.compressed(json.dumps(index).encode())
    arrays["index"] = np.frombuffer(frame, dtype=np.uint8)
    sizes = {"index_bytes": len(json.dumps(index)), "index_xxh32": container_module.checksum(frame)}
    save(arrays, tmp_path / "broken", {**metadata, **sizes})
    with pytest.raises(ModelError, match="damaged"):
        read_container(tmp_path / "broken")


@pytest.mark.parametrize("kept", [0, 4, 300, -1])
def test_a_cut_file_is_refused(whole, tmp_path, kept):
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        read_container(tmp_path / "cut")


def test_other_files_and_versions_are_refused(whole, tmp_path, adapters):
    with pytest.raises(ModelError, match="no compressed adapter"):
        load_compressed(adapters("lora")[1] / "adapter_model.safetensors")
    metadata, arrays = parts_of(whole)
    save(arrays, tmp_path / "newer", {**metadata, "version": 2})
    with pytest.raises(ModelError, match="version 2 of the format, and this library reads 1"):
        read_container(tmp_path / "newer")
    with pytest.raises(ModelError, match="cannot be read"):
        read_container(tmp_path / "missing")


def test_an_expanded_folder_is_an_adapter_again(whole, tmp_path):
    expand(whole, tmp_path / "plain")
    config, tensors = read_adapter(tmp_path / "plain")
    found = read_container(whole)
    assert config == found.config
    assert tensors.keys() == found.tensors.keys()
    assert all(torch.equal(tensors[name], found.tensors[name]) for name in tensors)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(broken):
    tensors = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.full((3, 2), broken)}
    with pytest.raises(ModelError, match=r"m\.lora_B\.weight holds numbers that are not finite"):
        encode_adapter({"peft_type": "LORA"}, tensors, CompressionSpec())


def test_integers_are_refused():
    tensors = {"m.lora_A.weight": torch.ones(2, 3, dtype=torch.int8), "m.lora_B.weight": torch.ones(3, 2)}
    with pytest.raises(ModelError, match=r"torch\.int8"):
        encode_adapter({"peft_type": "LORA"}, tensors, CompressionSpec())


def test_codebooks_that_cost_more_than_fp16_are_not_written():
    tensor = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    spec = CompressionSpec(bits=4, group="row", entropy=False)
    part = encode_tensor("x", tensor, spec)
    assert (part.record.method, part.record.bits, len(part.payload), part.side) == ("fp16", 16, 2 * 320, b"")
    assert encode_tensor("x", tensor.mT.contiguous(), spec).record.method == "kmeans"
