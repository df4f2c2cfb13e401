"""Pairs and choices from every kind of file: what is read, what is refused and how it is named."""

import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stablerank.errors import DataError
from stablerank.tasks.files import data_folder
from stablerank.tasks.preferences import (
    SETS,
    load_pairs,
    read_choices,
    read_pairs,
    read_preferences,
)

ROWS = [
    {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five.", "subset": "sums", "id": 7},
    {"prompt": "A colour?", "chosen": "Red.", "rejected": "Seven.", "subset": "words", "id": 8},
    {"prompt": "Two and two?", "chosen": "4", "rejected": "Twenty-two.", "subset": "sums", "id": 9},
]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "?"}]


def answered(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def written(tmp_path):
    def write(rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture
def raw():
    """Rows of a file in the data folder, read without the code under test."""

    def read(name):
        path = data_folder() / name
        if not path.is_file():
            pytest.skip(f"no {name} in {data_folder()}: set STABLERANK_DATA to the folder of real data")
        text = gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text()
        return [json.loads(line) for line in text.splitlines()] if ".jsonl" in name else json.loads(text)

    return read


def test_every_format_gives_the_same_pairs(tmp_path, written):
    lines = written(ROWS)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    wanted = load_pairs(lines)
    assert [(p.id, p.prompt, p.chosen, p.rejected, p.subset) for p in wanted] == [
        (str(r["id"]), r["prompt"], r["chosen"], r["rejected"], r["subset"]) for r in ROWS
    ]
    for name in ("rows.json", "rows.jsonl.gz", "rows.parquet"):
        assert load_pairs(str(tmp_path / name)) == wanted, name


def test_pairs_of_one_prompt_share_a_group_unless_one_is_given(written):
    first, other, again = load_pairs(written(ROWS))
    assert first.group == again.group != other.group
    named = [{**row, "cluster": cluster} for row, cluster in zip(ROWS, "aab", strict=True)]
    assert [p.group for p in load_pairs(written(named), {"group": "cluster"})] == ["a", "a", "b"]


def test_columns_are_renamed_and_the_optional_ones_have_defaults(written):
    path = written([{"question": "q", "good": "a", "bad": "b"}])
    (pair,) = load_pairs(path, {"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert (pair.id, pair.prompt, pair.chosen, pair.rejected, pair.subset) == ("0", "q", "a", "b", "all")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "rejected": "b"}, "there is no chosen response"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "there is no rejected response"),
        ({"prompt": "q", "chosen": " \n", "rejected": "b"}, "the chosen response is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": 3}, "the rejected response is int, not text"),
        ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "the chosen response is list, not text"),
        ({"chosen": "a", "rejected": "b"}, "the prompt is missing"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "the prompt is neither text nor messages"),
        ({"chosen": [*CHAT], "rejected": [*CHAT, answered("b")]}, "there is no chosen response"),
        (
            {"chosen": [*CHAT, answered("a")], "rejected": [CHAT[0], answered("b")]},
            "the chosen and the rejected conversation differ before their last turn",
        ),
    ],
)
def test_a_bad_row_is_named_and_the_rest_used(written, row, reason):
    found = read_pairs(written([ROWS[0], {**row, "id": "bad"}, ROWS[1]]))
    assert [pair.id for pair in found.items] == ["7", "8"]
    assert [(r.row, r.id, r.reason) for r in found.refused] == [(1, "bad", reason)]


def test_a_broken_line_is_a_bad_row(tmp_path, written):
    path = written(ROWS)
    with open(path, "a") as file:
        file.write('{"prompt": "cut of\n')
    found = read_pairs(path)
    assert len(found.items) == 3
    assert [(r.row, r.reason) for r in found.refused] == [(3, "there is no chosen response")]


def test_conversations_give_their_earlier_turns_as_the_prompt(written):
    whole = {"prompt": "?", "chosen": [*CHAT, answered("a")], "rejected": [*CHAT, answered("b")]}
    bare = {"prompt": CHAT, "chosen": [answered("a")], "rejected": [answered("b")]}
    listed = {"prompt": CHAT, "chosen": "a", "rejected": "b"}
    for row in (whole, bare, listed):
        (pair,) = load_pairs(written([row]))
        assert (pair.prompt, pair.chosen, pair.rejected) == (CHAT, "a", "b")


def test_lists_of_texts_are_choices(written):
    rows = [
        {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math", "id": "1"},
        {"prompt": "q", "chosen": ["a", "A"], "rejected": ["b"], "subset": "Ties", "id": "tied:1"},
        {"prompt": "q", "chosen": [], "rejected": ["b"], "subset": "Math", "id": "2"},
        {"prompt": "q", "chosen": ["a"], "rejected": ["b", " "], "subset": "Math", "id": "3"},
    ]
    path = written(rows)
    found = read_preferences(path)
    assert found == read_choices(path)
    assert [(c.id, c.chosen, c.rejected) for c in found.items] == [
        ("1", ("a",), ("b", "c", "d")),
        ("tied:1", ("a", "A"), ("b",)),
    ]
    assert [r.reason for r in found.refused] == [
        "there is no list of chosen responses",
        "the rejected response is empty",
    ]
    assert read_preferences(written(ROWS, "pairs.jsonl")) == read_pairs(written(ROWS, "pairs.jsonl"))


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (ROWS, {"chosen": "good"}, "has no column 'good' for 'chosen', it has prompt, chosen, rejected, subset, id"),
        ([{"prompt": "q", "chosen": "a"}], None, "has no column 'rejected'"),
        (ROWS, {"good": "chosen"}, "There is no column 'good' to rename"),
        ([], None, "holds no pair that can be used; give"),
        ([{"chosen": "", "rejected": "b"}], None, "can be used: row 0: the chosen response is empty; give"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(written, rows, columns, words):
    with pytest.raises(DataError) as caught:
        read_pairs(written(rows), columns)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.jsonl", None, "is no file; give an existing one"),
        ("rows.txt", b"x", "is none of .jsonl, .json, .parquet"),
        ("rows.json", b"{}", "holds dict, not a list of rows"),
        ("rows.json", b"[", "cannot be read as rows (JSONDecodeError"),
        ("rows.parquet", b"PAR0", "cannot be read as rows (ArrowInvalid"),
    ],
)
def test_a_file_that_holds_no_rows_is_one_sentence(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_pairs(str(tmp_path / name))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "split"), [(None, "filtered"), ("raw", "raw")])
def test_a_hub_id_is_asked_for_rewardbench_s_own_split(monkeypatch, given, split):
    from datasets import Dataset

    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: asked.append((a, k)) or Dataset.from_list(ROWS))
    assert len(load_pairs("allenai/reward-bench", split=given)) == 3
    assert asked == [(("allenai/reward-bench",), {"split": split})]


@pytest.mark.data
def test_llmbar_has_the_subsets_of_rewardbench(raw):
    rows = raw("llmbar_pairs.jsonl")
    found = read_pairs("llmbar")
    assert Counter(pair.subset for pair in found.items) == {
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    }
    assert [(p.chosen, p.rejected) for p in found.items] == [(r["chosen"], r["rejected"]) for r in rows]


@pytest.mark.data
def test_judgebench_follows_its_labels(raw):
    rows = {row["pair_id"]: row for row in raw("judgebench.jsonl.gz")}
    pairs = load_pairs("judgebench")
    assert len(pairs) == len(rows) == 620
    for pair in pairs:
        row = rows[pair.id]
        right, wrong = "AB" if row["label"] == "A>B" else "BA"
        assert (pair.chosen, pair.rejected) == (row[f"response_{right}"], row[f"response_{wrong}"])
    assert Counter(pair.subset for pair in pairs) == {"knowledge": 308, "reasoning": 149, "math": 90, "coding": 73}


@pytest.mark.data
def test_rmbench_is_all_nine_pairs_of_each_prompt(raw):
    rows = raw("rmbench_code.json.gz")
    pairs = load_pairs("rmbench")
    assert Counter(Counter(pair.group for pair in pairs).values()) == {9: len(rows)}
    for row, nine in zip(rows, zip(*[iter(pairs)] * 9, strict=True), strict=True):
        assert {(p.chosen, p.rejected) for p in nine} == {(c, r) for c in row["chosen"] for r in row["rejected"]}
        hard = {(p.chosen, p.rejected) for p in nine if p.subset == "code-hard"}
        (plain, detailed, fancy), wrong = row["chosen"], row["rejected"]
        assert hard == {(plain, wrong[1]), (plain, wrong[2]), (detailed, wrong[2])}
        assert fancy not in {chosen for chosen, _ in hard}


@pytest.mark.data
def test_gsm8k_solutions_pair_right_with_wrong(raw):
    verdicts = {}
    for row in raw("gsm8k_example_model_solutions.jsonl.gz"):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        verdicts[row["question"]] = [
            {s["solution"] for s in solutions if s["is_correct"] is right} for right in (True, False)
        ]
    pairs = load_pairs("gsm8k_solutions")
    assert len({pair.group for pair in pairs}) == 731 == sum(bool(a and b) for a, b in verdicts.values())
    assert all(p.chosen in verdicts[p.prompt][0] and p.rejected in verdicts[p.prompt][1] for p in pairs)
    assert len({pair.id for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_names_the_folder(monkeypatch, tmp_path, name):
    monkeypatch.setenv("STABLERANK_DATA", str(tmp_path))
    with pytest.raises(DataError, match="set STABLERANK_DATA to the folder with it"):
        load_pairs(name)
