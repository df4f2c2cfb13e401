import json

import pytest

from stablerank.rewards.code.unit_tests import Pair, read_tests, same_output

PAIRS = [{"input": "1\n", "output": "2\n", "type": "stdin_stdout"}, {"input": "", "output": "x"}]


@pytest.mark.parametrize(
    ("column", "tests"),
    [
        (["assert f(1) == 2"], ["assert f(1) == 2"]),
        (PAIRS, [Pair("1\n", "2\n"), Pair("", "x")]),
        ({"language": "python", "test_cases": PAIRS}, [Pair("1\n", "2\n"), Pair("", "x")]),
        (json.dumps({"test_cases": ["assert f(1) == 2"]}), ["assert f(1) == 2"]),
        (json.dumps(PAIRS[:1]), [Pair("1\n", "2\n")]),
    ],
)
def test_forms_of_public_data_sets(column, tests):
    assert read_tests(column) == tests


@pytest.mark.parametrize(
    "column",
    [
        None,
        [],
        "",
        "assert f(1) == 2",
        5,
        [1],
        {"tests": ["assert True"]},
        [{"input": "1"}],
        [{"input": [1], "output": [2], "fn_name": "f"}],
        [{"input": "1", "output": "2", "type": "function_call"}],
        ["assert True", PAIRS[0]],
        "[" * 100_000,
    ],
)
def test_other_forms_are_none(column):
    assert read_tests(column) is None


def test_output_is_compared_by_line():
    assert same_output("1 \n 2\n\n", "1\n2")
    assert not same_output("1 2", "1\n2")
    assert not same_output("", "1")
