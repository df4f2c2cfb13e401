"""A reward on hidden states that tells nothing apart any more, and which of its reasons is named."""

import numpy as np
import pytest

from stablerank.dynamics.causes.collapse import FAR_KL
from stablerank.dynamics.causes.explain import explain

SPREAD = "rewards/stable_rank/relative_spread"
SHARES = {
    "identical_completions": "duplicate_share",
    "cut_by_window": "cut_by_window",
    "template_owns": "sigma1_first_token",
}


def collapsed(make, **columns):
    """A run whose spread falls from 6 % to 0.2 % of the level, without held-out answers."""
    noise = 1 + 0.1 * np.random.default_rng(0).normal(size=40)
    return {**make.learning(), SPREAD: make.ramp(0.06, 0.002, 10, 25) * noise, **columns}


def headline(make, columns, **rest):
    (found,) = explain(make.record(columns, **rest)).found
    return found


def test_the_first_reason_that_fits_is_named(make):
    """All three at once, then one fewer each time; what is left over is the states."""
    columns = collapsed(make, **{column: np.full(40, 0.8) for column in SHARES.values()})
    for cause, column in SHARES.items():
        assert headline(make, columns).cause == cause
        columns[column] = np.full(40, 0.1)
    found = headline(make, columns)
    assert found.cause == "alike_states"
    assert "fell from 6 % of its level (0.002" in found.sentence
    assert 15 <= found.first_step <= 30


def test_whoever_owns_more_is_named(make):
    columns = collapsed(make, sigma1_first_token=np.full(40, 0.6), sigma1_special_tokens=np.full(40, 0.9))
    assert "special tokens hold 90 %" in headline(make, columns).sentence
    columns["sigma1_first_token"] = np.full(40, 0.95)
    found = headline(make, columns)
    assert "the first token holds 95 %" in found.sentence and "reward.scope=response" in found.remedy


def test_a_share_that_is_high_without_a_collapse_is_no_cause(make):
    columns = {**make.learning(), **{column: np.full(40, 0.9) for column in SHARES.values()}}
    assert explain(make.record(columns, evaluations=make.healthy_curve)).found == ()


def test_a_reward_that_was_level_from_the_first_step_has_collapsed_too(make):
    columns = {**make.learning(), SPREAD: np.full(40, 2e-4), "cut_by_window": np.ones(40)}
    found = headline(make, columns)
    assert (found.cause, found.first_step) == ("cut_by_window", 1)
    assert "was never above a thousandth" in found.sentence


def test_where_held_out_answers_got_no_worse_it_is_a_warning(make):
    columns = collapsed(make, duplicate_share=np.full(40, 0.9))
    assert headline(make, columns).severity == "problem"
    assert headline(make, columns, evaluations=make.healthy_curve).severity == "warning"


def test_beside_other_rewards_its_own_columns_are_read(make):
    """The spread of the answer's reward falls in every run that learns, and says nothing of the states."""
    columns = {**make.learning(), "rewards/math_verify/relative_spread": make.ramp(1.0, 0.0, 5, 20)}
    for name in ("cut_by_window", "sigma1_first_token", "sigma1_special_tokens"):
        columns[f"stable_rank/{name}"] = columns.pop(name)
    assert explain(make.record(columns, evaluations=make.healthy_curve)).found == ()
    columns[SPREAD] = collapsed(make)[SPREAD]
    columns["stable_rank/cut_by_window"] = np.ones(40)
    assert headline(make, columns).cause == "cut_by_window"


def test_without_such_a_reward_nothing_is_looked_for(make):
    columns = {name: values for name, values in collapsed(make).items() if "sigma1" not in name}
    del columns["cut_by_window"]
    lacking = {one.cause: one.missing for one in explain(make.record(columns)).unchecked}
    assert "spread of a reward on hidden states" in lacking["alike_states"]
    assert {"identical_completions", "cut_by_window", "template_owns", "far_policy"} <= set(lacking)


@pytest.mark.parametrize(
    ("kl_S", "words"),
    [
        (np.interp(np.arange(40), [0, 39], [0, 0.9]), "step by step, so beta (0.01) is too low"),
        (np.where(np.arange(40) < 20, 0.005, 0.9), "in one leap, so the learning rate (0.0005) is too high"),
    ],
)
def test_a_large_kl_names_the_step_or_the_leash(make, kl_S, words):
    columns = {**make.learning(), "kl": kl_S}
    found = headline(make, columns, settings={"trainer": {"beta": 0.01}})
    assert (found.cause, found.severity) == ("far_policy", "warning")
    assert words in found.sentence
    assert kl_S[found.first_step - 1] >= FAR_KL > kl_S[found.first_step - 2]


def test_a_small_kl_is_no_warning(make):
    assert explain(make.record({**make.learning(), "kl": np.linspace(0, 0.25, 40)})).found == ()
