"""`stablerank.evaluate` as a library user calls it: the numbers, a kill in the middle, another model beside."""

import json
import os
import signal
import subprocess
import sys
from itertools import combinations
from statistics import fmean

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from stablerank.errors import DataError, RecipeError, RunFolderError
from stablerank.evaluating import evaluate, headroom
from stablerank.training.recipe import parse_recipe
from stablerank.zoo.resolve import resolve

STUDENT, TEACHER = "zoo:arith-student", "zoo:arith-teacher"
SMALL = {"problems": 6, "k": (1, 3), "samples": 4, "max_new_tokens": 40, "batch_size": 8}


def answers(out, which="model", decoding="sampled"):
    return pq.read_table(out / which / decoding / "all.parquet").to_pylist()


def measured(found):
    return {(measure.decoding, measure.name): measure for measure in found.measures}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluation that nothing disturbed, and its folder."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return evaluate(STUDENT, out=out, **SMALL), out


def test_the_numbers_are_those_of_the_answers(whole):
    found, out = whole
    rows = answers(out)
    assert [row["problem"] for row in sorted(rows, key=lambda row: row["problem"])] == list(range(6))
    for row in rows:
        right = [text.strip().endswith(f"\\boxed{{{row['answer']}}}") for text in row["completions"]]
        assert row["rewards"] == [float(value) for value in right]
    lines = measured(found)
    for k in (1, 3):
        exact = fmean(fmean(any(chosen) for chosen in combinations(row["rewards"], k)) for row in rows)
        assert lines["sampled", f"pass@{k}"].value.value == pytest.approx(exact)
    assert lines["sampled", "tokens"].value.value == pytest.approx(fmean(fmean(row["tokens"]) for row in rows))
    assert lines["sampled", "truncated"].value.value == pytest.approx(fmean(fmean(r["truncated"]) for r in rows))
    greedy = answers(out, decoding="greedy")
    assert lines["greedy", "pass@1"].value.value == fmean(row["rewards"][0] for row in greedy)
    assert lines["greedy", "pass@1"].value.problems == 6
    assert ("greedy", "parse failures") in lines
    assert json.loads((out / "evaluation.json").read_text())["measures"] == json.loads(
        json.dumps(found.results()["measures"])
    )


KILLED = """
import os, signal, sys
from stablerank.evaluating import evaluate

def progress(done, total, model):
    if done >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

evaluate("zoo:arith-student", out=sys.argv[1], progress=progress, **eval(sys.argv[3]))
"""


def test_killed_and_started_again_ends_with_the_bits_of_an_unbroken_one(whole, tmp_path):
    out, news = tmp_path / "out", []
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(out),
        "22",
        repr(SMALL),
    ]  # 6 greedy answers, then 16 of 24 sampled ones
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (out / "model" / "sampled" / "all.parquet").exists()
    assert len(list((out / "model" / "sampled").glob("step-*"))) == 2
    found = evaluate(STUDENT, out=out, progress=lambda *told: news.append(told), **SMALL)
    assert news == [(30, 30, STUDENT)], "only what was missing"
    assert found.results() == whole[0].results()
    for name in ("evaluation.json", "model/greedy/all.parquet", "model/sampled/all.parquet"):
        assert (out / name).read_bytes() == (whole[1] / name).read_bytes()


def test_a_finished_one_is_read_with_other_tries(whole):
    found = evaluate(STUDENT, out=whole[1], **{**SMALL, "k": (2, 4)}, progress=lambda *told: pytest.fail("asked"))
    assert found.meta["k"] == [1, 2, 4]
    assert measured(found)["sampled", "pass@1"] == measured(whole[0])["sampled", "pass@1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.5}, "temperature=1.0, not 0.5"),
        ({"problems": 5}, "problems=6, not 5"),
        ({"seed": 1}, "seed=0"),
    ],
)
def test_other_settings_are_refused(whole, change, words):
    with pytest.raises(RunFolderError, match=words):
        evaluate(STUDENT, out=whole[1], **{**SMALL, **change})


def test_against_itself_there_is_no_difference(whole, tmp_path):
    """As an untrained adapter, which is the same policy from another folder."""
    base = AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["o_proj"])).save_pretrained(tmp_path / "lora")
    found = evaluate(STUDENT, against=tmp_path / "lora", **SMALL)
    assert {measure.difference.value for measure in found.measures} == {0.0}
    assert [m.value for m in found.measures] == [m.value for m in whole[0].measures]
    assert [m.against for m in found.measures] == [m.value for m in whole[0].measures]


def test_against_a_better_one(whole, tmp_path):
    found = measured(evaluate(STUDENT, against=TEACHER, out=tmp_path / "out", **SMALL))
    for decoding in ("greedy", "sampled"):
        ours = {row["problem"]: fmean(row["rewards"]) for row in answers(tmp_path / "out", "model", decoding)}
        theirs = {row["problem"]: fmean(row["rewards"]) for row in answers(tmp_path / "out", "against", decoding)}
        difference = found[decoding, "pass@1"].difference
        assert difference.value == pytest.approx(fmean(ours[p] - theirs[p] for p in ours))
        assert difference.low <= difference.value <= difference.high
    assert found["sampled", "pass@1"].difference.high < 0


def test_greedy_answers_do_not_depend_on_the_batch(whole, tmp_path):
    evaluate(STUDENT, out=tmp_path / "out", **{**SMALL, "batch_size": 20})
    for decoding in ("greedy", "sampled"):
        one, other = (answers(out, decoding=decoding) for out in (whole[1], tmp_path / "out"))
        assert sorted(one, key=lambda row: row["problem"]) == sorted(other, key=lambda row: row["problem"])


def recipe(tmp_path, **changes):
    return {
        "model": {"path": STUDENT},
        "data": {"kind": "arithmetic", "level": "easy", "problems": 16},
        "reward": {"kind": "math_verify"},
        "trainer": {"max_steps": 1, "save_steps": 1, "max_completion_length": 30, "temperature": 0.7},
        "evaluation": {"problems": 5, "split": "validation", "batch_size": 64},
        "output": str(tmp_path / "run"),
        **changes,
    }


def test_a_recipe_says_what_is_asked_and_how(tmp_path):
    found = evaluate(STUDENT, recipe=parse_recipe(recipe(tmp_path)), k=(2,))
    wanted = {"split": "validation", "problems": 5, "max_new_tokens": 30, "temperature": 0.7, "batch_size": 64}
    assert {key: found.meta[key] for key in wanted} == wanted
    assert found.meta["task"]["level"] == "easy"
    found = evaluate(STUDENT, recipe=parse_recipe(recipe(tmp_path)), k=(1,), task="arithmetic:level=hard", problems=3)
    assert (found.meta["task"]["level"], found.meta["problems"], found.meta["temperature"]) == ("hard", 3, 0.7)


def test_headroom_of_a_recipe(tmp_path):
    easy = headroom(parse_recipe(recipe(tmp_path)), problems=4)
    assert easy.k == 8 and easy.verdict != "none"
    (tmp_path / "never.py").write_text("def f(completions, **columns):\n    return [0.0] * len(completions)\n")
    never = parse_recipe(recipe(tmp_path, reward={"kind": "python", "ref": f"{tmp_path}/never.py:f"}))
    assert headroom(never, problems=4).sentence == "no headroom for RL: the model never samples a right answer"


def test_a_file_and_a_limit_that_fits_the_context(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}+1=?\n", "answer": n + 1}) + "\n" for n in range(1, 5)))
    found = evaluate(STUDENT, task=str(file), k=(1,))
    assert (found.meta["problems"], found.meta["max_new_tokens"], found.meta["split"]) == (4, 250, None)
    with pytest.raises(DataError, match="prompt 0 has 6 tokens, which with 251 new ones exceeds"):
        evaluate(STUDENT, task=str(file), max_new_tokens=251)
    with pytest.raises(RecipeError, match="asked as a whole"):
        evaluate(STUDENT, task=str(file), split="test")


def test_a_judge_that_was_edited_is_another_setting(tmp_path):
    code = tmp_path / "own.py"
    code.write_text("def f(completions, **columns):\n    return [1.0] * len(completions)\n")
    asked = {**SMALL, "problems": 2, "reward": f"python:ref={code}:f", "out": tmp_path / "out"}
    assert evaluate(STUDENT, **asked).headroom.verdict == "saturated"
    os.utime(code, ns=(0, 0))
    with pytest.raises(RunFolderError, match="judge="):
        evaluate(STUDENT, **asked)
