"""Bad input to `stablerank measure`.

Where something can be measured: exit code 1, file and tensor named, the rest measured, no number without a status that
vouches for it. Where nothing can: exit code 2, one sentence with the remedy, nothing written.
"""

import json
import math
import os
import shutil
import stat
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stablerank.cli import main
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
TENSORS = {f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(12, 8) for layer in range(3)}
FIRST, SECOND, LAST = TENSORS
INDEX = "model.safetensors.index.json"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    def measure(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "measure", *map(str, arguments)])
        capsys.readouterr()  # what making the input said
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return measure


def files(place):
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in place.rglob("*")}


def assert_one_sentence(text, *words):
    assert text.startswith("stablerank: ")
    assert text.count("\n") == 1, text
    assert text.endswith(".\n") or text.endswith(").\n"), text
    for word in words:
        assert word in text, text


def stored(place, name="model", tensors=TENSORS):
    (place / "m").mkdir(exist_ok=True)
    save_file(tensors, place / "m" / f"{name}.safetensors")
    return place / "m" / f"{name}.safetensors"


def written(file, entries, data):
    """A safetensors file by hand: ``entries`` are ``(name, shape, begin, end)``, and a name may come twice."""
    header = ", ".join(
        f'{json.dumps(name)}: {{"dtype": "F32", "shape": {list(shape)}, "data_offsets": [{begin}, {end}]}}'
        for name, shape, begin, end in entries
    )
    raw = f"{{{header}}}".encode()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


BLOCK = np.random.default_rng(0).standard_normal((12, 8), np.float32).tobytes()
SIZE = len(BLOCK)


def cut_off(place):
    file = stored(place)
    file.write_bytes(file.read_bytes()[:-8])


def size_that_the_shape_contradicts(place):
    entries = [(FIRST, (12, 8), 0, SIZE), (LAST, (12, 9), SIZE, 2 * SIZE)]
    written(place / "m" / "model.safetensors", entries, 2 * BLOCK)


def size_beyond_the_file(place):
    entries = [(FIRST, (12, 8), 0, SIZE), (LAST, (12, 8_000_000_000), SIZE, SIZE + 12 * 8_000_000_000 * 4)]
    written(place / "m" / "model.safetensors", entries, 2 * BLOCK)


def two_tensors_on_the_same_bytes(place):
    entries = [(FIRST, (12, 8), 0, SIZE), (SECOND, (12, 8), SIZE, 2 * SIZE), (LAST, (12, 8), SIZE, 2 * SIZE)]
    written(place / "m" / "model.safetensors", entries, 2 * BLOCK)


def a_name_twice(place):
    entries = [(FIRST, (12, 8), 0, SIZE), (LAST, (12, 8), SIZE, 2 * SIZE), (LAST, (12, 8), 2 * SIZE, 3 * SIZE)]
    written(place / "m" / "model.safetensors", entries, 3 * BLOCK)


def spoilt(value):
    def spoil(place):
        broken = TENSORS[LAST].clone()
        broken[5, 5] = value
        stored(place, tensors={**TENSORS, LAST: broken})

    return spoil


def sharded(place, second):
    stored(place, "model-1", {name: TENSORS[name] for name in (FIRST, SECOND)})
    stored(place, "model-2", second)
    names = {FIRST: 1, SECOND: 1, LAST: 2}
    weight_map = {name: f"model-{shard}.safetensors" for name, shard in names.items()}
    (place / "m" / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def a_name_in_two_shards(place):
    sharded(place, {name: TENSORS[name] for name in (SECOND, LAST)})


def a_shard_that_is_missing(place):
    sharded(place, {LAST: TENSORS[LAST]})
    (place / "m" / "model-2.safetensors").unlink()


def a_shard_without_its_tensor(place):
    sharded(place, {"other.weight": torch.eye(3)})


def a_shard_whose_header_is_longer_than_the_file(place):
    sharded(place, {LAST: TENSORS[LAST]})
    file = place / "m" / "model-2.safetensors"
    file.write_bytes((10**9).to_bytes(8, "little") + file.read_bytes()[8:])


def a_broken_config(place):
    stored(place)
    (place / "m" / "config.json").write_text("{")


def codes_without_scales(place):
    codes = TENSORS[LAST].to(torch.float8_e4m3fn)
    stored(place, tensors={**TENSORS, LAST: codes, LAST + "_scale_inv": torch.ones(1, 1)})


PARTLY = {
    "cut-off file": (cut_off, "model.safetensors", LAST, "download or save"),
    "header contradicts itself": (size_that_the_shape_contradicts, "model.safetensors", LAST, "needs 432"),
    "header beyond the file": (size_beyond_the_file, "model.safetensors", LAST, "of which the file has"),
    "shared bytes": (two_tensors_on_the_same_bytes, "model.safetensors", LAST, "shares bytes"),
    "name twice in a file": (a_name_twice, "model.safetensors", LAST, "2 times"),
    "name in two shards": (a_name_in_two_shards, "model-2.safetensors", SECOND, "the one in model-1.safetensors"),
    "NaN": (spoilt(math.nan), "model.safetensors", LAST, "not finite"),
    "infinity": (spoilt(-math.inf), "model.safetensors", LAST, "not finite"),
    "missing shard": (a_shard_that_is_missing, "model-2.safetensors", None, "missing"),
    "shard without its tensor": (a_shard_without_its_tensor, "model-2.safetensors", LAST, "does not hold it"),
    "shard with a long header": (a_shard_whose_header_is_longer_than_the_file, "model-2.safetensors", None, "whole"),
    "broken config": (a_broken_config, "config.json", None, "JSON"),
    "codes without scales": (codes_without_scales, "model.safetensors", LAST, "scales"),
}
STILL_MEASURED = ("name in two shards", "broken config")
"""Where the tensor named, or every tensor, has a number all the same."""


def assert_every_number_is_vouched_for(rows):
    for row in rows:
        assert (row["value"] is not None) == (row["status"] in ("exact", "certified", "open", "estimated"))
        if row["value"] is not None and row["metric"] == "stable_rank":
            assert row["lower"] <= row["value"] <= row["upper"]


@pytest.mark.parametrize(("spoil", "file", "tensor", "words"), PARTLY.values(), ids=PARTLY)
def test_the_rest_is_measured(place, run, request, spoil, file, tensor, words):
    spoil(place)
    code, out, err = run("m", "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    named = [(Path(problem["file"]).name, problem["tensor"]) for problem in found["problems"]]
    assert (file, tensor) in named
    assert any(words in problem["reason"] for problem in found["problems"])
    values = {row["name"]: row["value"] for row in found["rows"] if row["metric"] == "stable_rank"}
    assert values[FIRST.removesuffix(".weight")] >= 1
    if request.node.callspec.id not in STILL_MEASURED and tensor is not None:
        assert values.get(tensor.removesuffix(".weight")) is None
    assert_every_number_is_vouched_for(found["rows"])
    code, out, err = run("m")
    assert (code, err) == (1, "")
    assert file in "".join(out.split())
    assert "Traceback" not in out


def test_the_table_names_file_tensor_and_reason(place, run):
    cut_off(place)
    _, out, _ = run("m", "--out", "out")
    said = " ".join(out.split())
    assert f"m/model.safetensors: {LAST}: It ends at byte" in said
    meta = json.loads((place / "out" / "measure.json").read_text())
    assert [problem["tensor"] for problem in meta["problems"]] == [LAST]
    assert LAST in (place / "out" / "report.html").read_text()


def test_a_folder_mended_is_another_question(place, run):
    whole = stored(place).read_bytes()
    cut_off(place)
    assert run("m", "--out", "out")[0] == 1
    (place / "m" / "model.safetensors").write_bytes(whole)
    code, _, err = run("m", "--out", "out")
    assert code == 2
    assert_one_sentence(err, "differs in files", "--out")
    assert run("m", "--out", "other")[0] == 0


@pytest.mark.parametrize("broken", ["path", "base"])
def test_a_base_of_another_shape_or_with_nan(place, run, broken):
    stored(place, "after")
    spoilt_base = {**TENSORS, SECOND: torch.randn(12, 9), LAST: TENSORS[LAST] * math.nan}
    stored(place, "before", {name: 2 * tensor for name, tensor in spoilt_base.items()})
    pair = ("m/after.safetensors", "m/before.safetensors")
    path, base = pair if broken == "base" else reversed(pair)
    code, out, _ = run(path, "--against", base, "--json")
    found = json.loads(out)
    assert code == 1
    problems = {problem["tensor"]: problem for problem in found["problems"]}
    assert set(problems) == {SECOND, LAST}
    assert "(12, 8)" in problems[SECOND]["reason"] and "(12, 9)" in problems[SECOND]["reason"]
    assert problems[LAST]["file"] == "m/before.safetensors"
    assert_every_number_is_vouched_for(found["rows"])
    measured = {row["name"] for row in found["rows"] if row["metric"] == "stable_rank" and row["value"] is not None}
    assert measured == {FIRST.removesuffix(".weight")}


def adapter(place, **settings):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings}))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 8)
    wrapped.save_pretrained(place / "a", save_embedding_layers=False)


def other_model(place, **sizes):
    config = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **config | sizes)).save_pretrained(place / "m")


def test_an_adapter_beside_a_base_of_another_width(place, run):
    adapter(place)
    other_model(place)
    code, out, err = run("a", "--against", "m", "--json")
    found = json.loads(out)
    assert (code, err, found["rows"]) == (1, "", [])
    assert len(found["problems"]) == 4
    for layer, problem in enumerate(found["problems"]):
        assert problem["tensor"] == f"model.layers.{layer}.self_attn.q_proj"
        assert Path(problem["file"]).name == "adapter_model.safetensors"
        assert "trained on" in problem["reason"]
    assert run("a", "--against", "m")[0] == 1


def test_an_adapter_beside_a_base_that_lacks_some_of_its_weights(place, run):
    adapter(place)
    held = load_file(f"{resolve(STUDENT)}/model.safetensors")
    del held["model.layers.1.self_attn.q_proj.weight"]
    stored(place, tensors=held)
    code, out, _ = run("a", "--against", "m", "--json")
    found = json.loads(out)
    assert code == 1
    assert [problem["tensor"] for problem in found["problems"]] == ["model.layers.1.self_attn.q_proj"]
    assert {row["layer"] for row in found["rows"]} == {0, 2, 3}


def test_an_adapter_with_nan(place, run):
    adapter(place)
    file = place / "a" / "adapter_model.safetensors"
    held = load_file(file)
    broken = next(name for name in held if "layers.2" in name)
    held[broken][0] = math.nan
    save_file(held, file)
    code, out, _ = run("a", "--json")
    found = json.loads(out)
    assert code == 1
    assert [problem["tensor"] for problem in found["problems"]] == ["model.layers.2.self_attn.q_proj"]
    assert_every_number_is_vouched_for(found["rows"])


def nothing(place):
    pass


def empty_folder(place):
    (place / "m").mkdir()


def text_file(place):
    (place / "m").mkdir()
    (place / "m" / "notes.txt").write_text("x")


def pickle_only(place):
    (place / "m").mkdir()
    torch.save(TENSORS, place / "m" / "pytorch_model.bin")


def long_header(place):
    file = stored(place)
    file.write_bytes((10**12).to_bytes(8, "little") + file.read_bytes()[8:])


def empty_file(place):
    stored(place).write_bytes(b"")


def no_json(place):
    stored(place).write_bytes((4).to_bytes(8, "little") + b"\xff{}]")


def only_vectors(place):
    stored(place, tensors={"norm.weight": torch.ones(4)})


def foreign_out(place):
    stored(place)
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("x")


def file_as_out(place):
    stored(place)
    (place / "out").write_text("x")


def unlike_models(place):
    stored(place)
    save_file({"other.weight": torch.eye(4)}, place / "base.safetensors")


def unlike_shapes(place):
    stored(place, tensors={"one.weight": torch.eye(4)})
    save_file({"one.weight": torch.eye(5)}, place / "base.safetensors")


def dora(place):
    adapter(place, use_dora=True)


def adapter_without_weights(place):
    adapter(place)
    (place / "a" / "adapter_model.safetensors").unlink()


def pickled_adapter(place):
    adapter_without_weights(place)
    torch.save({}, place / "a" / "adapter_model.bin")


def adapter_with_a_broken_config(place):
    adapter(place)
    (place / "a" / "adapter_config.json").write_text("{")


def multiplying_adapter(place):
    base = AutoModelForCausalLM.from_pretrained(resolve(STUDENT))
    get_peft_model(base, IA3Config(target_modules=["q_proj"], feedforward_modules=[])).save_pretrained(place / "a")


NOT_AT_ALL = {
    "hub id": (nothing, ["nobody/nothing"], ["nobody/nothing does not exist", "nothing is downloaded"]),
    "no path": (nothing, ["./m"], ["m does not exist", "folder"]),
    "a path that cannot be": (nothing, ["m" * 300], ["does not exist"]),
    "home of nobody": (nothing, ["~nobody-by-this-name/m"], ["~nobody-by-this-name/m does not exist"]),
    "adapter of nobody": (nothing, ["~nobody-by-this-name/m", "--adapter"], ["is not a folder"]),
    "unknown zoo name": (nothing, ["zoo:arith"], ["'arith'", STUDENT]),
    "empty folder": (empty_folder, ["m"], ["m holds no .safetensors"]),
    "no model": (text_file, ["m"], ["m holds no .safetensors"]),
    "a text file": (text_file, ["m/notes.txt"], ["notes.txt is neither"]),
    "pickle": (pickle_only, ["m"], ["pytorch_model.bin is a pickle", "save_pretrained"]),
    "pickle file": (pickle_only, ["m/pytorch_model.bin"], ["pytorch_model.bin is a pickle", "save_pretrained"]),
    "long header": (long_header, ["m"], ["model.safetensors is not a whole", "download"]),
    "empty file": (empty_file, ["m"], ["model.safetensors is not a whole", "0 bytes"]),
    "header that is no JSON": (no_json, ["m"], ["model.safetensors is not a JSON object"]),
    "only vectors": (only_vectors, ["m"], ["no matrix (1 vector)"]),
    "absent base": (stored, ["m", "--against", "gone"], ["gone does not exist"]),
    "base of other names": (unlike_models, ["m", "--against", "base.safetensors"], ["name of one in base"]),
    "base of other shapes": (unlike_shapes, ["m", "--against", "base.safetensors"], ["one.weight", "(5, 5)"]),
    "unknown metric": (stored, ["m", "--metrics", "stable_rank,rank"], ["'rank'", "nuclear_rank"]),
    "no metric": (stored, ["m", "--metrics", ","], ["No metric is named"]),
    "metric without its base": (stored, ["m", "--metrics", "nss"], ["nss", "--against"]),
    "rtol above its range": (stored, ["m", "--rtol", "5"], ["rtol is 5.0", "[0.0001, 1.0)"]),
    "rtol below its range": (stored, ["m", "--rtol", "1e-9"], ["rtol is 1e-09"]),
    "rtol that is no number": (stored, ["m", "--rtol", "nan"], ["rtol is nan"]),
    "no job": (stored, ["m", "--jobs", "0"], ["jobs is 0"]),
    "negative jobs": (stored, ["m", "--jobs", "-2"], ["jobs is -2"]),
    "out is a file": (file_as_out, ["m", "--out", "out"], ["out cannot be written"]),
    "out in a file": (file_as_out, ["m", "--out", "out/deep"], ["out/deep cannot be written"]),
    "out holds something else": (foreign_out, ["m", "--out", "out"], ["out holds something else"]),
    "out is the model": (stored, ["m", "--out", "m"], ["m holds something else"]),
    "initial of a checkpoint": (stored, ["m", "--initial", "m"], ["initial adapter"]),
    "model as adapter": (stored, ["m", "--adapter"], ["m has no adapter_config.json"]),
    "absent adapter": (nothing, ["a", "--adapter"], ["a is not a folder"]),
    "adapter as model": (adapter, ["a", "--no-adapter"], ["PEFT adapter", "--adapter"]),
    "adapter as base": (adapter, [STUDENT, "--against", "a"], ["PEFT adapter"]),
    "adapter beside an absent base": (adapter, ["a", "--against", "gone"], ["gone does not exist"]),
    "DoRA without its base": (dora, ["a"], ["DoRA", "--against"]),
    "adapter without weights": (adapter_without_weights, ["a"], ["no adapter_model.safetensors"]),
    "pickled adapter": (pickled_adapter, ["a"], ["adapter_model.bin is a pickle"]),
    "adapter with a broken config": (adapter_with_a_broken_config, ["a"], ["adapter_config.json is not readable"]),
    "adapter that multiplies": (multiplying_adapter, ["a"], ["IA3", "merged checkpoint"]),
    "metric of two checkpoints": (adapter, ["a", "--metrics", "sparsity"], ["sparsity", "not an adapter"]),
    "absent first adapter": (adapter, ["a", "--initial", "gone"], ["gone is not a folder"]),
}


@pytest.mark.parametrize(("spoil", "arguments", "words"), NOT_AT_ALL.values(), ids=NOT_AT_ALL)
def test_nothing_can_be_measured(place, run, spoil, arguments, words):
    spoil(place)
    before = files(place)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_one_sentence(err, *words)
    assert files(place) == before


@pytest.mark.parametrize("arguments", [[], ["m", "--rtol", "small"], ["m", "--jobs", "1.5"], ["m", "--fast"]])
def test_a_line_that_is_no_command(place, run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err and "Traceback" not in err


@contextmanager
def without_rights():
    """As a user whom permissions bind: root becomes one for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("closed", ["m", "m/model.safetensors", "."])
@pytest.mark.parametrize("options", [[], ["--adapter"], ["--against", STUDENT]])
def test_what_may_not_be_read(run, closed, options):
    # Not under tmp_path, whose parents are closed to others.
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o755)
        stored(place).chmod(0o644)
        target = place / closed
        rights = stat.S_IMODE(target.stat().st_mode)
        target.chmod(0)
        with without_rights():
            code, out, err = run(place / "m", *options)
        target.chmod(rights)
    finally:
        shutil.rmtree(place)
    assert (code, out) == (2, "")
    assert_one_sentence(err, str(place / "m"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_where_nothing_may_be_written(run):
    place = Path(tempfile.mkdtemp())
    try:
        place.chmod(0o555)
        with without_rights():
            code, out, err = run(STUDENT, "--out", place / "out")
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)
    assert (code, out) == (2, "")
    assert_one_sentence(err, f"{place / 'out'} cannot be written", "Permission denied")
