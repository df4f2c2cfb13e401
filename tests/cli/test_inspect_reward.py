"""`stablerank inspect-reward` as typed: the table, pages of tokens, JSON, the page, one sentence for bad input."""

import json
import sys

import pytest
import yaml

from stablerank.cli import main

RECIPE = {
    "model": {"path": "zoo:arith-student"},
    "data": {"kind": "arithmetic", "level": "easy", "problems": 8},
    "reward": {"kind": "math_verify"},
    "trainer": {"max_steps": 1, "save_steps": 1, "max_completion_length": 24, "num_generations": 4},
    "evaluation": {"problems": 8},
}
ROLLOUTS = [
    {"prompt": "3+4=?\n", "completion": "3+4=7\n\\boxed{7}", "answer": "7"},
    {"prompt": "3+4=?\n", "completion": "3+4=8\n\\boxed{8}", "answer": "7"},
    {"prompt": "3+4=?\n", "completion": "3+4=8\n\\boxed{8}", "answer": "7"},
]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`stablerank inspect-reward recipe.yaml ARGUMENTS` in this process and folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "output": "never"}))
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROLLOUTS))

    def inspect(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "inspect-reward", "recipe.yaml", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return inspect


def test_the_table_of_the_most_credited_completion(run, tmp_path):
    code, out, err = run("--rollouts", "rollouts.jsonl")
    assert (code, err) == (0, "")
    assert "Recipe recipe.yaml, group 0 of rollouts.jsonl." in out and "Prompt: 3+4=?↵" in out
    assert "Completion 0, tokens 0 to " in out
    final = [line.split() for line in out.splitlines()][-1]
    assert final[-4:] == ["1", "+1.155", "+1.155", "+1.155"], "(1 - 1/3) / 0.5774"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["recipe.yaml", "rollouts.jsonl"]


def test_another_completion_and_a_page_of_its_tokens(run):
    code, out, _ = run("--rollouts", "rollouts.jsonl", "--completion", 1, "--tokens", "2:5")
    assert code == 0
    assert "Completion 1, tokens 2 to 4 of " in out and "(--tokens 5:8 shows more)" in out
    rows = [line.split() for line in out.split("Completion 1")[1].splitlines()]
    assert [row[0] for row in rows if row and row[0].isdigit()] == ["2", "3", "4"]


def test_json_and_page(run, tmp_path):
    code, out, err = run("--rollouts", "rollouts.jsonl", "--json", "--html", "out/page.html", "--kl")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [row[-1] for row in found["parts"][0]["deposits"]] == [1.0, 0.0, 0.0]
    assert found["kl"]["terms"].keys() == {"k1", "k2", "k3", "s4"}
    assert (tmp_path / "out" / "page.html").read_text().count('class="card completion"') == 3


def test_overrides_and_columns_of_a_prompt(run):
    code, out, err = run(
        "trainer.num_generations=2", "seed=3", "--prompt", "3+4=?\n", "--column", "answer=7", "--html", "page.html"
    )
    assert (code, err) == (0, "")
    assert out.startswith("Credit of 2 completions of one prompt under math_verify.")
    assert out.splitlines()[-1] == "page: page.html"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Give one thing to inspect", "--prompt", "--row", "--rollouts"]),
        (["--row", "8"], ["no row 8", "from 0 to 7"]),
        (["--row", "-1"], ["no row -1"]),
        (["--rollouts", "absent.jsonl"], ["absent.jsonl cannot be read as rollouts"]),
        (["--rollouts", "."], ["not a run folder"]),
        (["--rollouts", "rollouts.jsonl", "--group", "1"], ["no group 1", "--group"]),
        (["--rollouts", "rollouts.jsonl", "--completion", "3"], ["no completion 3", "from 0 to 2"]),
        (["--rollouts", "rollouts.jsonl", "--tokens", "5"], ["--tokens 5", "0:100"]),
        (["--rollouts", "rollouts.jsonl", "--tokens", "900:"], ["--tokens 900:", "names no token"]),
        (["--prompt", "3+4=?\n"], ["'answer'", "--column answer=12"]),
        (["--prompt", "3+4=?\n", "--column", "answer"], ["--column 'answer' is not NAME=VALUE"]),
        (["reward.answer_column=gold", "--rollouts", "rollouts.jsonl"], ["'gold'", "--column gold=12"]),
        (["--rollouts", "rollouts.jsonl", "--html", "."], ["--html . cannot be written"]),
        (["--row", "0", "--checkpoint", "absent"], ["absent is no checkpoint"]),
        (["reward.kind=nothing", "--row", "0"], ["reward"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("stablerank: ") and "Traceback" not in err
    for word in words:
        assert word in err
