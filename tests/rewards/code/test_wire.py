import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.rewards.code import wire

KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.tuples(st.integers(), st.text()))
VALUES = st.recursive(
    st.one_of(KEYS, st.floats(allow_nan=False), st.complex_numbers(allow_nan=False), st.frozensets(KEYS)),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(KEYS, inner), st.sets(KEYS)),
    max_leaves=20,
)


def refuse(_):
    raise TypeError


@given(VALUES)
def test_plain_data_comes_back_with_its_types(value):
    back = wire.loads(wire.dumps(value, refuse), refuse)
    assert back == value and repr(type(back)) == repr(type(value))


def test_a_subclass_arrives_as_its_base():
    class Equal(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    back = wire.loads(wire.dumps([Equal(3)], refuse), refuse)
    assert type(back[0]) is int and back != [4]


def test_other_objects_go_by_number():
    kept = [object()]
    assert wire.loads(wire.dumps({"a": (kept[0],)}, lambda value: kept.index(value)), kept.__getitem__) == {
        "a": (kept[0],)
    }


@pytest.mark.parametrize("line", [b"", b"[1]", b"{}", b'{"a": 1, "b": 2}', b'{"exec": "x"}', b"\xff", b"{" * 9])
def test_lines_of_no_value_are_refused(line):
    with pytest.raises(ValueError):
        wire.loads(line, refuse)


def test_a_deep_line_is_an_error_not_a_crash():
    deep = b'{"list": [' * 50_000 + b"]}" * 50_000
    with pytest.raises((RecursionError, json.JSONDecodeError)):
        wire.loads(deep, refuse)
