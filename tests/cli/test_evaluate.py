"""`stablerank evaluate` as typed: the table, strict JSON, the warning, one sentence for bad input."""

import json
import subprocess
import sys

import pytest

from stablerank.cli import main

STUDENT = "zoo:arith-student"
SMALL = ("--problems", "6", "--k", "1,2", "--max-new-tokens", "32")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`stablerank evaluate ARGUMENTS` in this process, from an empty folder: exit code, stdout, stderr."""
    # A hub id that is no folder must be answered without waiting for a network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    monkeypatch.chdir(tmp_path)

    def evaluate(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "evaluate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return evaluate


def strict(text):
    def refused(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refused)


def test_the_table(run):
    code, out, err = run(STUDENT, *SMALL, "--against", STUDENT)
    assert (code, err) == (0, "")
    first, second, *lines = out.splitlines()
    assert first.startswith(f"{STUDENT}: 6 problems, 2 samples each, temperature 1")
    assert second == f"against {STUDENT}, on the same problems"
    names = ("greedy  pass@1 ", "sampled pass@1 = avg@2", "sampled pass@2", "greedy  tokens", "sampled truncated")
    for name in (*names, "sampled parse failures"):
        (line,) = (line for line in lines if line.startswith(name))
        assert "+0.0 (" in line or "+0.0 points (" in line
    assert "pass@1 " in lines[-1] and "gap +" in lines[-1]
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 110


def test_json_is_strict_and_equals_the_file(run, tmp_path):
    code, out, err = run(STUDENT, *SMALL, "--json", "--out", "out")
    assert (code, err) == (0, "")
    found, kept = strict(out), strict((tmp_path / "out" / "evaluation.json").read_text())
    assert {key: kept[key] for key in ("measures", "headroom", "k", "packages")} == {
        key: found[key] for key in ("measures", "headroom", "k", "packages")
    }
    assert kept["complete"] is True
    assert run(STUDENT, *SMALL, "--json", "--out", "out") == (0, out, "")


def test_nothing_to_elicit_is_a_warning_with_its_rule(run, tmp_path):
    (tmp_path / "never.py").write_text("def f(completions, **columns):\n    return [0.0] * len(completions)\n")
    code, out, _ = run(STUDENT, *SMALL, "--reward", "python:ref=never.py:f")
    assert code == 0
    assert "warning: no headroom for RL: the model never samples a right answer\n" in out
    assert "rule: the share of problems with a right sample has a lower bound below 1%" in out
    code, out, _ = run(STUDENT, "--problems", "2", "--k", "1", "--reward", "python:ref=always.py:f")
    assert code == 2


ROW = '{"prompt": "1+1=?\\n", "answer": "2"}\n'
BAD = {
    "no model": (["./nowhere"], ["./nowhere", "does not exist"]),
    "unreachable hub id": (["nobody/nothing"], ["nobody/nothing cannot be loaded"]),
    "no zoo name": (["zoo:arith"], ["'arith'", STUDENT]),
    "no adapter": ([STUDENT, "--adapter", "empty"], ["empty holds no PEFT adapter"]),
    "no other": ([STUDENT, "--against", "./nowhere"], ["./nowhere", "does not exist"]),
    "unknown task": ([STUDENT, "--task", "algebra"], ["no task 'algebra'", "arithmetic"]),
    "unknown level": ([STUDENT, "--task", "arithmetic:level=x"], ["level='x' is refused"]),
    "no file": ([STUDENT, "--task", "absent.jsonl"], ["absent.jsonl is no file"]),
    "no column": ([STUDENT, "--task", "bare.jsonl"], ["column 'answer'", "columns: prompt"]),
    "no prompt": ([STUDENT, "--task", "odd.jsonl"], ["no column 'prompt'"]),
    "chat without a template": ([STUDENT, "--task", "rows.jsonl", "--chat"], ["chat template"]),
    "split of a file": ([STUDENT, "--task", "rows.jsonl", "--split", "test"], ["asked as a whole"]),
    "no recipe": ([STUDENT, "--recipe", "absent.yaml"], ["absent.yaml cannot be read"]),
    "unknown reward": ([STUDENT, "--reward", "taste"], ["no reward 'taste'", "math_verify"]),
    "no reward file": ([STUDENT, "--reward", "python:ref=absent.py:f"], ["absent.py", "does not exist"]),
    "k in words": ([STUDENT, "--k", "one,two"], ["'one,two' is no list"]),
    "k of nothing": ([STUDENT, "--k", "0,4"], ["pass@0", "1..4"]),
    "k beyond the samples": ([STUDENT, "--k", "8", "--samples", "4"], ["pass@8", "4 samples", "1..4"]),
    "cold": ([STUDENT, "--temperature", "0"], ["temperature is 0"]),
    "top-p beyond 1": ([STUDENT, "--top-p", "1.5"], ["top_p is 1.5"]),
    "negative seed": ([STUDENT, "--seed", "-1"], ["seed is -1"]),
    "no problem": ([STUDENT, "--problems", "0"], ["problems is 0"]),
    "no batch": ([STUDENT, "--batch-size", "0"], ["batch_size is 0"]),
    "longer than the context": ([STUDENT, "--max-new-tokens", "256"], ["context of 256", "lower max_new_tokens"]),
    "output in a file": ([STUDENT, "--out", "rows.jsonl/out"], ["rows.jsonl/out cannot be made a folder"]),
    "output occupied": ([STUDENT, "--out", "full"], ["something else than an evaluation", "--out"]),
    "unfinished run": (["full"], ["full is not"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, words):
    for name, text in (("rows", ROW), ("bare", '{"prompt": "1"}\n'), ("odd", '{"question": "1"}\n')):
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "manifest.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("stablerank: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("out", "way_on"), [((), "nothing was written"), (("--out", "o"), "the same command goes on in o")]
)
def test_ctrl_c_says_how_to_go_on(run, tmp_path, out, way_on):
    (tmp_path / "stop.py").write_text("def f(**columns):\n    raise KeyboardInterrupt\n")
    asked = (STUDENT, *SMALL, "--reward", "python:ref=stop.py:f", *out)
    assert run(*asked) == (130, "", f"stablerank: interrupted; {way_on}.\n")


def test_help_is_light():
    code = (
        "import sys\nfrom stablerank.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('loaded:', *[n for n in ('torch', 'transformers', 'trl') if n in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "evaluate", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "loaded:\n")
    for option in ("--adapter", "--task", "--recipe", "--reward", "--k", "--against", "--out", "--json"):
        assert option in done.stdout
