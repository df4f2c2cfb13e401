import inspect
import json
import math
import re
import time

import pytest

from stablerank.errors import RewardError
from stablerank.rewards.gym import GymReward, GymSpec, final_answer
from stablerank.rewards.gym_scores import ARITHMETIC, EVALUATED, judge
from stablerank.rewards.rollout import rollout_from_trl
from stablerank.tasks import gym


@pytest.fixture(scope="module")
def reward():
    return GymReward(cpu_seconds=1.0)


def row(task, config=None, index=0):
    import reasoning_gym

    entry = reasoning_gym.create_dataset(task, seed=0, size=100, **(config or {}))[index]
    return json.dumps({"task": task, "config": config or {}, "entry": entry}, default=str), entry


def score(reward, completions, metadata):
    return reward(rollout_from_trl(["?"] * len(completions), completions, [[1]] * len(completions), metadata=metadata))


@pytest.mark.parametrize(
    ("completion", "gold", "answer"),
    [
        ("\\boxed{7}", "7", "7"),
        ("\\boxed{8} no \\boxed{ $7$ }", "7", "7"),
        ("so <answer>8</answer> no <answer> 7 </answer>", "7", "7"),
        ("4 - 11 = -7.", "7", "-7"),
        ("it is 1,234", "1234", "1234"),
        ("7 + 5 is 12.50", "7", "12.50"),
        ("5-9", "7", "9"),
        ("no number", "7", ""),
        ("first\nthe word\n\n", "a word", "the word"),
        ("", "7", ""),
        ("\\boxed{}", "7", ""),
    ],
)
def test_what_is_scored(completion, gold, answer):
    assert final_answer(completion, gold) == answer


@pytest.mark.parametrize(
    "task", ["chain_sum", "gcd", "lcm", "spell_backward", "countdown", "number_sorting", "graph_color"]
)
def test_rewards_are_full_scores_of_reasoning_gym_and_nothing_between(task, reward):
    metadata, entry = row(task)
    right = entry["answer"] if entry["answer"] is not None else json.dumps(entry["metadata"]["possible_answer"])
    answers = [right, right + " 1", "0", "12345", "nonsense"]
    expected = [float(gym.scorer(task, {})(answer, entry) >= 1) for answer in answers]
    deposit = score(reward, [f"I think \\boxed{{{answer}}}" for answer in answers], [metadata] * 5)
    assert deposit.trajectory_rewards_N.tolist() == expected
    assert expected[0] == 1.0 and 0.0 in expected


def test_a_partial_score_is_no_reward(reward):
    metadata, entry = row("gcd")
    inside = f"the number {entry['answer']} it is"
    assert 0 < gym.scorer("gcd", {})(inside, entry) < 1
    assert score(reward, [f"<answer>{inside}</answer>"], [metadata]).trajectory_rewards_N.item() == 0.0


def test_failures_are_counted_and_only_unreadable_rows_are_unscorable(reward):
    metadata, entry = row("gcd")
    completions = ["no idea", "", f"so {entry['answer']}", "7", "7", "7"]
    deposit = score(reward, completions, [metadata] * 3 + [None, "{", '{"task": "gcd"}'])
    values = deposit.trajectory_rewards_N.tolist()
    assert values[:3] == [0.0, 0.0, 1.0] and all(map(math.isnan, values[3:]))
    assert deposit.notes["parse_failures"] == 2 and deposit.notes["unreadable_golds"] == 3


def test_a_missing_column_is_named(reward):
    with pytest.raises(RewardError, match="'metadata'"):
        reward(rollout_from_trl(["?"], ["7"], [[1]]))


def test_the_spec_builds_the_reward_that_judges(tokenizer):
    assert GymSpec.judges and GymSpec(metadata_column="m").build(tokenizer).metadata_column == "m"


def test_every_scorer_that_runs_an_answer_as_code_is_known():
    from reasoning_gym.factory import DATASETS

    runs_code = re.compile(r"\b(eval|exec|parse_expr|sympify|pickle\.loads)\(")
    of_its_own_data = {"number_sorting"}  # it evaluates the gold answer
    found = {name for name, (kind, _) in DATASETS.items() if runs_code.search(inspect.getsource(kind.score_answer))}
    assert found - of_its_own_data == EVALUATED | ARITHMETIC


@pytest.mark.parametrize("task", sorted(EVALUATED))
def test_tasks_whose_scorer_runs_the_answer_are_refused(task, reward):
    with pytest.raises(RewardError, match=f"'{task}' runs the model's text as code"):
        score(reward, ["\\boxed{1}"], [json.dumps({"task": task, "config": {}, "entry": {"answer": "1"}})])


def test_no_answer_is_run_as_code(tmp_path):
    target = tmp_path / "made"
    attack = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for task in ("gcd", "chain_sum", *ARITHMETIC):
        assert judge(row(task)[0], attack) == "wrong"
    for task in EVALUATED:
        assert judge(json.dumps({"task": task, "config": {}, "entry": {"answer": "1"}}), f"[{attack}]") == "wrong"
    assert not target.exists()


def test_endless_work_is_cut_off(reward):
    metadata, _ = row("countdown")
    gcd, entry = row("gcd")
    started = time.monotonic()
    deposit = score(reward, ["\\boxed{9**9**9**9}", f"\\boxed{{{entry['answer']}}}"], [metadata, gcd])
    assert time.monotonic() - started < 60
    assert deposit.trajectory_rewards_N.tolist() == [0.0, 1.0] and deposit.notes["undecided"] == 1


NASTY = ["9" * 100_000, "1e999999999", "\x00", "\ud800", "[" * 5_000, "{" * 5_000, "-", ",", "NaN", "-" * 2_000, "1,"]
TASKS = [
    "chain_sum",
    "gcd",
    "number_sorting",
    "countdown",
    "word_ladder",
    "graph_color",
    "propositional_logic",
    "codeio",
]


@pytest.mark.parametrize("task", TASKS)
def test_nasty_text_is_wrong_and_nothing_else(task, reward, capfd):
    metadata, _ = row(task)
    completions = [form.format(text) for text in NASTY for form in ("{}", "\\boxed{{{}}}", "<answer>{}</answer>")]
    capfd.readouterr()
    assert set(score(reward, completions, [metadata] * len(completions)).trajectory_rewards_N.tolist()) == {0.0}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "1,", "-1", "\\boxed{", "\n", "1.", "<answer></answer>"])
def test_a_million_characters_take_no_time(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    final_answer(text, "7")
    final_answer(text, "word")
    assert time.perf_counter() - started < 5
