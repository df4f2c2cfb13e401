"""`stablerank score` as typed: the table, JSON lines, the folder, one sentence for bad input."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from stablerank.cli import main
from stablerank.scoring import score

STUDENT = ("--model", "zoo:arith-student", "--template", "bare")
TWO = ("--scorer", "stable_rank:scope=response", "--scorer", "mean_logprob")
ROWS = [
    *({"prompt": f"{n}+{n}=?\n", "response": [str(2 * n), f"{n}+{n}={2 * n}"], "id": f"\x1b[31m{n}"} for n in range(6)),
    {"prompt": "1+1=?\n", "response": None, "id": "none"},
    {"prompt": "1+1=?\n", "response": " ", "id": None},
]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`stablerank score ARGUMENTS` in this process, from a folder with data: exit code, stdout, stderr."""
    # A hub id that is no folder must be answered without waiting for a network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def run_score(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "score", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run_score


def strict(line):
    def refused(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refused)


def test_the_table(run, tmp_path):
    code, out, err = run("rows.jsonl", *STUDENT, *TWO, "--out", "out")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["row", "place", "id", "1", "2", "tokens", "status"]
    assert [line.split()[:2] for line in lines[2:12]] == [[str(n // 2), str(n % 2)] for n in range(10)]
    assert lines[12] == "and 4 more"
    (first, second) = (line.split() for line in lines if line.startswith(("1 stable_rank:scope", "2 mean_logprob")))
    assert (first[1:3], second[1:3]) == ([TWO[1], "12"], [TWO[3], "12"])
    means = {each.name: each.mean for each in score("rows.jsonl", TWO[1::2], STUDENT[1], template="bare").scores}
    assert [float(first[3]), float(second[3])] == [pytest.approx(mean, rel=1e-3) for mean in means.values()]
    assert "without a score: 1 missing (row 6)" in lines and "without a score: 1 empty (row 7)" in lines
    assert lines[-2].startswith("14 answers; ") and lines[-2].endswith(" tokens/s")
    assert lines[-1] == "scores: out"
    assert "\x1b" not in out
    assert max(len(line) for line in lines if "scope" not in line) <= 110


def test_json_lines_are_strict_and_equal_the_file(run, tmp_path):
    code, out, err = run("rows.jsonl", *STUDENT, *TWO, "--out", "out", "--json")
    assert code == 0
    rows = [strict(line) for line in out.splitlines()]
    kept = pq.read_table(tmp_path / "out" / "scores" / "all.parquet").to_pylist()
    assert rows == [{key: None if value != value else value for key, value in row.items()} for row in kept]
    assert list(rows[0]) == ["row", "place", "id", *TWO[1::2], "tokens", "status"]
    assert rows[-1] == {**dict.fromkeys(rows[0]), "row": 7, "place": 0, "tokens": 0, "status": "empty"}
    assert "14 answers; " in err and "without a score: 1 missing (row 6)" in err
    again = run("rows.jsonl", *STUDENT, *TWO, "--out", "out", "--json")
    assert again[:2] == (0, out) and "14 answers; nothing was left to score" in again[2]


def test_stable_rank_is_the_default_and_options_arrive(run):
    code, out, _ = run("rows.jsonl", *STUDENT, "--json")
    assert (code, list(strict(out.splitlines()[0]))[3:]) == (0, ["stable_rank", "tokens", "status"])
    settings = ("--window", "6", "--dtype", "bfloat16", "--batch-tokens", "50")
    for side, words in (("right", "outside_window"), ("left", "scored")):
        code, out, _ = run("rows.jsonl", *STUDENT, *settings, "--truncation-side", side, "--json")
        # The prompt fills the window.
        assert (code, strict(out.splitlines()[1])["status"]) == (0, words)


BAD = {
    "no file": (["absent.jsonl", *STUDENT], ["absent.jsonl is no file"]),
    "unreachable hub id": (["nobody/nothing", *STUDENT], ["nobody/nothing cannot be read"]),
    "empty file": (["empty.jsonl", *STUDENT], ["empty.jsonl holds no row"]),
    "empty csv": (["empty.csv", *STUDENT], ["empty.csv holds no row"]),
    "csv that is no text": (["bytes.csv", *STUDENT], ["bytes.csv cannot be read as CSV"]),
    "unknown format": (["rows.txt", *STUDENT], ["rows.txt is none of"]),
    "no prompt column": (["rows.jsonl", *STUDENT, "--prompt-column", "q"], ["no column 'q'", "--prompt-column"]),
    "no response column": (["rows.jsonl", *STUDENT, "--response-column", "a"], ["no column 'a'", "it has prompt"]),
    "unknown scorer": (["rows.jsonl", *STUDENT, "--scorer", "taste"], ["no scorer 'taste'", "stable_rank"]),
    "unknown option": (["rows.jsonl", *STUDENT, "--scorer", "stable_rank:depth=1"], ["no option 'depth'"]),
    "a scorer twice": (["rows.jsonl", "--scorer", "random", "--scorer", "random"], ["asked for twice"]),
    "no model": (["rows.jsonl"], ["stable_rank", "none is named"]),
    "no zoo name": (["rows.jsonl", "--model", "zoo:arith"], ["'arith'", "arith-student"]),
    "no model folder": (["rows.jsonl", "--model", "./nowhere"], ["./nowhere", "does not exist"]),
    "no chat template": (["rows.jsonl", "--model", "zoo:arith-student"], ["no chat template", "bare"]),
    "unknown template": (["rows.jsonl", *STUDENT[:2], "--template", "haiku"], ["'haiku'", "chat, plain"]),
    "no layer": (["rows.jsonl", *STUDENT, "--scorer", "stable_rank:layer=99"], ["layer=99"]),
    "no window": (["rows.jsonl", *STUDENT, "--window", "0"], ["window is 0"]),
    "no batch": (["rows.jsonl", *STUDENT, "--batch-tokens", "0"], ["batch_tokens is 0"]),
    "output in a file": (["rows.jsonl", *STUDENT, "--out", "rows.jsonl/o"], ["rows.jsonl/o cannot be made a folder"]),
    "output occupied": (["rows.jsonl", *STUDENT, "--out", "full"], ["full holds something else"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(run, tmp_path, arguments, words):
    for name in ("empty.jsonl", "empty.csv", "rows.txt"):
        (tmp_path / name).touch()
    (tmp_path / "bytes.csv").write_bytes(b"prompt,response\n\xff\xfe,b\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in arguments else ["--out", "out"]
    code, text, err = run(*arguments, *out)
    assert (code, text) == (2, "")
    assert err.startswith("stablerank: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("out", "way_on"), [((), "nothing was written"), (("--out", "o"), "the same command goes on in o")]
)
def test_ctrl_c_says_how_to_go_on(run, monkeypatch, out, way_on):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", interrupted)
    assert run("rows.jsonl", *STUDENT, *out) == (130, "", f"stablerank: interrupted; {way_on}.\n")


def test_help_is_light():
    code = (
        "import sys\nfrom stablerank.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('loaded:', *[n for n in ('torch', 'transformers') if n in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "score", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "loaded:\n")
    for option in ("--scorer", "--model", "--response-column", "--truncation-side", "--out", "--json"):
        assert option in done.stdout
