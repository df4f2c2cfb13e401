"""Rows from files: every format, the recipe's settings, disjoint splits, and one sentence for each fault."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stablerank.errors import DataError
from stablerank.tasks.files import data_folder, load_rows, split_of
from stablerank.tasks.specs import FileSpec

ROWS = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1), "level": n % 3} for n in range(40)]
RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-gsm8k.yaml"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows):
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n"


WRITERS = {
    "rows.jsonl": lambda path: path.write_text(as_jsonl(ROWS)),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(as_jsonl(ROWS).encode())),
    "rows.csv": lambda path: path.write_text(as_csv(ROWS)),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "odd [name] v1.2.jsonl": lambda path: path.write_text(as_jsonl(ROWS)),
}


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text(as_jsonl(rows))
    return str(path)


def spec(path, **settings):
    return FileSpec(kind="file", path=str(path), **settings)


def sentence(call, *arguments):
    with pytest.raises(DataError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert ";" in text, "a remedy follows the fault"
    return text


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    rows = load_rows(str(tmp_path / name), {}, None)
    assert [{**row, "answer": str(row["answer"])} for row in rows] == ROWS


def test_columns_are_renamed_and_the_others_keep_their_names(tmp_path):
    path = write(tmp_path, [{"question": "Q", "solution": "S", "level": 2, "prompt": "not this one"}])
    rows = load_rows(path, {"prompt": "question", "answer": "solution"}, None)
    assert rows == [{"prompt": "Q", "answer": "S", "level": 2}]


def test_two_of_our_names_may_read_one_column(tmp_path):
    path = write(tmp_path, [{"text": "Q"}])
    assert load_rows(path, {"prompt": "text", "answer": "text"}, None) == [{"prompt": "Q", "answer": "Q"}]


def test_the_answer_is_the_first_group_of_its_pattern(tmp_path):
    gold = "He has 2*3=<<2*3=6>>6 apples.\n#### 1,206 "
    path = write(tmp_path, [{"prompt": "Q", "answer": gold}])
    assert load_rows(path, {}, "#### (.*)")[0]["answer"] == "1,206"
    assert "finds nothing in" in sentence(load_rows, path, {}, "Answer: (.*)")
    assert "finds nothing in" in sentence(load_rows, path, {}, "He(llo)?")
    assert "row 0" in sentence(load_rows, path, {}, "Answer: (.*)")


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({}, "P {x}"),
        ({"template": "Q: {prompt}\nA:"}, "Q: P {x}\nA:"),
        ({"chat": True}, [{"role": "user", "content": "P {x}"}]),
        (
            {"chat": True, "system": "Be brief.", "template": "{prompt} Think."},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "P {x} Think."}],
        ),
    ],
)
def test_prompts_are_dressed(tmp_path, settings, prompt):
    rows = [{"prompt": "P {x}"}]
    held_out = [{"prompt": f"other {n}"} for n in range(20)]
    test_path = write(tmp_path, held_out, "test.jsonl")
    dressed = spec(write(tmp_path, rows), test_path=test_path, **settings).train_rows()
    assert [row["prompt"] for row in dressed] == [prompt]


def by_split(file_spec):
    return {
        "train": file_spec.train_rows(),
        "validation": file_spec.held_out_rows("validation", 10_000),
        "test": file_spec.held_out_rows("test", 10_000),
    }


def prompts_of(rows):
    return [row["prompt"] for row in rows]


def test_one_file_is_split_by_prompt_and_no_row_is_lost(tmp_path):
    rows = [{"prompt": f"problem {n}"} for n in range(2000)]
    splits = by_split(spec(write(tmp_path, rows)))
    found = [prompt for split in splits.values() for prompt in prompts_of(split)]
    assert sorted(found) == sorted(prompts_of(rows))
    assert len(splits["train"]) / 2000 == pytest.approx(0.8, abs=0.03)
    assert len(splits["validation"]) / 2000 == pytest.approx(0.1, abs=0.03)


def test_the_split_of_a_prompt_survives_reordering_and_appending(tmp_path):
    rows = [{"prompt": f"problem {n}"} for n in range(300)]
    before = by_split(spec(write(tmp_path, rows, "a.jsonl")))
    more = [{"prompt": f"new {n}"} for n in range(100)]
    after = by_split(spec(write(tmp_path, [*reversed(rows), *more], "b.jsonl")))
    for split in before:
        kept = [prompt for prompt in prompts_of(after[split]) if prompt.startswith("problem")]
        assert sorted(kept) == sorted(prompts_of(before[split]))


def test_a_test_file_is_halved_and_its_prompts_leave_training(tmp_path):
    held_out = [{"prompt": f"held out {n}"} for n in range(200)]
    leaked = [{"prompt": f"train {n}"} for n in range(50)] + held_out[:20]
    splits = by_split(spec(write(tmp_path, leaked), test_path=write(tmp_path, held_out, "test.jsonl")))
    assert prompts_of(splits["train"]) == [f"train {n}" for n in range(50)]
    assert sorted(prompts_of(splits["validation"] + splits["test"])) == sorted(prompts_of(held_out))
    assert not set(prompts_of(splits["validation"])) & set(prompts_of(splits["test"]))
    assert min(len(splits["validation"]), len(splits["test"])) > 70


def test_a_prompt_given_twice_counts_once_and_the_first_wins(tmp_path):
    rows = [{"prompt": f"p{n % 100}", "answer": str(n)} for n in range(300)]
    splits = by_split(spec(write(tmp_path, rows)))
    answers = [row["answer"] for split in splits.values() for row in split]
    assert sorted(map(int, answers)) == list(range(100))


def test_limit_and_count_take_the_first_rows(tmp_path):
    path = write(tmp_path, ROWS * 10 + [{"prompt": f"more {n}"} for n in range(300)])
    assert spec(path, limit=7).train_rows() == spec(path).train_rows()[:7]
    assert spec(path).held_out_rows("test", 3) == spec(path).held_out_rows("test", 10_000)[:3]


@given(st.text(), st.sampled_from([None, True, False]))
def test_a_split_is_one_of_three(prompt, held_out):
    allowed = {None: {"train", "validation", "test"}, True: {"validation", "test"}, False: {"train"}}
    assert split_of(prompt, held_out) in allowed[held_out]


UNREADABLE = {
    "empty.jsonl": (b"", "holds no row"),
    "blank.jsonl": (b"\n\n", "holds no row"),
    "empty.json": (b"[]", "holds no row"),
    "heading.csv": (b"prompt,answer\n", "holds no row"),
    "empty.csv": (b"", "holds no row"),
    "broken.jsonl": (b'{"prompt": "a"\n', "JSON parse error"),
    "latin.jsonl": ('{"prompt": "é"}\n'.encode("latin-1"), "UnicodeDecodeError"),
    "cut.jsonl.gz": (gzip.compress(as_jsonl(ROWS).encode())[:-20], "cannot be read as data"),
    "text.parquet": (b"no parquet", "cannot be read as data"),
    "prompts.txt": (b"Q\n", "none of .jsonl, .json, .csv, .parquet"),
    "number.jsonl": (b'{"prompt": 5}\n', "row 0: the prompt is 5, not text"),
    "null.jsonl": (b'{"prompt": "a"}\n{"answer": "2"}\n', "row 1: the prompt is None, not text"),
    "white.jsonl": (b'{"prompt": "  "}\n', "row 0: the prompt is '  ', not text"),
    "other.jsonl": (b'{"question": "a"}\n', "no column 'prompt'"),
}


@pytest.mark.parametrize(("name", "content", "words"), [(n, c, w) for n, (c, w) in UNREADABLE.items()])
def test_a_file_that_cannot_be_used(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    text = sentence(load_rows, str(tmp_path / name), {}, None)
    assert words in text
    assert name in text


def test_a_table_with_columns_but_no_row(tmp_path):
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert "holds no row" in sentence(load_rows, str(tmp_path / "none.parquet"), {}, None)


def test_a_missing_column_is_named_with_those_there_and_the_way_out(tmp_path):
    path = write(tmp_path, [{"question": "Q", "gold": "1"}])
    text = sentence(load_rows, path, {"prompt": "question", "answer": "solution"}, None)
    assert "no column 'solution' for 'answer', it has question, gold" in text
    assert "data.columns.answer=COLUMN" in text
    assert "no column 'answer'" in sentence(load_rows, path, {"prompt": "question"}, "(.*)")


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    assert "is no file" in sentence(load_rows, str(tmp_path / "absent.jsonl"), {}, None)
    assert "is no file" in sentence(load_rows, str(tmp_path), {}, None)
    assert "is no file" in sentence(load_rows, "absent.jsonl", {}, None)
    monkeypatch.setenv("STABLERANK_DATA", str(tmp_path))
    text = sentence(load_rows, "data:absent.jsonl", {}, None)
    assert str(tmp_path) in text
    assert "STABLERANK_DATA" in text


def test_data_scheme_reads_from_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLERANK_DATA", str(tmp_path))
    write(tmp_path, ROWS)
    assert load_rows("data:rows.jsonl", {}, None) == ROWS


def test_too_few_rows_for_a_split_is_a_sentence(tmp_path):
    path = write(tmp_path, [{"prompt": "only"}])
    empty = [split for split in ("validation", "test") if split_of("only", None) != split]
    assert "data.test_path" in sentence(spec(path).held_out_rows, empty[0], 5)
    held_out = write(tmp_path, [{"prompt": "only"}], "test.jsonl")
    assert "leaves no training row" in sentence(spec(path, test_path=held_out).train_rows)


@pytest.fixture(scope="module")
def gsm8k():
    """GSM8K of the real data folder, as our recipe reads it."""
    folder = Path(os.environ.get("STABLERANK_DATA", RECIPE.parents[2] / "shared" / "data"))
    if not (folder / "gsm8k_train.jsonl.gz").is_file():
        pytest.skip(f"no GSM8K in {folder}: set STABLERANK_DATA to the folder of real data")
    settings = {**yaml.safe_load(RECIPE.read_text())["data"], "limit": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STABLERANK_DATA", str(folder))
        assert data_folder() == folder
        yield by_split(FileSpec(**settings))


@pytest.mark.data
def test_gsm8k_loads_with_the_settings_of_our_recipe(gsm8k):
    sizes = {split: len(rows) for split, rows in gsm8k.items()}
    # 7,473 and 1,319 published rows; both files are free of repeated questions and share none.
    assert sizes["train"] == 7473
    assert sizes["validation"] + sizes["test"] == 1319
    assert min(sizes.values()) > 600
    system, user = gsm8k["test"][0]["prompt"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "boxed" in system["content"]


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_gsm8k_gold_answers_are_numbers_to_math_verify(gsm8k, split):
    from math_verify import parse, verify

    rows = gsm8k[split]
    for row in rows[:: len(rows) // 50][:50]:
        gold = parse(row["answer"])
        assert gold, row["answer"]
        number = row["answer"].replace(",", "")
        assert verify(gold, parse(f"The answer is \\boxed{{{number}}}."))
        assert not verify(gold, parse(f"\\boxed{{{number}1}}"))
