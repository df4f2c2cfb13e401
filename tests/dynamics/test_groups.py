"""How alike completions of a group are, against brute force and pandas."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.dynamics.groups import OVERLAP, duplicate_share, near_duplicate_share, relative_spread

TEXTS = st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 2)), min_size=1, max_size=12)


def columns(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def matched(one, other):
    """Tokens of ``one`` that find a partner of their own in ``other``."""
    left = list(other)
    return sum(token in left and not left.remove(token) for token in one)


def by_brute_force(rows):
    twins = set()
    for (first, (one, here)), (second, (other, there)) in combinations(enumerate(rows), 2):
        tokens = len(one) + len(other)
        if here == there and (not tokens or 2 * matched(one, other) / tokens >= OVERLAP):
            twins |= {first, second}
    return len(twins) / len(rows)


@given(TEXTS)
def test_near_duplicates_are_those_of_brute_force(rows):
    assert near_duplicate_share(*columns(rows)) == pytest.approx(by_brute_force(rows))


@given(TEXTS)
def test_duplicates_are_pandas(rows):
    frame = pd.DataFrame([(str(ids), group) for ids, group in rows])
    assert duplicate_share(*columns(rows)) == pytest.approx(frame.duplicated(keep=False).mean())
    assert duplicate_share(*columns(rows)) <= near_duplicate_share(*columns(rows))


def test_a_token_in_twenty_may_differ_and_one_in_five_may_not():
    base = list(range(20))
    assert near_duplicate_share([base, [*base[:-1], 99]], [0, 0]) == 1
    assert near_duplicate_share([base[:5], [*base[:4], 99]], [0, 0]) == 0
    assert duplicate_share([base, [*base[:-1], 99]], [0, 0]) == 0


def test_twins_of_other_groups_do_not_count():
    assert duplicate_share([[1, 2], [1, 2]], [0, 1]) == near_duplicate_share([[1, 2], [1, 2]], [0, 1]) == 0


REWARDS = st.lists(
    st.tuples(st.integers(-1000, 1000).map(lambda v: v / 100) | st.just(float("nan")), st.integers(0, 3))
)


@given(REWARDS)
def test_spread_is_that_of_pandas(rows):
    frame = pd.DataFrame(rows, columns=["reward", "group"], dtype=float).dropna()
    kept = frame.groupby("group").reward.filter(lambda rewards: len(rewards) > 1)
    variances = frame.loc[kept.index].groupby("group").reward.var(ddof=0)
    level = frame.reward.abs().mean()
    expected = np.sqrt(variances.mean()) / level if len(variances) and level else float("nan")
    found = relative_spread([row[0] for row in rows], [row[1] for row in rows])
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_spread_has_no_unit_and_ignores_what_a_prompt_is_worth():
    assert relative_spread([1, 3, 1, 3], [0, 0, 1, 1]) == relative_spread([10, 30, 10, 30], [0, 0, 1, 1]) == 0.5
    assert relative_spread([1, 1, 3, 3], [0, 0, 1, 1]) == 0


def test_nothing_is_nan():
    assert np.isnan([duplicate_share([], []), near_duplicate_share([], []), relative_spread([], [])]).all()
