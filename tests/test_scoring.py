"""`stablerank.score`: every response has its row, any batch and any interruption give the same, and the summary."""

import csv
import itertools
import json
import math
import os
import shutil
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from stablerank.errors import DataError, RunFolderError
from stablerank.rewards.scorers.answers import Answer, joined
from stablerank.rewards.scorers.model_pass import BOUNDS
from stablerank.rewards.scorers.specs import build_scorers
from stablerank.scoring import QUANTILES, score
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
SPECTRAL = ("stable_rank", "stable_rank:scope=response", "effective_rank")
SCORERS = (*SPECTRAL, "mean_logprob", "shorter")
ROWS = [
    {"prompt": f"{a}+{b}=?\n", "response": f"{a}+{b}=" * (1 + a * b % 7) + str(a + b), "id": f"{a}/{b}"}
    for a in range(12)
    for b in range(13)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(path, scorers=SCORERS, **settings):
    return score(path, scorers, STUDENT, template="bare", **settings)


def values(found, name):
    return found.table[name].to_numpy()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An unbroken run with a folder."""
    return run(data, out=tmp_path_factory.mktemp("whole") / "out")


def test_each_row_has_the_score_of_its_answer_alone(whole):
    assert whole.table.column_names == ["row", "place", "id", *SCORERS, "tokens", "status"]
    assert whole.table["row"].to_pylist() == list(range(len(ROWS)))
    assert whole.table["id"].to_pylist() == [row["id"] for row in ROWS]
    scorers = build_scorers(SCORERS, STUDENT, template="bare")
    for number in (0, 17, 90, len(ROWS) - 1):
        row = whole.table.slice(number, 1).to_pylist()[0]
        answer = Answer(ROWS[number]["prompt"], ROWS[number]["response"])
        alone = joined([scorer.score([answer]) for scorer in scorers])
        assert (row["tokens"], row["status"]) == (alone.tokens_N[0], "scored")
        for name in SCORERS:
            assert row[name] == pytest.approx(alone.column(name)[0], rel=BOUNDS["float32"])


def test_the_size_of_a_batch_moves_a_score_by_less_than_the_bound(whole, tmp_path):
    few = write(tmp_path / "few.jsonl", ROWS[:40])
    for batch_tokens in (1, 100, 10_000):  # an answer at a time, some that are padded, all
        found = run(few, batch_tokens=batch_tokens)
        for name in SCORERS:
            moved = np.abs(values(found, name) / values(whole, name)[:40] - 1)
            assert moved.max() < BOUNDS["float32"]


class Stop(Exception):
    pass


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_interrupted_anywhere_ends_with_the_bits_of_an_unbroken_run(data, whole, tmp_path):
    out = tmp_path / "out"
    for chunks in (1, 2):
        told = []

        def progress(done, total, what, told=told, chunks=chunks):
            told.append(done)
            if len(told) == chunks:
                raise Stop

        with pytest.raises(Stop):
            run(data, out=out, progress=progress)
        assert len(list((out / "chunks").iterdir())) == chunks
    before = told[-1]
    found = run(data, out=out)
    assert 0 < before < len(ROWS)
    assert found.throughput.answers == len(ROWS) - before
    assert found.table.equals(whole.table)
    assert contents(out) == contents(whole.folder)
    assert sorted(contents(out)) == ["evaluation.json", "scores/all.parquet"]


def test_a_whole_folder_is_read_and_not_scored_again(data, whole):
    before = contents(whole.folder)
    again = run(data, out=whole.folder, progress=lambda *news: pytest.fail("scored again"))
    assert again.table.equals(whole.table)
    assert again.results() == whole.results()
    assert again.throughput.answers == 0
    assert contents(whole.folder) == before


def test_without_a_folder_nothing_is_written(data, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(data).table.equals(whole.table)
    assert list(tmp_path.iterdir()) == []


def test_throughput_is_told_as_it_goes_and_at_the_end(data):
    news = []
    found = run(data, progress=lambda *told: news.append(told))
    done, totals, rates = zip(*news, strict=True)
    assert list(done) == sorted(set(done)) and done[-1] == len(ROWS)
    assert set(totals) == {len(ROWS)}
    assert all("answers/s, " in rate and rate.endswith(" tokens/s") for rate in rates)
    assert found.throughput.answers == len(ROWS)
    assert found.throughput.tokens == sum(found.table["tokens"].to_pylist())
    assert (
        rates[-1]
        == str(found.throughput)
        == (
            f"{found.throughput.answers / found.throughput.seconds:,.1f} answers/s, "
            f"{found.throughput.tokens / found.throughput.seconds:,.0f} tokens/s"
        )
    )


def test_every_format_holds_the_same_rows(tmp_path):
    rows = ROWS[:6]
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    first, *others = (run(tmp_path / f"rows.{suffix}").table for suffix in ("jsonl", "json", "parquet", "csv"))
    assert first["status"].to_pylist() == ["scored"] * 6
    assert all(other.equals(first) for other in others)


def test_numbers_in_csv_are_text(tmp_path):
    (tmp_path / "rows.csv").write_text("question,reply\n1+1=?,2\n2+2=?,\n")
    found = score(tmp_path / "rows.csv", ["longer"], prompt_column="question", response_column="reply")
    assert found.table["status"].to_pylist() == ["scored", "empty"]
    assert values(found, "longer")[0] == 1


def test_rows_of_the_data_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("STABLERANK_DATA", str(tmp_path / "here"))
    write(tmp_path / "here" / "rows.jsonl", ROWS[:2])
    (tmp_path / "here" / "rows.csv").write_text("prompt,response\na,b\n")
    assert len(score("data:rows.jsonl", ["random"]).table) == 2
    assert len(score("data:rows.csv", ["random"]).table) == 1


def test_a_prompt_of_messages_is_that_of_its_text(tmp_path):
    """A text template puts a blank line between contents, so one user message is the text itself."""
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS[:5]]
    pq.write_table(pa.Table.from_pylist(chat), tmp_path / "chat.parquet")
    text = run(write(tmp_path / "text.jsonl", ROWS[:5]))
    for path in (write(tmp_path / "chat.jsonl", chat), tmp_path / "chat.parquet"):
        for name in SPECTRAL:
            assert values(run(path), name).tolist() == values(text, name).tolist()


def test_what_cannot_be_scored_is_counted_and_named_and_the_rest_scored(tmp_path):
    rows = [
        {"prompt": "1+1=?\n", "response": ["2", None, "  ", 7]},
        {"prompt": "1+2=?\n"},
        {"prompt": "1+3=?\n", "response": "4", "id": 3},
        {"prompt": None, "response": "5"},
        {"prompt": "9+9+" * 40, "response": "18"},
        *({"prompt": "1+2=?\n", "response": ""} for _ in range(6)),
    ]
    found = run(write(tmp_path / "rows.jsonl", rows), window=64)
    assert [(row["row"], row["place"], row["status"]) for row in found.table.to_pylist()] == [
        *((0, 0, "scored"), (0, 1, "missing"), (0, 2, "empty"), (0, 3, "not_text")),
        *((1, 0, "missing"), (2, 0, "scored"), (3, 0, "not_text"), (4, 0, "outside_window")),
        *((row, 0, "empty") for row in range(5, 11)),
    ]
    assert found.table["id"].to_pylist()[5] == "3"
    has_tokens = [status in ("scored", "outside_window") for status in found.table["status"].to_pylist()]
    assert [tokens > 0 for tokens in found.table["tokens"].to_pylist()] == has_tokens
    assert [(each.status, each.answers, each.rows, each.first_rows) for each in found.unscored] == [
        ("empty", 7, 7, (0, 5, 6, 7, 8)),
        ("missing", 2, 2, (0, 1)),
        ("not_text", 2, 2, (0, 3)),
        ("outside_window", 1, 1, (4,)),
    ]
    is_scored = [status == "scored" for status in found.table["status"].to_pylist()]
    assert np.isfinite(values(found, "stable_rank")).tolist() == is_scored
    alone = run(write(tmp_path / "good.jsonl", [rows[2]]), window=64)
    assert values(found, "stable_rank")[5] == pytest.approx(values(alone, "stable_rank")[0], rel=BOUNDS["float32"])
    # Length reads no window.
    assert {each.name: each.answers for each in found.scores} == {name: 2 + (name == "shorter") for name in SCORERS}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
CELLS = st.one_of(TEXTS, st.none(), st.integers(0, 9), st.lists(st.one_of(TEXTS, st.none()), max_size=3))


@settings(deadline=None, max_examples=60)
@given(cells=st.lists(CELLS, min_size=1, max_size=8))
def test_every_response_has_one_row_in_order(cells, tmp_path_factory):
    rows = [{"prompt": "p", "response": cell} for cell in [*cells, "known"]]
    found = score(write(tmp_path_factory.mktemp("cells") / "rows.jsonl", rows), ["longer"])
    wanted = []
    for number, cell in enumerate([*cells, "known"]):
        responses = cell if isinstance(cell, list) and cell else [None if cell == [] else cell]
        for place, response in enumerate(responses):
            is_text = isinstance(response, str) and response.strip()
            wanted.append((number, place, float(len(response)) if is_text else None))
    table = found.table.to_pylist()
    assert [(row["row"], row["place"], None if math.isnan(row["longer"]) else row["longer"]) for row in table] == wanted
    assert sum(each.answers for each in found.unscored) + found.scores[0].answers == len(table)


def test_the_summary_against_brute_force(whole):
    for each in whole.scores:
        found = values(whole, each.name).tolist()
        assert each.answers == len(ROWS)
        assert each.mean == pytest.approx(statistics.fmean(found))
        twentieths = statistics.quantiles(found, n=20, method="inclusive")
        assert each.quantiles == pytest.approx([twentieths[round(20 * share) - 1] for share in QUANTILES])
        pairs = list(itertools.combinations(found, 2))
        assert each.ties == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
        expected = spearmanr(found, np.log(whole.table["tokens"].to_numpy())).statistic
        assert each.length_correlation == pytest.approx(expected)
    by_name = {each.name: each for each in whole.scores}
    assert by_name["shorter"].length_correlation == pytest.approx(-1)
    assert by_name["shorter"].ties > 0.01


def test_what_a_summary_cannot_say_is_nan(tmp_path):
    found = score(write(tmp_path / "one.jsonl", ROWS[:1]), ["longer"], out=tmp_path / "out")
    (each,) = found.scores
    assert (each.answers, each.mean) == (1, len(ROWS[0]["response"]))
    assert math.isnan(each.ties) and math.isnan(each.length_correlation)
    far = write(tmp_path / "far.jsonl", [{"prompt": "9+9+" * 40, "response": "18"}])
    (each,) = run(far, ["stable_rank"], window=64).scores
    assert each.answers == 0 and math.isnan(each.mean) and all(map(math.isnan, each.quantiles))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_tokens": 99}, "batch_tokens=4096, not 99"),
        ({"window": 99}, "window=512, not 99"),
        ({"scorers": ("random",)}, "scorers="),
        ({"prompt_column": "id"}, "columns="),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(data, whole, change, words):
    before = contents(whole.folder)
    with pytest.raises(RunFolderError, match=words):
        run(data, **{"out": whole.folder, **change})
    assert contents(whole.folder) == before


def test_other_rows_or_another_model_under_the_same_name_are_refused(tmp_path):
    copy = Path(shutil.copytree(resolve(STUDENT), tmp_path / "model"))
    path = write(tmp_path / "rows.jsonl", ROWS[:3])

    def again():
        return score(path, ["stable_rank"], str(copy), template="bare", out=tmp_path / "out")

    again()
    write(path, ROWS[:4])
    with pytest.raises(RunFolderError, match="content="):
        again()
    write(path, ROWS[:3])
    again()
    os.utime(copy / "model.safetensors")
    with pytest.raises(RunFolderError, match="files="):
        again()


def test_damaged_scores_are_named(data, tmp_path):
    score(data, ["random"], out=tmp_path / "out")
    (tmp_path / "out" / "scores" / "all.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunFolderError, match="is damaged; delete"):
        score(data, ["random"], out=tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no row"),
        ('{"prompt": "a", "response": null}\n{"prompt": "a", "response": 3}\n', "1 missing, 1 not_text"),
        ('{"prompt": "a", "reply": "b"}\n', "no column 'response', it has prompt, reply"),
    ],
)
def test_a_file_without_an_answer_is_refused(tmp_path, text, words):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        score(tmp_path / "rows.jsonl", ["random"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
