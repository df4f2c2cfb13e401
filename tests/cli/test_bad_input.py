"""Bad input: one sentence with the remedy, exit code 2, no traceback, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stablerank.cli import main
from stablerank.runs.atomic import write_json
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
RECIPE = {
    "model": {"path": STUDENT},
    "data": {"kind": "arithmetic", "problems": 16},
    "reward": {"kind": "math_verify"},
    "trainer": {"max_steps": 1, "save_steps": 1, "max_completion_length": 16},
    "evaluation": {"problems": 8},
}
GOOD = [{"prompt": f"{n}+1=?\n", "answer": str(n + 1)} for n in range(60)]


class Place:
    """A folder with a good recipe, a good data file and a copy of the student, for a test to spoil."""

    def __init__(self, path):
        self.path = path
        self.out = path / "out"
        self.recipe = path / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump({**RECIPE, "output": str(self.out)}))
        self.data = path / "rows.jsonl"
        rows(*GOOD)(self)

    def model(self):
        copy = Path(shutil.copytree(resolve(STUDENT), self.path / "model"))
        for file in copy.iterdir():
            file.chmod(0o644)
        return copy

    def run(self, monkeypatch, arguments):
        """`stablerank ARGUMENTS` in this process, from this folder; returns the exit code."""
        monkeypatch.chdir(self.path)
        monkeypatch.setattr(sys, "argv", ["stablerank", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    def files(self):
        return {str(p.relative_to(self.path)) for p in self.path.rglob("*")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    # A hub id that is no folder must be answered without waiting for a network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    return Place(tmp_path)


def no_file(place):
    place.recipe.unlink()


def broken_yaml(place):
    place.recipe.write_text("model: [1\n")


def binary_recipe(place):
    place.recipe.write_bytes(b"\x00\xff\xfe")


def empty_folder(place):
    (place.path / "model").mkdir()


def cut_weights(place):
    weights = place.model() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def pickle_only(place):
    weights = place.model() / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()


def unknown_architecture(place):
    config = place.model() / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "abacus"}))


def no_tokenizer(place):
    model = place.model()
    for file in model.glob("tokenizer*"):
        file.unlink()


def deaf_tokenizer(place):
    """A tokenizer that drops tildes, and a prompt of nothing else."""
    file = place.model() / "tokenizer.json"
    normalizer = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": normalizer}))
    rows(*GOOD, {"prompt": "~", "answer": "1"})(place)


def chat_template(text):
    return lambda place: (place.model() / "chat_template.jinja").write_text(text)


def rows(*lines):
    return lambda place: place.data.write_text("".join(json.dumps(line) + "\n" for line in lines))


def reward(text):
    return lambda place: (place.path / "reward.py").write_text(text)


MODEL = ["model.path=./model"]
DATA = ["data={kind: file, path: rows.jsonl}"]
LONG = {"prompt": "1+" * 130 + "1=?\n", "answer": "131"}
PROCESS = "reward={kind: process, model: 'zoo:arith-prm', question_column: bare}"
PYTHON = ["reward={kind: python, ref: 'reward.py:score'}"]
BAD = {
    "unknown key": (None, ["adapter.kind=lora", "adapter.rank=4"], ["'adapter.rank'", "mend the spelling"]),
    "unknown trainer key": (None, ["trainer.lr=1"], ["trainer.lr", "GRPOConfig"]),
    "wrong type": (None, ["seed=seven"], ["seed='seven'", "integer"]),
    "wrong trainer type": (None, ["trainer.max_steps=many"], ["trainer.max_steps='many'", "integer"]),
    "refused by TRL": (None, ["trainer.per_device_train_batch_size=7"], ["num_generations"]),
    "not an override": (None, ["seed:7"], ["'seed:7'", "KEY=VALUE"]),
    "missing recipe": (no_file, [], ["recipe.yaml cannot be read", "give the path"]),
    "broken YAML": (broken_yaml, [], ["is not YAML", "mend that line"]),
    "binary recipe": (binary_recipe, [], ["is not YAML"]),
    "unknown zoo name": (None, ["model.path=zoo:arith"], ["'arith'", STUDENT]),
    "missing model": (None, MODEL, ["./model", "does not exist"]),
    "unreachable hub id": (None, ["model.path=nobody/nothing"], ["'nobody/nothing' cannot be loaded"]),
    "empty model folder": (empty_folder, MODEL, ["no config.json"]),
    "cut-off weights": (cut_weights, MODEL, ["model.safetensors cannot be read"]),
    "weights as pickle": (pickle_only, MODEL, ["pickle only", "save_pretrained"]),
    "unknown architecture": (unknown_architecture, MODEL, ["cannot be loaded", "abacus"]),
    "no tokenizer": (no_tokenizer, MODEL, ["holds no tokenizer", "tokenizer.save_pretrained"]),
    "adapter without a target": (None, ["adapter={kind: lora, targets: [q_prox]}"], ["q_prox", "all-linear"]),
    "missing data": (None, ["data={kind: file, path: absent.jsonl}"], ["absent.jsonl is no file"]),
    "empty data": (rows(), DATA, ["rows.jsonl holds no row"]),
    "no prompt column": (rows({"question": "Q"}), DATA, ["no column 'prompt'", "question", "data.columns.prompt"]),
    "no answer column": (
        rows(*({"prompt": f"{n}", "gold": "1"} for n in range(60))),
        DATA,
        ["'answer'", "gold", "data.columns.answer"],
    ),
    "no column for the process reward": (
        rows(*GOOD),
        [*DATA, PROCESS, "evaluation.reward={kind: math_verify}"],
        ["process", "'bare'", "data.columns.bare"],
    ),
    "no column of tests": (
        rows(*GOOD),
        [*DATA, "reward={kind: code_tests, execution: allowed}"],
        ["code_tests", "'tests'", "data.columns.tests"],
    ),
    "too few rows": (rows({"prompt": "1+1=?\n", "answer": "2"}), DATA, ["leaves no", "row"]),
    "chat without a template": (
        None,
        ["data={kind: file, path: rows.jsonl, chat: true}"],
        ["chat template", "data.chat=false"],
    ),
    "chat template that refuses": (
        chat_template("{{ raise_exception('System role not supported') }}"),
        [*MODEL, "data={kind: file, path: rows.jsonl, chat: true, system: Be brief.}"],
        ["System role not supported", "data.system=null"],
    ),
    "prompt without a token": (deaf_tokenizer, [*MODEL, *DATA], ["Prompt ", "'~'", "no token", "drop the row"]),
    "prompt longer than the context": (
        rows(*GOOD, LONG),
        DATA,
        ["264 tokens", "context of 256", "shorten the prompt"],
    ),
    "evaluation longer than the context": (None, ["evaluation.max_new_tokens=256"], ["context of 256", "leaves 0"]),
    "completion longer than the context": (None, ["trainer.max_completion_length=256"], ["context of 256", "leaves 0"]),
    "missing reward file": (None, PYTHON, ["'reward.py:score'", "does not exist"]),
    "missing reward function": (reward("def other(): ...\n"), PYTHON, ["reward.py", "def score("]),
    "reward with a syntax error": (reward("def score(:\n"), PYTHON, ["SyntaxError", "line 1"]),
    "output in a file": (None, ["output=rows.jsonl/run"], ["rows.jsonl/run cannot be made a folder"]),
    "output is a file": (None, ["output=rows.jsonl"], ["rows.jsonl cannot be made a folder"]),
}


def assert_one_sentence(text, words):
    assert text.startswith("stablerank: ")
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    assert "Traceback" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(("spoil", "overrides", "words"), BAD.values(), ids=BAD)
def test_train(place, monkeypatch, capsys, spoil, overrides, words):
    if spoil is not None:
        spoil(place)
    before = place.files()
    code = place.run(monkeypatch, ["train", "recipe.yaml", *overrides])
    assert code == 2
    assert_one_sentence(capsys.readouterr().err, words)
    assert {name for name in place.files() - before if "__pycache__" not in name} == set()


DRY_RUN_TOO = ["refused by TRL", "unknown architecture", "adapter without a target", "no answer column", "empty data"]


@pytest.mark.parametrize("name", DRY_RUN_TOO)
def test_dry_run_finds_it_too(place, monkeypatch, capsys, name):
    spoil, overrides, words = BAD[name]
    if spoil is not None:
        spoil(place)
    assert place.run(monkeypatch, ["train", "recipe.yaml", *overrides, "--dry-run"]) == 2
    assert_one_sentence(capsys.readouterr().err, words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["thesis.tex"], "is not a run folder"),
        (["manifest.json"], "train --resume"),
        (["manifest.json", "summary.json"], "holds a finished run"),
    ],
    ids=["foreign", "unfinished", "finished"],
)
def test_train_into_an_occupied_folder(place, monkeypatch, capsys, files, words):
    for name in files:
        write_json(place.out / name, {"recipe": {}})
    before = place.files()
    assert place.run(monkeypatch, ["train", "recipe.yaml"]) == 2
    assert_one_sentence(capsys.readouterr().err, [str(place.out), words, "output=FOLDER"])
    assert place.files() == before


@pytest.mark.parametrize("arguments", [["train", "--resume"], ["report"], ["export", "--merge", "--out", "merged"]])
@pytest.mark.parametrize("state", ["missing", "foreign", "broken"])
def test_a_folder_that_is_no_run(place, monkeypatch, capsys, arguments, state):
    if state != "missing":
        place.out.mkdir()
        (place.out / ("notes.txt" if state == "foreign" else "manifest.json")).write_text("{")
    before = place.files()
    assert place.run(monkeypatch, [*arguments, "out"]) == 2
    assert_one_sentence(capsys.readouterr().err, ["out", "run folder"])
    assert place.files() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "--resume RUN"),
        (["train", "recipe.yaml", "--resume", "out"], "--resume RUN"),
        (["train", "--resume", "out", "--dry-run"], "its own recipe"),
        (["export", "out", "--out", "merged"], "--merge"),
        (["zoo", "fetch", "gpt5"], STUDENT),
    ],
)
def test_arguments_that_do_not_fit_together(place, monkeypatch, capsys, arguments, words):
    assert place.run(monkeypatch, arguments) == 2
    assert_one_sentence(capsys.readouterr().err, [words])


@pytest.mark.parametrize("arguments", [["tarin"], ["train", "--fast"], ["report"], ["export", "out"], ["zoo", "get"]])
def test_a_line_that_is_no_command_ends_with_2_too(place, monkeypatch, capsys, arguments):
    assert place.run(monkeypatch, arguments) == 2
    shown = capsys.readouterr()
    assert "Usage" in shown.err
    assert "Traceback" not in shown.err


def test_ctrl_c_before_the_run_began(place, monkeypatch, capsys):
    reward("raise KeyboardInterrupt\n")(place)
    assert place.run(monkeypatch, ["train", "recipe.yaml", *PYTHON]) == 130
    assert_one_sentence(capsys.readouterr().err, ["interrupted", "nothing was written"])
    assert not place.out.exists()


def test_ctrl_c_in_a_run_names_the_run_to_go_on_with(place, monkeypatch, capsys):
    reward("def score(**columns):\n    raise KeyboardInterrupt\n")(place)
    assert place.run(monkeypatch, ["train", "recipe.yaml", *PYTHON]) == 130
    shown = capsys.readouterr().err
    assert_one_sentence(shown.splitlines(keepends=True)[-1], ["interrupted", f"stablerank train --resume {place.out}"])
    assert "Traceback" not in shown


@pytest.mark.parametrize("name", ["unknown key", "no answer column"])
def test_through_a_real_process_stderr_holds_the_sentence_alone(place, name):
    """Imports and libraries underneath add nothing: no warning, no progress bar, no empty line."""
    spoil, overrides, words = BAD[name]
    if spoil is not None:
        spoil(place)
    command = [sys.executable, "-m", "stablerank", "train", "recipe.yaml", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place.path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert_one_sentence(done.stderr, words)
    assert done.stdout == ""
    assert not place.out.exists()
