"""Length-matched accuracy: what length alone gets, what signal keeps, and pandas for an oracle."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.evaluation.pairs.agreement import credits_of
from stablerank.evaluation.pairs.matched import matched_accuracy

LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=60)


@given(LENGTHS, st.sampled_from([lambda n: -n, lambda n: n, lambda n: -(n**0.5), lambda n: np.log(n)]))
def test_a_function_of_length_alone_is_at_a_half(lengths, score):
    chosen_P, rejected_P = np.array(lengths, dtype=float).T
    found = matched_accuracy(
        credits_of(score(chosen_P), score(rejected_P)), np.log(chosen_P / rejected_P), [str(n) for n in chosen_P]
    )
    if found.matched:
        assert found.accuracy.value == 0.5
    else:
        assert np.isnan(found.accuracy.value)


def test_length_plus_noise_falls_to_a_half_and_signal_stays(biased):
    chosen_P, rejected_P, groups, rng = biased
    ratios_P = np.log(chosen_P / rejected_P)
    noise_P = rng.normal(scale=0.5, size=len(ratios_P))
    brief_P = credits_of(noise_P - ratios_P, np.zeros_like(noise_P))
    found = matched_accuracy(brief_P, ratios_P, groups)
    assert brief_P.mean() > 0.62
    assert found.accuracy.low < 0.5 < found.accuracy.high
    assert found.accuracy.value == pytest.approx(0.5, abs=0.03)
    signal_P = credits_of(noise_P - ratios_P + 1.0, np.zeros_like(noise_P))
    kept = matched_accuracy(signal_P, ratios_P, groups).accuracy
    assert kept.low > 0.65


def test_it_is_pandas_grouping_of_quantile_bins(biased):
    chosen_P, rejected_P, groups, rng = biased
    ratios_P = np.log(chosen_P / rejected_P)
    credits_P = rng.random(len(ratios_P)).round()
    frame = pd.DataFrame({"credit": credits_P, "ratio": ratios_P})
    equal, frame = frame[frame.ratio == 0], frame[frame.ratio != 0]
    cells = frame.groupby([pd.qcut(frame.ratio.abs(), 10), frame.ratio > 0], observed=False).credit
    means, sizes = cells.mean().unstack().mean(axis=1), 2 * cells.size().unstack().min(axis=1)
    total = sizes.sum() + len(equal)
    found = matched_accuracy(credits_P, ratios_P, groups)
    assert found.matched == total
    assert found.accuracy.value == pytest.approx(((means * sizes).sum() + equal.credit.sum()) / total)


def test_nothing_to_match_is_not_defined():
    found = matched_accuracy(np.ones(30), np.full(30, 0.5) + np.arange(30) / 30, [str(n) for n in range(30)])
    assert np.isnan(found.accuracy.value) and np.isnan(found.accuracy.low)
    assert found.matched == 0


def test_undefined_pairs_are_left_out(biased):
    chosen_P, rejected_P, groups, rng = biased
    ratios_P, credits_P = np.log(chosen_P / rejected_P), rng.random(len(chosen_P)).round()
    holes_P = np.where(np.arange(len(credits_P)) % 3 == 0, np.nan, credits_P)
    kept = np.flatnonzero(~np.isnan(holes_P))
    wanted = matched_accuracy(credits_P[kept], ratios_P[kept], [groups[n] for n in kept])
    assert matched_accuracy(holes_P, ratios_P, groups) == wanted
