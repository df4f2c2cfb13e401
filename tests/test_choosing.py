"""`best_of_n`: pools of every kind, resumed, compared, and left alone where there is no headroom."""

import json

import numpy as np
import pytest

from stablerank.choosing import Draw, Reading, best_of_n
from stablerank.errors import DataError, RecipeError, RunFolderError, StablerankError
from stablerank.evaluation.bestofn.comparing import LEAST_GAP
from stablerank.evaluation.bestofn.estimator import expected_picks
from stablerank.evaluation.bestofn.pools import Pool, Problem
from stablerank.runs.tables import ShardedTable

STUDENT = "zoo:arith-student"
DRAW = Draw(STUDENT, samples=4, problems=12, max_new_tokens=32)
BARE = Reading(template="bare")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """Twelve problems, four answers each, scored by the student itself."""
    out = tmp_path_factory.mktemp("bestofn") / "out"
    scorers = ("stable_rank", "mean_logprob", "shorter")
    return best_of_n("arithmetic", scorers, reading=BARE, draw=DRAW, n=(1, 4), out=out)


def line(found, chooser, n):
    (one,) = (one for one in found.lines if (one.chooser, one.n) == (chooser, n))
    return one


def plain(found):
    """Everything but the seconds."""
    results = found.results()
    return json.dumps({**results, "costs": [{**one, "seconds": 0} for one in results["costs"]]})


def test_the_numbers_follow_from_the_stored_answers_and_scores(sampled):
    answers = ShardedTable(sampled.folder / "pool" / "model" / "sampled").rows()
    scores = {row["problem"]: row for row in ShardedTable(sampled.folder / "scores").rows()}
    picked = []
    for row in answers:
        stored = scores[row["problem"]]
        ranks = stored["scores"][stored["names"].index("stable_rank")]
        picked.append(expected_picks(ranks, np.array(row["rewards"]) >= 1)[3])
    assert line(sampled, "stable_rank", 4).accuracy.value == pytest.approx(np.mean(picked))
    assert line(sampled, "random", 4).accuracy.value == pytest.approx(np.mean([row["rewards"] for row in answers]))
    greedy = ShardedTable(sampled.folder / "pool" / "model" / "greedy").rows()
    assert line(sampled, "greedy", 4).accuracy.value == pytest.approx(np.mean([row["rewards"] for row in greedy]))


def test_what_is_told_beside_the_numbers(sampled):
    meta = sampled.meta
    assert (meta["problems"], meta["answers"], meta["n"], meta["length_unit"]) == (12, 48, [1, 4], "tokens")
    assert meta["model"] == STUDENT, "by default the model that answers"
    assert [cost.scores for cost in sampled.costs] == ["stable_rank; mean_logprob", "shorter"]
    assert all(cost.seconds > 0 and cost.tokens > 0 for cost in sampled.costs)
    assert sampled.gap.has_headroom and sampled.verdict.startswith("headroom: ")
    assert (sampled.folder / "report.html").is_file()


def test_the_same_call_reads_what_is_there(sampled):
    """Another N too: what is stored does not depend on it."""
    call = {"reading": BARE, "draw": DRAW, "out": sampled.folder}
    again = best_of_n("arithmetic", ("stable_rank", "mean_logprob", "shorter"), n=(1, 4), **call)
    assert plain(again) == plain(sampled)
    assert [cost.seconds for cost in again.costs] == [cost.seconds for cost in sampled.costs], "not timed again"
    pairs = best_of_n("arithmetic", ("stable_rank", "mean_logprob", "shorter"), n=(2,), **call)
    assert line(pairs, "random", 2).accuracy == line(sampled, "random", 4).accuracy


def test_interrupted_it_ends_the_same(sampled, tmp_path):
    def stop(done, total, what):
        if what == "scoring":
            raise KeyboardInterrupt

    call = {"reading": BARE, "draw": DRAW, "n": (1, 4), "out": tmp_path / "out"}
    names = ("stable_rank", "mean_logprob", "shorter")
    with pytest.raises(KeyboardInterrupt):
        best_of_n("arithmetic", names, progress=stop, **call)
    found = best_of_n("arithmetic", names, **call)
    assert plain(found) == plain(sampled)


def test_other_settings_are_refused(sampled):
    with pytest.raises(RunFolderError, match="scorers="):
        best_of_n("arithmetic", ("shorter",), reading=BARE, draw=DRAW, n=(1, 4), out=sampled.folder)


def test_an_evaluation_is_a_pool(sampled, tmp_path):
    found = best_of_n(sampled.folder / "pool", ("longer",), n=(4,))
    assert line(found, "random", 4).accuracy == line(sampled, "random", 4).accuracy
    assert line(found, "oracle", 4).accuracy == line(sampled, "oracle", 4).accuracy
    (tmp_path / "evaluation.json").write_text(json.dumps({"settings": {"model": "m"}, "complete": False}))
    with pytest.raises(DataError, match="no finished evaluation"):
        best_of_n(tmp_path, ("longer",))
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be read as an evaluation"):
        best_of_n(tmp_path, ("longer",))


def pool_of(*rights):
    texts = tuple("x" * (at + 1) for at in range(4))
    return Pool("own", tuple(Problem(str(at), texts, right, ("",) * 4) for at, right in enumerate(rights)))


def test_without_headroom_nothing_is_scored(tmp_path):
    pool = pool_of(*[(1.0,) * 4] * 30, (0.0, 0.0, 0.0, 1.0))
    found = best_of_n(pool, ("shorter",), out=tmp_path / "out")
    assert 0 < found.gap.gain.value < LEAST_GAP
    assert found.verdict.startswith("no headroom: ")
    assert {one.kind for one in found.lines} == {"control"}
    assert not any(one.over for one in found.lines) and found.costs == ()
    assert not (tmp_path / "out" / "scores").exists()
    assert "No headroom" in (tmp_path / "out" / "report.html").read_text()


def test_a_pool_of_ones_own_with_problems_left_out():
    pool = pool_of((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, float("nan")), (0.0, 0.0, 0.0, 1.0))
    found = best_of_n(pool, ("longer",))
    assert (found.meta["problems"], sum(found.meta["left_out"].values())) == (2, 1)
    assert line(found, "longer", 4).accuracy.value == 0.5
    assert best_of_n(pool, ("longer",), problems=1).meta["problems"] == 1


@pytest.mark.parametrize(
    ("pool", "settings", "words"),
    [
        ("absent.jsonl", {}, "absent.jsonl is no file"),
        (pool_of((1.0, 0.0, 0.0, 0.0)), {"n": (0, 4)}, "N is 0"),
        (pool_of((1.0, 0.0, 0.0, 0.0)), {"n": ()}, "N is missing"),
        (pool_of((1.0, 0.0, 0.0, 0.0)), {"n": (5,)}, "no problem to choose from with N = 5"),
        (pool_of((1.0, 0.0, 0.0, 0.0)), {"scorers": ()}, "no scorer"),
        (pool_of((1.0, 0.0, 0.0, 0.0)), {"scorers": ("taste",)}, "no scorer 'taste'"),
        (pool_of((1.0, 0.0, 0.0, 0.0)), {"draw": DRAW}, "nothing to sample"),
        ("algebra", {"draw": DRAW}, "no task 'algebra'"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, pool, settings, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StablerankError, match=words):
        best_of_n(pool, **{"scorers": ("shorter",), **settings})


def test_a_scorer_that_needs_a_model_says_so():
    with pytest.raises(RecipeError, match="model"):
        best_of_n(pool_of((1.0, 0.0, 0.0, 0.0)), ("stable_rank",))
