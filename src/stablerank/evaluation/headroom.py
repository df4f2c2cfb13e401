"""Is there anything to elicit? Reinforcement learning rewards what a model samples now and then; pass@k counts that.

The rule, in this order, on 95 % intervals over problems, K the largest k:

- ``none``: of the problems that got a right sample at all, the share's lower bound (Clopper-Pearson) is below 1 %;
- ``saturated``: every sample is right, or the lower bound of pass@1 is at least 95 %;
- ``little``: pass@K minus pass@1 is 0, or the upper bound of this gap is below 5 points; needs K of 2 at least;
- ``some`` otherwise.

The thresholds are a judgement, not a theorem: below them a group of samples is so rarely mixed that most of an RL
batch carries no signal. The verdict is about these problems, this limit of tokens and this temperature.

Source: pass@k as the reach of RL with verifiable rewards, Yue et al. 2025 (arXiv 2504.13837).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy.stats import binomtest

from stablerank.evaluation.measures import Values
from stablerank.evaluation.statistics import Interval, mean_interval, paired_difference

NEVER, SATURATED, LITTLE = 0.01, 0.95, 0.05


@dataclass(frozen=True)
class Headroom:
    """The verdict, why in one sentence, and the rule that gave it."""

    verdict: Literal["none", "saturated", "little", "some"]
    sentence: str
    rule: str
    pass_at_1: Interval
    pass_at_k: Interval
    gap: Interval
    k: int


def judge_headroom(pass_rates: Mapping[int, Values]) -> Headroom:
    """The verdict from sampled pass rates by k, of which 1 must be one; DataError when no problem is scorable."""
    k = max(pass_rates)
    once, often = (mean_interval(pass_rates[tries].values_P) for tries in (1, k))
    gap = paired_difference(pass_rates[1].values_P, pass_rates[k].values_P)
    solved = sum(value > 0 for value in pass_rates[k].values_P)
    if binomtest(solved, often.problems).proportion_ci(method="exact").low < NEVER:
        rule = f"the share of problems with a right sample has a lower bound below {NEVER:.0%}"
        return Headroom("none", _none(solved, often.problems), rule, once, often, gap, k)
    if once.value == 1 or once.low >= SATURATED:
        rule = f"every sample is right, or the lower bound of pass@1 is at least {SATURATED:.0%}"
        return Headroom("saturated", "saturated: the model is right already", rule, once, often, gap, k)
    if k > 1 and (gap.value == 0 or gap.high < LITTLE):
        sentence = f"little to elicit: {k} tries reach hardly more than one"
        rule = f"pass@{k} minus pass@1 is 0, or its upper bound is below {100 * LITTLE:.0f} points"
        return Headroom("little", sentence, rule, once, often, gap, k)
    sentence = f"headroom: {k} tries reach more than one does" if k > 1 else "neither never nor always right"
    return Headroom("some", sentence, "none of the warnings applies", once, often, gap, k)


def _none(solved: int, problems: int) -> str:
    if not solved:
        return "no headroom for RL: the model never samples a right answer"
    return f"no headroom for RL: right answers to {solved} of {problems} problems are within noise of none"
