"""The column of unit tests, in the forms that public data sets use.

- a list of texts, each a few lines of Python with ``assert`` (MBPP's ``test_list``; HumanEval's ``test`` followed by
  ``check(name)``): the solution's names are there;
- a list of ``{"input": ..., "output": ...}``: what a program reads on standard input and has to print;
- a mapping that holds either under ``test_cases`` (open-r1's ``verification_info``), or JSON text of any of these.

Left out on purpose: calls by name (``fn_name``), checkers, and other languages.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """Standard input, and the standard output that it must lead to."""

    given: str
    expected: str


UnitTests = list[str] | list[Pair]


def read_tests(value: Any) -> UnitTests | None:
    """The tests of one row; None where there is none or the form is not known."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    if isinstance(value, Mapping):
        return read_tests(value.get("test_cases")) if "test_cases" in value else None
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    if all(isinstance(test, str) for test in value):
        return list(value)
    if all(_is_pair(test) for test in value):
        return [Pair(test["input"], test["output"]) for test in value]
    return None


def same_output(printed: str, expected: str) -> bool:
    """Equal line by line, but for blanks around a line and blank lines at either end."""
    return _lines(printed) == _lines(expected)


def _is_pair(test: Any) -> bool:
    if not isinstance(test, Mapping) or test.get("fn_name") or test.get("type", "stdin_stdout") != "stdin_stdout":
        return False
    return isinstance(test.get("input"), str) and isinstance(test.get("output"), str)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]
