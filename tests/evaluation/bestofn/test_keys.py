"""Final answers and which of them are equal."""

import pytest

from stablerank.evaluation.bestofn.keys import answer_classes, by_math_verify, final_answers


@pytest.fixture(scope="module")
def equal():
    return by_math_verify()


def test_equal_numbers_are_one_class_and_no_answer_abstains(equal):
    assert answer_classes(["18", "18.0", "", "26", "\\frac{36}{2}", "26", ""], equal) == [0, 0, None, 1, 0, 1, None]


def test_what_is_no_mathematics_is_compared_as_text(equal):
    assert answer_classes(["north", "south", "north"], equal) == [0, 1, 0]


def test_hostile_answers_do_not_stop_the_vote(equal):
    assert answer_classes(["1", "9^{9^{9^{9}}}", "1"], equal)[::2] == [0, 0]


def test_each_text_is_compared_once_with_each_class():
    asked = []

    def never(first, second):
        asked.append((first, second))
        return False

    assert answer_classes(["a", "b", "a", "c", "b"], never) == [0, 1, 0, 2, 1]
    assert asked == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize(
    ("response", "gold", "answer"),
    [
        ("so 2+2=4 eggs\nA: 1,234", None, "1234"),
        ("the answer is \\boxed{ 7 } and not 9", "12", "7"),
        ("It leads\nto the  north ", "south", "to the north"),
        ("no idea", "12", ""),
        (None, "12", ""),
    ],
)
def test_final_answers_are_read_without_knowing_which_is_right(response, gold, answer):
    assert final_answers([response], gold) == (answer,)
