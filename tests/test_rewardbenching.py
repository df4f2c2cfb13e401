"""`rewardbench` from rows to numbers, with real scorers."""

import json
from pathlib import Path

import numpy as np
import pytest

from stablerank.errors import DataError, RecipeError, RunFolderError
from stablerank.rewardbenching import rewardbench
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.specs import build_scorers
from stablerank.tasks.files import data_folder
from stablerank.tasks.preferences import load_pairs, spread

WORKED = json.loads((Path(__file__).parent / "evaluation" / "pairs" / "rewardbench_v1.json").read_text())
WORDS = ["a", "few", "words", "that", "make", "up", "answers", "of", "different", "lengths", "to", "tell", "apart"]


def rows(subset="llmbar-natural", count=60):
    """The chosen response is shorter in two of three."""
    for n in range(count):
        brief, wordy = " ".join(WORDS[: 2 + n % 4]) + f" {n}", " ".join(WORDS[: 7 + n % 7]) + f" {n}"
        chosen, rejected = (wordy, brief) if n % 3 == 0 else (brief, wordy)
        yield {"prompt": f"question {n % 40}", "chosen": chosen, "rejected": rejected, "subset": subset, "id": n}


@pytest.fixture
def written(tmp_path):
    def write(found, name="pairs.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in found))
        return str(tmp_path / name)

    return write


def test_controls_alone_need_no_model(written):
    one = rewardbench(written(rows())).sets[0]
    found = {row.scorer: row for row in one.rows}
    assert list(found) == ["shorter", "longer", "random"]
    assert found["shorter"].agreement.accuracy.value == pytest.approx(2 / 3)
    assert found["longer"].agreement.accuracy.value == pytest.approx(1 / 3)
    assert found["shorter"].matched.accuracy.value == found["longer"].matched.accuracy.value == 0.5
    assert found["shorter"].agreement.accuracy.problems == 40
    assert one.v1["shorter"].sections["Chat Hard"].value == pytest.approx(2 / 3)
    assert not one.v1["shorter"].complete


def test_bad_rows_and_unknown_subsets_are_counted_and_named_the_rest_scored(written):
    bad = [{"prompt": "q", "chosen": None, "rejected": "b", "id": "x"}, {"prompt": "q", "chosen": "", "rejected": "b"}]
    one = rewardbench(written([*bad, *rows(), *rows("mine", 9)]), ["shorter"]).sets[0]
    assert [(r.row, r.id) for r in one.refused] == [(0, "x"), (1, "1")]
    assert one.unknown == {"mine": 9}
    assert [part.name for part in one.parts] == ["all", "llmbar-natural", "mine"]
    assert one.v1["shorter"].micro.value == pytest.approx(2 / 3)


def test_several_sets_at_once_are_what_each_is_alone(written):
    first, second = written(rows(), "a.jsonl"), written(rows("mine", 30), "b.jsonl")
    both = rewardbench([first, second], ["shorter", "random:seed=3"])
    assert both.sets == (
        *rewardbench(first, ["shorter", "random:seed=3"]).sets,
        *rewardbench(second, ["shorter", "random:seed=3"]).sets,
    )
    assert both.sets[1].v1 is None


def test_choices_are_scored_by_the_rule_of_rewardbench_2(written):
    choices = [
        {
            "prompt": f"q{n}",
            "chosen": ["x" * (1 + n % 2 * 9)],
            "rejected": ["xx", "xxx", "xxxx"],
            "subset": "Math",
            "id": n,
        }
        for n in range(20)
    ]
    one = rewardbench(written(choices), ["longer"]).sets[0]
    assert one.v2["longer"].subsets["Math"].value == 0.5
    assert (one.rows, one.v1) == ((), None)
    with pytest.raises(DataError, match="the chosen response is list, not text"):
        rewardbench(written(choices), ["longer"], version="v1")


def test_a_tie_can_lose(written):
    same = [{"prompt": f"q{n}", "chosen": "ab", "rejected": "ba", "subset": "math-prm"} for n in range(12)]
    half, lost = (rewardbench(written(same), ["shorter"], ties=ties).sets[0] for ties in ("half", "lose"))
    assert (half.rows[0].agreement.accuracy.value, lost.rows[0].agreement.accuracy.value) == (0.5, 0)
    assert half.rows[0].agreement.tie_rate == lost.rows[0].agreement.tie_rate == 1
    assert lost.v1["shorter"].categories["Math"].value == 0


def faithful_rows():
    """All of RewardBench by its counts; the chosen response is the longer one in the first ``right`` of a subset."""
    for subset in WORKED["subsets"]:
        for n in range(subset["pairs"]):
            texts = ("longer", "short") if n < subset["right"] else ("short", "longer")
            yield {**dict(zip(("chosen", "rejected"), texts, strict=True)), "prompt": f"{subset['subset']} {n}"} | {
                "subset": subset["subset"]
            }


def test_an_official_result_is_reproduced_from_local_files(written, tmp_path):
    """The same accuracies by way of pairs, and by way of the file that the official code would write of them."""
    accuracies = {subset["subset"]: subset["right"] / subset["pairs"] for subset in WORKED["subsets"]}
    (tmp_path / "result.json").write_text(json.dumps({"model": "org/longer", "model_type": "Custom", **accuracies}))
    found = rewardbench(written(faithful_rows()), ["longer"], published=str(tmp_path / "result.json"), ties="lose")
    one = found.sets[0].published
    assert (one.model, one.partial) == ("org/longer", ())
    assert {row.number: (row.average, row.inside) for row in one.rows} == {
        "Chat": ("pairs alike", True),
        "Chat Hard": ("pairs alike", True),
        "Safety": ("official weights", True),
        "Reasoning": ("official weights", True),
        "overall": ("official", True),
        "Code": ("pairs alike", True),
        "Math": ("pairs alike", True),
    }
    assert [row.differences[row.average] for row in one.rows] == pytest.approx([0] * 7)
    assert found.results()["sets"][0]["published"]["rows"][0]["number"] == "Chat"


def test_published_numbers_need_pairs_of_rewardbench_and_a_right_name(written, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"results": [{"model": "m", "scores": {"overall": 0.5}}]}))
    with pytest.raises(DataError, match="no pair here is of its subsets"):
        rewardbench(written(rows("mine")), ["shorter"], published=str(tmp_path / "p.json"))
    partly = rewardbench(written(rows()), ["shorter"], published=str(tmp_path / "p.json")).sets[0].published
    assert (partly.rows, partly.partial) == ((), ("overall",))
    with pytest.raises(RecipeError, match="none of 'no model'"):
        rewardbench(written(rows()), ["shorter"], published="sr-grpo")


@pytest.mark.data
def test_the_scores_are_those_of_the_scorer(tmp_path):
    """A real model, and what its scorer says of each answer by itself."""
    place = str(data_folder() / "stories260K")
    if not (data_folder() / "stories260K").is_dir():
        pytest.skip(f"no stories260K in {data_folder()}: set STABLERANK_DATA to the folder of real data")
    name, out = "stable_rank:scope=response", tmp_path / "out"
    told = []

    def asked():
        return rewardbench(
            "llmbar",
            [name, "shorter"],
            model=place,
            template="plain",
            limit=12,
            out=out,
            progress=lambda done, total, what: told.append((done, total, what)),
        )

    first = asked()
    (scorer,) = build_scorers([name], place, template="plain")
    margins = []
    for pair in spread(load_pairs("llmbar"), 12):
        one, other = (
            scorer.score([Answer(pair.prompt, text)]).values_NS[0, 0] for text in (pair.chosen, pair.rejected)
        )
        if not np.isnan(one - other):
            margins.append(one - other)
    row = first.sets[0].rows[0]
    assert row.agreement.accuracy.value == pytest.approx(np.mean(np.array(margins) > 0))
    assert (row.agreement.pairs, row.agreement.undefined) == (len(margins), 12 - len(margins))
    assert len(margins) >= 6
    assert first.meta["length"] == "tokens"
    assert {what for _, _, what in told} == {"scoring llmbar", "comparing llmbar"}
    kept = json.loads((out / "evaluation.json").read_text())
    assert kept["complete"] and kept["sets"] == first.results()["sets"]
    assert "limit" in kept["settings"] and json.dumps(first.results(), allow_nan=False)
    assert asked().results() == first.results()
    with pytest.raises(RunFolderError, match="holds an evaluation with"):
        rewardbench("llmbar", ["shorter"], limit=12, out=out)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((["a.jsonl", "a.jsonl"],), RecipeError, "name each set once"),
        (([],), RecipeError, "name each set once"),
        (("gone.jsonl",), DataError, "is no file"),
        (("pairs.jsonl", ["tallest"]), RecipeError, "there is no scorer 'tallest'"),
        (("pairs.jsonl", ["stable_rank"]), RecipeError, "names? a model|none is named"),
    ],
)
def test_bad_input_is_one_sentence(written, monkeypatch, tmp_path, arguments, error, words):
    written(rows())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        rewardbench(*arguments)


def test_a_limit_below_one_is_refused(written):
    with pytest.raises(DataError, match="limit is 0"):
        rewardbench(written(rows()), limit=0)
