import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.errors import RewardError
from stablerank.rewards.choice import MultipleChoiceReward, MultipleChoiceSpec, final_choice, read_options
from stablerank.rewards.rollout import rollout_from_trl

CITIES = ["Paris", "Rome", "a dog", "New York"]


def score(completions, golds, options=None, **settings):
    columns = {"answer": golds} | ({"choices": options} if options else {})
    reward = MultipleChoiceReward(options_column="choices" if options else None, **settings)
    return reward(rollout_from_trl(["?"] * len(completions), completions, [[1]] * len(completions), **columns))


@pytest.mark.parametrize(
    ("completion", "choice"),
    [
        ("\\boxed{B}", "B"),
        ("so $\\boxed{\\text{B}}$.", "B"),
        ("\\boxed{(b)}", "B"),
        ("\\boxed{A} no, \\boxed{B}", "B"),
        ("\\boxed{Rome}", "B"),
        ("\\boxed{B) Rome}", "B"),
        ("Answer: (C)", "C"),
        ("**Answer:** B", "B"),
        ("Answer: **B**", "B"),
        ("**Final Answer**: B.", "B"),
        ("The answer is C", "C"),
        ("The answer is: (b).", "B"),
        ("the answer is B, because Rome is old.\nI hope this helps!", "B"),
        ("The answer is B because D is wrong.", "B"),
        ("The correct option is [D]", "D"),
        ("The answer to the question is B.", "B"),
        ("The answer is A. Wait: the answer is B.", "B"),
        ("The answer is:\n\nB", "B"),
        ("The answer is Rome.", "B"),
        ("The answer is A dog.", "C"),
        ("The answer is New   York", "D"),
        ("Thinking...\nB", "B"),
        ("Thinking...\n(B)\n\n", "B"),
        ("Thinking...\nB.", "B"),
        ("Thinking...\nB) Rome", "B"),
        ("Thinking...\n**B. Rome**", "B"),
        ("rome", "B"),
        ("b", "B"),
    ],
)
def test_the_final_choice_is_read(completion, choice):
    assert final_choice(completion, read_options(CITIES)) == choice


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I do not know",
        "A good question it is",
        "a small dog",
        "The answer is A or B",
        "The answer is (A) or (B)",
        "The answer is A and C.",
        "The answer is A, B",
        "The answer is (B) Paris",
        "B) Paris",
        "The answer is not B",
        "The answer is E",
        "The answer is I think hard to find",
        "Berlin",
        "\\boxed{}",
        "\\boxed{A, B}",
        "\\boxed{E}\nThe answer is B",
        "\\boxed{" + "B" * 5_000 + "}",
        "B is wrong, as is C\nso who knows",
    ],
)
def test_no_choice_and_two_choices_are_none(completion):
    assert final_choice(completion, read_options(CITIES)) is None


@pytest.mark.parametrize(
    "options",
    [
        CITIES,
        dict(zip("ABCD", CITIES, strict=True)),
        {"label": list("abcd"), "text": CITIES},
        {**dict(zip("ABCD", CITIES, strict=True)), "E": None},
    ],
)
@pytest.mark.parametrize("gold", ["B", "b", "(B)", "B.", "Rome", " rome. ", 1])
def test_forms_of_options_and_of_gold(options, gold):
    values = score(["\\boxed{B}", "Rome", "The answer is A", "no"], [gold] * 4, [options] * 4)
    assert values.trajectory_rewards_N.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_letters_alone_without_options():
    deposit = score(["Answer: (C)", "\\boxed{D}", "it is Rome", "C"], ["C", "c", "C", "(C)"])
    assert deposit.trajectory_rewards_N.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_failures_are_counted_and_only_a_gold_of_no_option_is_unscorable():
    golds = ["Rome", "Berlin", None, "E", 9, True]
    deposit = score(["no idea", *["\\boxed{B}"] * 5], golds, [CITIES] * 6)
    values = deposit.trajectory_rewards_N.tolist()
    assert values[0] == 0.0 and all(map(math.isnan, values[1:]))
    assert deposit.notes["parse_failures"] == 1 and deposit.notes["unreadable_golds"] == 5
    assert math.isnan(score(["B"], ["Rome"]).trajectory_rewards_N.item())


def test_a_text_that_two_options_share_names_neither():
    twins = ["yes", "no", "yes"]
    deposit = score(["yes", "no", "A"], ["A", "no", "yes"], [twins] * 3)
    assert deposit.trajectory_rewards_N[:2].tolist() == [0.0, 1.0]
    assert deposit.trajectory_rewards_N[2].isnan()


def test_a_missing_column_is_named():
    with pytest.raises(RewardError, match="'options'"):
        reward = MultipleChoiceReward(options_column="options")
        reward(rollout_from_trl(["?"], ["B"], [[1]], answer=["B"]))


def test_the_spec_builds_the_reward_that_judges(tokenizer):
    reward = MultipleChoiceSpec(answer_column="key", options_column="choices").build(tokenizer)
    assert MultipleChoiceSpec.judges and (reward.answer_column, reward.options_column) == ("key", "choices")


@given(st.text(alphabet="ABb()[]{}.,: \n$*\\oxdanswerisRm’"), st.sampled_from([CITIES, None, {"B": ""}]))
def test_any_text_is_read(text, options):
    assert final_choice(text, read_options(options)) in {None, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


PIECES = ["answer is ", "answer:", "answer to ", "(", "\\boxed{", "\\text{", "A or ", " ", "\n", "*", "[ ", "{}", "A,"]


@pytest.mark.parametrize("piece", PIECES)
def test_a_million_characters_take_no_time(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    for completion in (text, f"{text}\nThe answer is B", f"The answer is {text}", f"\\boxed{{{text}}}"):
        score([completion], ["B"], [[piece * 20_000, "Rome"]])
    assert time.perf_counter() - started < 8
