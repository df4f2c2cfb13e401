"""`stablerank rate-distortion`: every file weighed and read as a fresh load would be, and the pick by its rule."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import stablerank
from stablerank.adapters.config import SpectralLoraConfig
from stablerank.cli import main
from stablerank.compression.spec import CompressionSpec
from stablerank.errors import DataError, RunFolderError
from stablerank.evaluation.losses import text_loss, text_loss_change
from stablerank.evaluation.text_probe import TextProbe
from stablerank.reports.rate_distortion import page, text
from stablerank.tasks.named import named_rows
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
FEW = {"methods": ("kmeans",), "bits": (2, 6), "limit": 4}
KINDS = {
    "lora": LoraConfig,
    "dora": lambda **settings: LoraConfig(use_dora=True, **settings),
    "sinelora": lambda **settings: SpectralLoraConfig(
        spectral={"method": "sinelora", "omega": 30.0, "gain": None}, **settings
    ),
}


def base():
    return AutoModelForCausalLM.from_pretrained(resolve(STUDENT))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folder by kind, off its start."""
    made = {}

    def adapter(kind):
        if kind not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                tuned = get_peft_model(base(), KINDS[kind](r=4, target_modules=["q_proj", "down_proj"]))
                for parameter in tuned.parameters():
                    if parameter.requires_grad:
                        parameter.data += 0.05 * torch.randn_like(parameter)
            made[kind] = tmp_path_factory.mktemp("adapters") / kind
            tuned.save_pretrained(made[kind])
        return str(made[kind])

    return adapter


@pytest.fixture(scope="module")
def swept(adapters):
    return stablerank.rate_distortion(adapters("lora"), "arithmetic", **FEW)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_weighed_and_read_as_a_fresh_load_of_it(kind, adapters, tmp_path):
    found = stablerank.rate_distortion(adapters(kind), "arithmetic", **FEW)
    assert [(point.method, point.bits) for point in found.points] == [("fp16", 16), ("kmeans", 2), ("kmeans", 6)]
    rows = named_rows("arithmetic", {}, 4, "test")
    probe = TextProbe(AutoTokenizer.from_pretrained(resolve(STUDENT)), rows, 512, 8)
    whole = probe.rows(stablerank.load_compressed(stablerank.compress(adapters(kind), tmp_path / "w").file, base()))
    assert len(whole) == found.texts == 4
    for point in found.points:
        spec = CompressionSpec(point.method, point.bits)
        done = stablerank.compress(adapters(kind), tmp_path / f"{point.bits}.safetensors", spec)
        assert point.bytes == done.file.stat().st_size
        read = probe.rows(stablerank.load_compressed(done.file, base()))
        assert point.loss == text_loss(read)["loss"]
    assert found.base_loss == text_loss(probe.rows(base()))["loss"]


def test_the_cost_is_paired_with_the_adapter_as_it_is(adapters, swept, tmp_path):
    rows = named_rows("arithmetic", {}, 4, "test")
    probe = TextProbe(AutoTokenizer.from_pretrained(resolve(STUDENT)), rows, 512, 8)
    as_it_is = probe.rows(PeftModel.from_pretrained(base(), adapters("lora")))
    file = stablerank.compress(adapters("lora"), tmp_path / "two", CompressionSpec(bits=2)).file
    two = probe.rows(stablerank.load_compressed(file, base()))
    assert swept.points[1].cost == text_loss_change(as_it_is, two)
    assert swept.adapter_loss == text_loss(as_it_is)["loss"]
    full, two_bits, six_bits = (point.lost.median_error for point in swept.points)
    assert 0 < full < six_bits < two_bits


def test_the_pick_is_the_smallest_file_that_surely_costs_little(swept):
    by_size = sorted(swept.points, key=lambda point: point.bytes)
    assert replace(swept, tolerance=1e9).pick == by_size[0]
    assert replace(swept, tolerance=-1e9).pick is None
    for point in swept.points:
        at_its_edge = replace(swept, tolerance=point.cost.high)
        assert at_its_edge.pick.cost.high <= point.cost.high and at_its_edge.pick.bytes <= point.bytes


def test_without_texts_there_are_errors_and_no_pick(adapters):
    found = stablerank.rate_distortion(adapters("lora"), methods=("affine", "nf4"), bits=(3, 4))
    assert [(p.method, p.bits) for p in found.points] == [("fp16", 16), ("affine", 3), ("affine", 4), ("nf4", 4)]
    assert found.pick is None and found.adapter_loss is None
    assert found.points[1].lost.median_error > found.points[2].lost.median_error > 0
    assert "no file can be picked" in text(found.results()) and "cost" not in text(found.results())


def test_results_and_page_are_written_at_once_or_not_at_all(adapters, tmp_path):
    found = stablerank.rate_distortion(adapters("lora"), "arithmetic", **FEW, out=tmp_path / "sweep")
    held = json.loads((tmp_path / "sweep" / "rate_distortion.json").read_text(), parse_constant=pytest.fail)
    assert held == json.loads(json.dumps(found.results()))
    shown = (tmp_path / "sweep" / "report.html").read_text()
    assert shown == page(held) and shown.count("<svg") == 3
    with pytest.raises(RunFolderError, match="sweep"):
        stablerank.rate_distortion("nothing", out=tmp_path / "sweep")
    with pytest.raises(DataError, match="at least"):
        stablerank.rate_distortion(adapters("lora"), "arithmetic", limit=1, out=tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep"]


def test_the_page_asks_for_nothing_and_names_are_text(swept):
    hostile = {**swept.results(), "adapter": "<script>alert(1)</script>\x1b[31m\u202e"}
    shown = page(hostile)
    assert "default-src 'none'" in shown and "<script" not in shown
    assert "http://" not in re.sub(r'xmlns\S*="\S*"', "", shown)
    assert "\x1b" not in text(hostile) and "\u202e" not in text(hostile)
    for point in swept.points:
        assert f"{point.bytes:,}" in shown and f"{point.bytes:,}" in text(hostile)


@pytest.fixture
def run(monkeypatch, capsys):
    def typed(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "rate-distortion", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return typed


def test_as_typed(run, adapters, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"{n}+1=?\n", "a": f"{n + 1}"}) + "\n" for n in range(3)))
    own = ("--prompt-column", "q", "--completion-column", "a", "--texts", rows)
    code, out, _ = run(adapters("lora"), *own, "--bits", "2..3", "--method", "affine", "--json")
    held = json.loads(out)
    assert code == 0 and held["texts"] == 3
    assert [(point["method"], point["bits"]) for point in held["points"]] == [
        ("fp16", 16), ("affine", 2), ("affine", 3)
    ]  # fmt: skip
    code, out, _ = run(adapters("lora"), "--bits", "4", "--out", tmp_path / "new")
    assert code == 0 and out.strip().splitlines()[-1] == f"report: {tmp_path / 'new' / 'report.html'}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bits", "many"], "--bits 'many' is neither a range"),
        (["--bits", "9"], "None of kmeans, affine, nf4 has 9 bits"),
        (["--method", "zip"], "Method 'zip' is none of"),
        (["--group", "column"], "Group 'column' is neither"),
        (["--texts", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, run, adapters):
    code, _, error = run(adapters("lora"), *arguments)
    assert code == 2 and said in error and error.count("\n") == 1
