"""What a batch of completions says, against pandas and scipy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from stablerank.dynamics.batch import answered, reward_length_correlation

HUNDREDTHS = st.integers(-1000, 1000).map(lambda value: value / 100)
ROWS = st.lists(st.tuples(HUNDREDTHS | st.just(float("nan")), st.integers(0, 500), st.integers(0, 4)), max_size=30)
PIECES = st.sampled_from(["\\boxed{", "boxed{", "\\boxed", "{7}", "so ", "\n", "\\"])


def columns(rows):
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], []]


def by_pandas_and_scipy(rows):
    """NaN where a side does not vary inside the groups; values are hundredths, so rounding stays far below 1e-9."""
    frame = pd.DataFrame(rows, columns=["reward", "tokens", "group"], dtype=float).dropna()
    centred = frame[["reward", "tokens"]] - frame.groupby("group")[["reward", "tokens"]].transform("mean")
    if not (centred.abs().max() > 1e-9).all():
        return float("nan")
    return pearsonr(centred.reward, centred.tokens).statistic


@given(ROWS)
def test_correlation_is_that_of_centred_values(rows):
    found = reward_length_correlation(*columns(rows))
    assert found == pytest.approx(by_pandas_and_scipy(rows), abs=1e-9, nan_ok=True)


@given(ROWS, st.permutations(range(5)), st.randoms())
def test_neither_the_names_of_groups_nor_the_order_of_rows_matter(rows, names, random):
    renamed = [(reward, tokens, f"group {names[group]}") for reward, tokens, group in rows]
    random.shuffle(renamed)
    found = reward_length_correlation(*columns(renamed))
    assert found == pytest.approx(reward_length_correlation(*columns(rows)), abs=1e-9, nan_ok=True)


@given(ROWS, st.lists(HUNDREDTHS, min_size=5, max_size=5), st.lists(st.integers(0, 99), min_size=5, max_size=5))
def test_what_a_whole_group_gains_does_not_matter(rows, rewards, tokens):
    moved = [(reward + rewards[group], length + tokens[group], group) for reward, length, group in rows]
    found = reward_length_correlation(*columns(moved))
    assert found == pytest.approx(reward_length_correlation(*columns(rows)), abs=1e-9, nan_ok=True)


@given(st.lists(st.tuples(st.floats(), st.integers(0, 10**6), st.integers(0, 4)), max_size=30))
def test_whatever_the_numbers_it_is_a_correlation_or_nan(rows):
    with np.errstate(all="raise", under="ignore"):
        found = reward_length_correlation(*columns(rows))
    assert np.isnan(found) or -1 <= found <= 1


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 4)), max_size=30), st.sampled_from([3.0, -0.1, 1e-200]))
def test_a_reward_that_is_length_correlates_fully(rows, pay):
    tokens, groups = [row[0] for row in rows], [row[1] for row in rows]
    assume(any(len({t for t, g in rows if g == group}) > 1 for group in groups))
    found = reward_length_correlation([pay * length for length in tokens], tokens, groups)
    assert found == pytest.approx(np.sign(pay), abs=1e-12)


@pytest.mark.parametrize(
    ("reward", "tokens", "group"),
    [
        pytest.param([0.3] * 6 + [0.7] * 6, range(12), [0] * 6 + [1] * 6, id="constant rewards"),
        pytest.param([1.0, 2.0, 3.0, 4.0], [7, 7, 9, 9], [0, 0, 1, 1], id="constant lengths"),
        pytest.param([1.0, 2.0, 3.0], [4, 5, 6], [0, 1, 2], id="groups of one"),
        pytest.param([float("nan"), 1.0, float("nan"), 2.0], [1, 2, 3, 4], [0, 0, 1, 1], id="one scored a group"),
        pytest.param([], [], [], id="no completions"),
        pytest.param([0.0, 0.0], [0, 0], [0, 0], id="zeros"),
    ],
)
def test_nan_where_nothing_varies_inside_the_groups(reward, tokens, group):
    assert np.isnan(reward_length_correlation(reward, tokens, group))


@given(st.lists(st.lists(PIECES).map("".join), min_size=1))
def test_answered_is_the_share_of_texts_with_a_box(texts):
    boxed = [any(rest.lstrip().startswith("{") for rest in text.split("\\boxed")[1:]) for text in texts]
    assert answered(texts) == sum(boxed) / len(texts)


def test_answered_takes_spaces_and_another_format():
    texts = ["\\boxed {3}", "\\boxed\n{3}", "#### 3", "3"]
    assert answered(texts) == 0.5
    assert answered(texts, r"^#### ") == 0.25
    assert np.isnan(answered([]))
