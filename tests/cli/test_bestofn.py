"""`stablerank bestofn` as typed: the table, strict JSON, one sentence for bad input."""

import json
import sys
from typing import get_args

import pytest

from stablerank.cli import main
from stablerank.cli.bestofn import Template
from stablerank.rewards.scorers import templates

ROWS = [
    {"question": f"{number} + 1?", "responses": [f"It is {number + 1}", "0", f"{number}"], "answer": str(number + 1)}
    for number in range(1, 7)
]
POOL = ("pool.jsonl", "--column", "prompt=question", "--scorer", "longer")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`stablerank bestofn ARGUMENTS` in this process, from a folder with a pool: exit code, stdout, stderr."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def bestofn(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "bestofn", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return bestofn


def test_the_table(run):
    code, out, err = run(*POOL)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("pool.jsonl: 6 problems, 18 answers")
    (accuracy, _) = (line for line in lines if line.startswith("longer "))
    assert "33.3 (" in accuracy and "100.0 (" in accuracy
    assert "\x1b" not in out


def test_json_is_strict_and_equals_the_file(run, tmp_path):
    code, out, err = run(*POOL, "--n", "1,3", "--json", "--out", "out")
    assert (code, err) == (0, "")
    found = json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept["complete"] is True
    assert {**kept["settings"], **{key: kept[key] for key in ("lines", "gap", "costs", "n")}}.items() <= found.items()
    assert {line["n"] for line in found["lines"]} == {1, 3}
    assert run(*POOL, "--n", "1,3", "--json", "--out", "out") == (0, out, "")


def test_sampled_now(run):
    sample = ("--sample", "zoo:arith-student", "--samples", 2, "--problems", 6, "--max-new-tokens", 24)
    code, out, err = run("arithmetic", *sample, "--template", "bare")
    assert (code, err) == (0, "")
    assert out.startswith("arithmetic answered by zoo:arith-student: 6 problems, 12 answers")
    assert "(greedy)" in out


BAD = {
    "no file": (["absent.jsonl", "--scorer", "longer"], ["absent.jsonl is no file"]),
    "no scorer": (["pool.jsonl", "--scorer", "taste"], ["no scorer 'taste'"]),
    "no model": (["pool.jsonl", "--model", "./nowhere"], ["./nowhere", "does not exist"]),
    "no column": (["pool.jsonl", "--scorer", "longer"], ["no column 'prompt'"]),
    "column in words": ([*POOL, "--column", "question"], ["'question' is not OURS=THEIRS"]),
    "n in words": ([*POOL, "--n", "two"], ["'two' is no list"]),
    "n beyond the pool": ([*POOL, "--n", "9"], ["N = 9", "6 with fewer answers"]),
    "output in a file": ([*POOL, "--out", "pool.jsonl/out"], ["pool.jsonl/out cannot be made a folder"]),
    "output occupied": ([*POOL, "--out", "full"], ["something else", "--out"]),
    "unknown task": (["algebra", "--sample", "zoo:arith-student", "--template", "bare"], ["no task 'algebra'"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("stablerank: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_says_how_to_go_on(run, tmp_path):
    (tmp_path / "stop.py").write_text("def f(**columns):\n    raise KeyboardInterrupt\n")
    asked = ("arithmetic", "--sample", "zoo:arith-student", "--template", "bare", "--reward", "python:ref=stop.py:f")
    words = "stablerank: interrupted; the same command goes on in o.\n"
    assert run(*asked, "--problems", 2, "--samples", 2, "--out", "o") == (130, "", words)


def test_the_templates_are_those_of_the_scorers():
    assert set(get_args(Template)) == {"chat", *get_args(templates.TextTemplate)}
