"""`stablerank condition` as typed, on models of three families, against numpy on dense gradients and inputs."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stablerank.cli import main
from stablerank.zoo.resolve import resolve

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 101,
    "tie_word_embeddings": False,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=8, **SIZES)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}
BLOCKS = {"llama": 7, "qwen3": 7, "neox": 4}
TEXTS = ["(3+4)*2-5=?", "12+7=?", "(9-2)*3+1-4=?", "8*8=?", "5-3+2=?", "6*7-1=?", "1+1=?", "9*9-80=?", "2*3*4=?"]


@pytest.fixture
def run(monkeypatch, capsys):
    def condition(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "condition", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return condition


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": text, "text": text}) + "\n" for text in TEXTS))
    return path


def saved(family, place):
    torch.manual_seed(0)
    MODELS[family]().save_pretrained(place)
    AutoTokenizer.from_pretrained(resolve("zoo:arith-student")).save_pretrained(place)
    return place


def dense(place):
    """Both ranks of each linear layer in the blocks from ``.grad`` and the inputs of every text, one text at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    inputs = {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }
    for name, module in layers.items():
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0][0]))
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
        logits = model(input_ids=ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").backward()
    found = {}
    for name, module in layers.items():
        gradient = np.linalg.svd(module.weight.grad.double().numpy(), compute_uv=False)
        read = np.linalg.svd(torch.cat(inputs[name]).detach().double().numpy(), compute_uv=False)
        found[name] = (gradient.sum() ** 2 / (gradient**2).sum(), (read**2).sum() / read[0] ** 2)
    return found


@pytest.mark.parametrize("family", MODELS)
def test_json_has_both_sides_of_every_block(run, texts, tmp_path, family):
    place = saved(family, tmp_path / family)
    code, out, _ = run(place, "--texts", texts, "--json")
    assert code == 0
    found, expected = json.loads(out, parse_constant=pytest.fail), dense(place)
    assert (found["texts"], len(found["blocks"])) == (len(TEXTS), 2 * BLOCKS[family])
    for block in found["blocks"]:
        (name,) = [name for name in expected if name.endswith(f".{block['layer']}.{block['module']}")]
        nuclear, stable = expected[name]
        assert block["nuclear_rank"] == pytest.approx(nuclear, rel=1e-3)
        assert block["stable_rank"] == pytest.approx(stable, rel=1e-3)
        assert block["favours"] == ("spectral" if nuclear >= stable else "euclidean")
        assert block["ratio"] == pytest.approx(nuclear / stable, rel=2e-3)


def test_text_says_what_to_do_in_plain_words(run):
    code, out, err = run("zoo:arith-student", "--texts", "arithmetic", "--limit", "8", "--head", "--all")
    assert (code, err) == (0, "")
    assert "8 texts" in out and "mlp.down_proj" in out and "lm_head" in out
    assert "3 mlp.down_proj: A" in out and "grows with width and batch" in out
    assert "measure before you believe it" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 110


def test_the_loss_of_completions_alone(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": TEXTS[0], "answer": "9"}) + "\n")
    columns = ["--prompt-column", "question", "--completion-column", "answer"]
    code, out, _ = run("zoo:arith-student", "--texts", path, *columns, "--json")
    place = resolve("zoo:arith-student")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    prompt, answer = tokenizer(TEXTS[0]).input_ids, [*tokenizer("9").input_ids, tokenizer.eos_token_id]
    ids = torch.tensor([prompt + answer])
    loss = model(input_ids=ids, labels=torch.tensor([[-100] * len(prompt) + answer])).loss
    assert code == 0
    assert json.loads(out)["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zoo:none", "--texts", "arithmetic"], ["'none'"]),
        (["zoo:arith-student", "--texts", "none.jsonl"], ["none.jsonl"]),
        (["zoo:arith-student", "--texts", "arithmetic", "--limit", "0"], ["0 texts"]),
        (["zoo:arith-student", "--texts", "arithmetic", "--max-length", "2"], ["carries loss"]),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("stablerank: ") and err.count("\n") == 1
    assert all(word in err for word in words)


def test_a_column_that_is_missing_is_named_with_the_option(run, texts):
    code, _, err = run("zoo:arith-student", "--texts", texts, "--text-column", "story")
    assert code == 2
    assert "'story'" in err and "--text-column COLUMN" in err
