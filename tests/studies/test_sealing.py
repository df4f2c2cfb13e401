"""Canonical JSON and seals: order and layout do not matter, everything that JSON says does."""

import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.studies.sealing import canonical_json, digest, is_sealed, seal

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text()
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))
RESULTS = st.dictionaries(st.text(), PLAIN, max_size=5)


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


def same(left, right):
    """Equal as JSON: Python alone takes 1, 1.0 and True for one another, and 0.0 for -0.0."""
    return repr(_sorted(left)) == repr(_sorted(right))


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def test_the_form_is_fixed():
    # Locks and results of earlier releases hang on these bytes.
    value = {"b": [1, 1.0, 1e-7, True, None], "a": {"ü": "a\nb"}}
    assert canonical_json(value) == b'{"a":{"\\u00fc":"a\\nb"},"b":[1,1.0,1e-07,true,null]}'
    assert digest(value) == hashlib.sha256(canonical_json(value)).hexdigest()


@given(PLAIN)
def test_canonical_json_says_the_same(value):
    assert same(json.loads(canonical_json(value)), value)


@given(PLAIN, PLAIN)
def test_bytes_are_equal_exactly_where_values_are(left, right):
    assert canonical_json(left) == canonical_json(reordered(left))
    assert (canonical_json(left) == canonical_json(right)) == same(left, right)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_without_json_are_refused(number):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"values": [number]})


@given(RESULTS, st.sampled_from([None, 0, 4]))
def test_a_sealed_result_survives_its_file_in_any_layout(result, indent):
    written = json.dumps(reordered(seal(result)), indent=indent, ensure_ascii=bool(indent))
    assert is_sealed(json.loads(written))


@given(RESULTS.filter(lambda result: "sha256" not in result), st.data())
def test_any_other_content_breaks_the_seal(result, data):
    sealed = seal({**result, "value": 1.0})
    key = data.draw(st.sampled_from(sorted(sealed)))
    other = data.draw(PLAIN.filter(lambda value: not same(value, sealed[key])))
    assert not is_sealed({**sealed, key: other})
    assert not is_sealed({name: value for name, value in sealed.items() if name != key})
    assert not is_sealed({**sealed, key + "x": 0})


def test_a_seal_is_over_what_the_file_gives_back():
    sealed = seal({"units": {2: 0.5, 10: math.nan}, "pair": (1, math.inf)})
    assert {key: sealed[key] for key in ("units", "pair")} == {"units": {"2": 0.5, "10": None}, "pair": [1, None]}
    assert is_sealed(json.loads(json.dumps(sealed)))


def test_sealing_again_replaces_the_seal():
    first = seal({"a": 1})
    assert seal(first) == first
    assert is_sealed(seal({**first, "a": 2}))


@pytest.mark.parametrize(
    "result", [{}, {"a": 1}, {"sha256": None}, {"sha256": 7, "a": 1}, {"a": math.nan, "sha256": ""}]
)
def test_what_was_never_sealed_is_not(result):
    assert not is_sealed(result)


def test_what_json_has_no_form_for_is_refused():
    with pytest.raises(TypeError):
        seal({"values": {1, 2}})
