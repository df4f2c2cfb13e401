"""`stablerank adapt` as typed: every form loads as it says, bad input is one sentence and leaves nothing."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import stablerank.peft  # noqa: F401
from stablerank.cli import main
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
IDS = torch.arange(3, 33).view(2, 15)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`stablerank adapt ARGUMENTS` in this process, from an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def adapt(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "adapt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return adapt


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model without a tokenizer, quick to factorise."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def logits(base, adapter=None, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_native(run, tmp_path):
    code, out, _ = run(STUDENT, "--spec", "geora", "r=4", "rho=0.1", "--out", "geora")
    assert code == 0
    assert out.splitlines()[0] == "geora adapter (native) in geora"
    assert "rank 4, 38,912 trainable parameters" in out
    assert "import stablerank.peft" in out
    assert max(map(len, out.splitlines())) <= 110
    settings = json.loads((tmp_path / "geora" / "adapter_config.json").read_text())
    assert (settings["r"], settings["spectral"]["rho"]) == (4, 0.1)
    assert torch.equal(logits(resolve(STUDENT), tmp_path / "geora"), logits(resolve(STUDENT)))
    assert [file.name for file in tmp_path.iterdir()] == ["geora"]


def test_what_it_prints_loads_it(run, tiny, tmp_path):
    code = []
    for form in ("lora", "residual", "native"):  # the last teaches PEFT our methods
        _, out, _ = run(tiny, "--spec", "pissa", "r=2", "--form", form, "--out", form)
        snippet = out.partition("\n\n")[2]
        assert ("import stablerank.peft" in snippet) == (form == "native")
        code.append(f"{snippet}\nprint(model.get_nb_trainable_parameters()[0])")
    start = [sys.executable, "-c", "\n".join(code)]
    found = subprocess.run(start, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout.split() == ["0", "464", "464"]


def test_lora_is_the_base_up_to_rounding_and_says_what_it_is_for(run, tmp_path):
    code, out, _ = run(STUDENT, "--spec", "pissa", "r=4", "--form", "lora", "--out", "out")
    assert code == 0
    assert "rank 8" in out
    assert "halves cancel up to rounding" in out
    off = (logits(resolve(STUDENT), tmp_path / "out") - logits(resolve(STUDENT))).abs().max()
    assert 0 < off < 1e-3


def test_residual(run, tmp_path):
    code, out, _ = run(STUDENT, "--spec", "milora", "r=4", "--form", "residual", "--out", "out")
    assert code == 0
    assert "residual in float32: base plus adapter misses the original by at most" in out
    folder = tmp_path / "out"
    assert {file.name for file in folder.iterdir()} == {"base", "adapter"}
    assert (folder / "base" / "tokenizer.json").exists()
    whole, rest = logits(resolve(STUDENT)), logits(folder / "base")
    torch.testing.assert_close(logits(folder / "base", folder / "adapter"), whole, rtol=0, atol=1e-3)
    assert (rest - whole).abs().max() > 1e-3


def test_json(run, tmp_path):
    code, out, err = run(
        STUDENT, "--spec", "olora", "r=2", "--form", "residual", "--dtype", "bfloat16", "--out", "out", "--json"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["method"], found["form"], found["rank"], found["trainable"]) == ("olora", "residual", 2, 19456)
    assert found["base"] == found["residual"]["base"] == str(tmp_path / "out" / "base")
    assert 1e-4 < found["residual"]["error"] < 1e-1
    assert load_file(tmp_path / "out" / "base" / "model.safetensors")[found["residual"]["worst"] + ".weight"].dtype == (
        torch.bfloat16
    )


def test_a_trained_adapter_in_every_form(run, tiny, tmp_path):
    assert run(tiny, "--spec", "pissa", "r=2", "alpha=5", "--out", "native")[0] == 0
    weights = load_file(tmp_path / "native" / "adapter_model.safetensors")
    for name, value in weights.items():
        if ".lora_B." in name:
            value += 0.2
    save_file(weights, tmp_path / "native" / "adapter_model.safetensors", metadata={"format": "pt"})
    wanted = logits(tiny, tmp_path / "native")
    assert (wanted - logits(tiny)).abs().max() > 1e-2
    code, out, _ = run("native", "--out", "lora")
    assert (code, "halves" in out) == (0, False)
    assert run("native", "--form", "residual", "--out", "residual")[0] == 0
    for base, adapter in ((tiny, "lora"), (tmp_path / "residual" / "base", "residual/adapter")):
        torch.testing.assert_close(logits(base, tmp_path / adapter), wanted, rtol=0, atol=1e-4)


def test_an_adapter_whose_base_has_moved(run, tiny, tmp_path):
    assert run(tiny, "--spec", "pissa", "r=2", "--out", "native")[0] == 0
    settings = json.loads((tmp_path / "native" / "adapter_config.json").read_text())
    (tmp_path / "native" / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "/nowhere/at/all"})
    )
    code, _, err = run("native", "--out", "lora")
    assert (code, "/nowhere/at/all" in err) == (2, True)
    code, out, _ = run("native", "--out", "lora", "--base", tiny)
    assert (code, f"valid on {tiny}" in out) == (0, True)


def test_a_run_folder_means_its_model(run, tiny, tmp_path):
    assert run(tiny, "--spec", "lora", "r=2", "--out", "run/model")[0] == 0
    code, out, _ = run("run", "--out", "lora")
    assert (code, out.splitlines()[0]) == (0, "lora adapter (lora) in lora")


@pytest.mark.parametrize("kind", ["eva", "corda"])
def test_a_start_from_data(run, tmp_path, kind):
    (tmp_path / "text.txt").write_text("1+2=3\n\n" * 40)
    code, out, err = run(
        STUDENT, "--spec", kind, "r=2", "targets=[q_proj]", "--calibration", "text.txt", "--out", "out"
    )
    assert (code, err) == (0, "")
    assert out.startswith(f"{'lora' if kind == 'eva' else 'corda'} adapter (native)")


def test_seeds(run, tiny, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(tiny, "--spec", "lora", "r=2", "--seed", seed, "--out", name)[0] == 0
    first, same, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in "abc")
    name = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


BAD = {
    "no spec": ((STUDENT,), "no adapter, so say which"),
    "unknown spec": ((STUDENT, "--spec", "gerona"), "the kinds are corda, dora, eva, geora"),
    "in place": ((STUDENT, "--spec", "bitfit"), "others train the model's own weights"),
    "unknown setting": ((STUDENT, "--spec", "geora", "rhoo=1"), "no setting 'rhoo'; its settings are r, alpha"),
    "bad value": ((STUDENT, "--spec", "geora", "rho=2"), "rho=2 is refused"),
    "no value": ((STUDENT, "--spec", "geora", "rho"), "is not KEY=VALUE"),
    "the kind twice": ((STUDENT, "--spec", "geora", "kind=lora"), "is not KEY=VALUE of the method"),
    "no yaml": ((STUDENT, "--spec", "geora", "rho=[1"), "is not YAML"),
    "missing setting": ((STUDENT, "--spec", "sinelora"), "needs 'omega'"),
    "rank too large": ((STUDENT, "--spec", "pissa", "r=65"), "lower r"),
    "no such target": ((STUDENT, "--spec", "pissa", "targets=[x_proj]"), "x_proj"),
    "sine as lora": ((STUDENT, "--spec", "sinelora", "omega=9", "--form", "lora"), "sine of a product"),
    "lora as residual": ((STUDENT, "--spec", "lora", "--form", "residual"), "has no residual form"),
    "dtype without residual": ((STUDENT, "--spec", "lora", "--dtype", "bfloat16"), "`--form residual`"),
    "no data": ((STUDENT, "--spec", "eva"), "--calibration FILE"),
    "needless data": ((STUDENT, "--spec", "lora", "--calibration", "text.txt"), "reads no data"),
    "no such data": ((STUDENT, "--spec", "eva", "--calibration", "gone.txt"), "gone.txt cannot be read"),
    "binary data": ((STUDENT, "--spec", "eva", "--calibration", "binary"), "cannot be read as text"),
    "empty data": ((STUDENT, "--spec", "eva", "--calibration", "empty.txt"), "but got 0"),
    "base of a model": ((STUDENT, "--spec", "lora", "--base", STUDENT), "`--base` is of an adapter"),
    "no such model": (("gone/model", "--spec", "lora"), "gone/model"),
    "unknown zoo": (("zoo:gone", "--spec", "lora"), "The zoo has no 'gone'"),
    "a file": (("text.txt", "--spec", "lora"), "is a file"),
    "an empty folder": (("hollow", "--spec", "lora"), "config.json"),
    "an adapter with a spec": (("adapter", "--spec", "lora"), "is an adapter already"),
    "an adapter as native": (("adapter", "--form", "native"), "is an adapter already"),
    "a broken adapter": (("adapter",), "cannot be loaded"),
    "an adapter of no base": (("baseless",), "name it with `--base`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, tmp_path, name):
    (tmp_path / "text.txt").write_text("1+2=3\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "hollow").mkdir()
    for folder, base in (("adapter", resolve(STUDENT)), ("baseless", None)):
        (tmp_path / folder).mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": base, "target_modules": ["q_proj"]}
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(config))
    before = sorted(tmp_path.rglob("*"))
    arguments, words = BAD[name]
    code, out, err = run(*arguments, "--out", "deep/out")
    assert (code, out) == (2, "")
    (sentence,) = err.splitlines()
    assert sentence.startswith("stablerank: ")
    assert words in sentence
    assert sentence.endswith(".")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_is_occupied(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for out, words in (("full", "is not empty"), ("full/mine", "is a file"), ("full/mine/more", "is a file")):
        code, _, err = run(STUDENT, "--spec", "lora", "--out", out)
        assert (code, words in err) == (2, True)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["full", "full/mine"]


def test_a_model_without_linear_layers(run, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained("gpt2")
    code, _, err = run("gpt2", "--spec", "pissa", "r=2", "--out", "out")
    assert code == 2
    assert "no linear layer" in err
    assert not (tmp_path / "out").exists()


def test_interrupted(run, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("stablerank.adapters.adapt.prepare_adapter", stop)
    code, out, err = run(STUDENT, "--spec", "pissa", "--out", "out")
    assert (code, out, err) == (130, "", "stablerank: interrupted; nothing was written.\n")
    assert list(tmp_path.iterdir()) == []
