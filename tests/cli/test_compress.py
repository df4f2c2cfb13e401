"""`stablerank compress` as typed: a file, what was lost, back again; bad input is one sentence and leaves nothing."""

import json
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import stablerank
from stablerank.cli import main
from stablerank.zoo.resolve import resolve


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`stablerank compress ARGUMENTS` in this process, from an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def compress(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "compress", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return compress


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of the embedded student, off its start."""
    model = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    tuned.save_pretrained(folder)
    return folder


def test_a_file_a_report_and_back(run, adapter, tmp_path):
    code, out, _ = run(adapter, "--out", "small.safetensors")
    assert code == 0
    assert "kmeans, 5 bits" in out
    assert "fingerprint kept" in out
    size = (tmp_path / "small.safetensors").stat().st_size
    assert f"{size:,} bytes" in out
    loading = out.strip().splitlines()[-1].partition(" = ")[2]
    model = eval(loading, {"stablerank": stablerank})
    assert run("small.safetensors", "--expand", "--out", "plain")[0] == 0
    plain = AutoPeftModelForCausalLM.from_pretrained("plain")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_json_holds_the_account_and_the_losses(run, adapter, tmp_path):
    code, out, _ = run(adapter, "--out", "small", "--bits", 2, "--method", "affine", "--group", 64, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["method"], found["bits"], found["group"]) == ("affine", 2, 64)
    assert found["bytes"] == sum(found[part] for part in ("payload", "codebooks", "index", "header"))
    assert found["bytes"] == (tmp_path / "small").stat().st_size
    assert len(found["losses"]) == 28
    assert all(row["lower"] <= row["stable_rank_after"] for row in found["losses"])
    assert run(adapter, "--out", "fast", "--no-measure", "--json")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--out", "x"], "nowhere has no adapter_config.json"),
        (["ADAPTER", "--out", "x", "--bits", "9"], "1 to 8 bits, not 9"),
        (["ADAPTER", "--out", "x", "--group", "half"], "neither `tensor`, `row`"),
        (["ADAPTER", "--out", "x", "--rank", "2", "--energy", "0.9"], "two rules for one cut"),
        (["ADAPTER", "--out", "."], "exists; choose another file"),
        (["ADAPTER/adapter_model.safetensors", "--expand", "--out", "x"], "is no compressed adapter"),
    ],
)
def test_bad_input_is_one_sentence(run, adapter, tmp_path, arguments, words):
    code, out, error = run(*[argument.replace("ADAPTER", str(adapter)) for argument in arguments])
    assert code == 2
    assert out == ""
    (sentence,) = error.strip().splitlines()
    assert words in sentence
    assert list(tmp_path.iterdir()) == []
