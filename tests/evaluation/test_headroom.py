"""The verdict on headroom at both sides of each threshold."""

import pytest
from scipy.stats import binomtest

from stablerank.evaluation.headroom import LITTLE, NEVER, SATURATED, judge_headroom
from stablerank.evaluation.measures import Values


def judged(once, often, k=8):
    rates = {1: Values("sampled", "pass@1", tuple(once))}
    rates[k] = Values("sampled", f"pass@{k}", tuple(often))
    return judge_headroom(rates)


def share(right, problems=200):
    return [1.0] * right + [0.0] * (problems - right)


def test_never_a_right_answer():
    found = judged(share(0), share(0))
    assert found.verdict == "none"
    assert found.sentence == "no headroom for RL: the model never samples a right answer"
    assert "lower bound below 1%" in found.rule


@pytest.mark.parametrize(("right", "problems"), [(3, 200), (5, 200), (1, 10)])
def test_within_noise_of_never(right, problems):
    often = share(right, problems)
    found = judged([0.125 * value for value in often], often)
    assert binomtest(right, problems).proportion_ci(method="exact").low < NEVER
    assert found.verdict == "none" and f"{right} of {problems} problems are within noise" in found.sentence


@pytest.mark.parametrize(("right", "problems"), [(6, 200), (2, 10), (2, 4)])
def test_more_than_noise(right, problems):
    often = share(right, problems)
    assert judged([0.125 * value for value in often], often).verdict != "none"


def test_now_and_then_is_headroom():
    found = judged([0.125 * value for value in share(30)], share(30))
    assert found.verdict == "some"
    assert found.gap.high > LITTLE


def test_right_already():
    assert judged(share(200), share(200)).verdict == "saturated"
    assert judged(share(2, 2), share(2, 2)).verdict == "saturated", "every sample is right"
    found = judged(share(198), share(200))
    assert found.verdict == "saturated" and found.pass_at_1.low >= SATURATED
    assert judged(share(186), share(200)).verdict != "saturated"


def test_little_to_elicit():
    found = judged(share(100), share(102))
    assert found.verdict == "little" and found.gap.high < LITTLE
    assert "pass@8 minus pass@1" in found.rule and "5 points" in found.rule
    assert judged(share(100), share(108)).verdict == "some"
    assert judged(share(2, 4), share(2, 4)).verdict == "little", "no gap at all"


@pytest.mark.parametrize(("right", "verdict"), [(0, "none"), (100, "some"), (200, "saturated")])
def test_one_try_cannot_say_little(right, verdict):
    rates = {1: Values("sampled", "pass@1", tuple(share(right)))}
    assert judge_headroom(rates).verdict == verdict
