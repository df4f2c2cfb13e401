"""The generated task against Python's own arithmetic, and the exact step checker."""

import ast
import hashlib
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.errors import DataError
from stablerank.tasks.arithmetic import (
    LARGEST_VALUE,
    LEVELS,
    Problem,
    check_steps,
    problems,
    sample_problem,
    split_of,
)
from stablerank.tasks.specs import ArithmeticSpec

SPLITS = ("train", "validation", "test")
CHAINS = st.builds(lambda seed, length: sample_problem(random.Random(seed), length), st.integers(0), st.integers(1, 12))
FREE_CHAINS = st.builds(
    lambda first, pairs: Problem(first, tuple(pairs)),
    st.integers(1, 99),
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(2, 9)), min_size=1, max_size=8),
)
PROBLEMS_SHA256 = "dbeeb87319a133e899e2e61ee3ce623750dcb53575c2827a72eadbab78e40a74"
WORKED = Problem(3, (("+", 4), ("*", 2), ("-", 5)))


@given(FREE_CHAINS)
def test_the_question_means_the_chain(problem):
    assert problem.question.endswith("=?")
    assert eval(problem.question[:-2]) == problem.answer
    assert problem.prompt == problem.question + "\n"


@given(FREE_CHAINS)
def test_brackets_stand_only_where_precedence_asks_for_them(problem):
    text = problem.question[:-2]
    for opening in [match.start() for match in re.finditer(r"\(", text)]:
        closing = _closing(text, opening)
        bare = text[:opening] + text[opening + 1 : closing] + text[closing + 1 :]
        assert _tree(bare) != _tree(text), f"{text}: this bracket changes nothing"


def _closing(text, opening):
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise AssertionError(text)


def _tree(text):
    return ast.dump(ast.parse(text, mode="eval"))


@given(CHAINS)
def test_a_sampled_chain_stays_small_at_every_step(problem):
    assert all(0 <= value <= LARGEST_VALUE for value in problem.values)
    assert problem.values[-1] == problem.answer
    assert len(problem.steps) == len(problem.operations) == len(problem.values) - 1
    for step in problem.steps:
        left, right = step.split("=")
        assert eval(left) == int(right)


@given(CHAINS)
def test_the_worked_solution_is_right_at_every_line(problem):
    lines = problem.solution.split("\n")
    assert lines == [*problem.steps, f"\\boxed{{{problem.answer}}}"]
    assert check_steps(problem, problem.solution) == [True] * len(lines)
    assert check_steps(problem, problem.solution + "\n") == [True] * len(lines)


@pytest.mark.parametrize(
    ("completion", "verdicts"),
    [
        ("3+4=7\n7*2=14\n14-5=9\n\\boxed{9}", [True, True, True, True]),
        ("\\boxed{9}", [True]),
        ("3+4=7\n\\boxed{9}", [True, True]),
        ("\\boxed{8}", [False]),
        ("3+4=8\n8*2=16\n16-5=11\n\\boxed{11}", [False, False, False, False]),
        ("3+4=7\n7*2=15\n15-5=10\n\\boxed{10}", [True, False, False, False]),
        ("3+4=8\n7*2=14\n14-5=9\n\\boxed{9}", [False, False, False, False]),
        ("3+4=7\n7-5=2\n2*2=4\n\\boxed{9}", [True, False, False, False]),
        ("3+4=7\n7*2=14\n14-5=9\n9+0=9\n\\boxed{9}", [True, True, True, False, False]),
        ("3+4=7\n\n7*2=14", [True, False, False]),
        ("", [False]),
        ("3 + 4 = 7", [False]),
        ("4+3=7", [False]),
        ("3+4=07", [False]),
        ("so 3+4=7", [False]),
        ("\\boxed{9} ", [False]),
        ("\\boxed{nine}", [False]),
        ("3+4=7\n7*2=14\n14-5=9\n\\boxed{", [True, True, True, False]),
    ],
)
def test_step_verdicts(completion, verdicts):
    assert check_steps(WORKED, completion) == verdicts


@given(CHAINS, st.data())
def test_one_slip_spoils_its_own_line_and_all_after_it(problem, data):
    slip = data.draw(st.integers(0, len(problem.steps) - 1))
    lines = problem.solution.split("\n")
    left, right = lines[slip].split("=")
    lines[slip] = f"{left}={int(right) + data.draw(st.integers(1, 9))}"
    verdicts = check_steps(problem, "\n".join(lines))
    assert verdicts == [index < slip for index in range(len(lines))]


@given(CHAINS, st.text())
def test_any_text_gets_one_verdict_a_line_and_never_recovers(problem, completion):
    verdicts = check_steps(problem, completion)
    assert len(verdicts) == completion.strip("\n").count("\n") + 1
    assert verdicts == sorted(verdicts, reverse=True)


def test_splits_are_disjoint_and_of_the_size_asked_for():
    questions = {split: [p.question for p in problems(split, 700)] for split in SPLITS}
    assert [len(set(questions[split])) for split in SPLITS] == [700, 700, 700]
    assert len({question for split in SPLITS for question in questions[split]}) == 2100
    assert all(split_of(question) == split for split in SPLITS for question in questions[split])


def test_splits_hold_about_eight_one_and_one_tenth():
    rng = random.Random(0)
    drawn = [split_of(sample_problem(rng, 5).question) for _ in range(5000)]
    shares = [drawn.count(split) / len(drawn) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_problems_are_the_same_for_ever():
    """The embedded models were trained and measured on these; any change of the stream makes their cards untrue."""
    text = "\n".join(p.question for split in SPLITS for p in problems(split, 50))
    assert hashlib.sha256(text.encode()).hexdigest() == PROBLEMS_SHA256


def test_a_shorter_list_is_the_beginning_of_a_longer_one():
    assert problems("test", 500) == problems("test", 600)[:500]
    assert problems("test", 50, seed=1) != problems("test", 50)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_its_number_of_operations(level):
    low, high = LEVELS[level]
    lengths = [len(p.operations) for p in problems("train", 400, level=level)]
    assert set(lengths) == set(range(low, high + 1))
    expected = len(lengths) / (high - low + 1)
    assert all(abs(lengths.count(n) - expected) < 5 * expected**0.5 for n in range(low, high + 1))


def test_a_level_that_is_used_up_is_a_sentence_and_not_an_endless_loop():
    with pytest.raises(DataError, match=r"'easy' holds about [\d,]+ test problems, not 9,000; ask for fewer"):
        problems("test", 9_000, level="easy")


def test_rows_carry_prompt_and_gold():
    spec = ArithmeticSpec(kind="arithmetic", level="hard", problems=20)
    rows = spec.train_rows()
    assert len(rows) == 20
    assert [eval(row["prompt"].strip()[:-2]) for row in rows] == [int(row["answer"]) for row in rows]
    assert {row["operations"] for row in rows} <= {6, 7, 8}
    held_out = spec.held_out_rows("test", 30)
    assert len(held_out) == 30
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in held_out}
