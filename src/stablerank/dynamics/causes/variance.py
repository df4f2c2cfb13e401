"""Causes that leave the policy nothing to learn from: rewards that do not differ where they are compared.

GRPO learns from differences inside a group. Three ways to have none at every step are told apart: one scorable
completion a group, the same reward everywhere, and differences between prompts alone.

Validity: a run that ends with every group alike has succeeded (or died) on the way; only runs that began so are named.
TRL counts the groups with one scorable completion as groups with variance (its deviation of one value is NaN, and NaN
is not 0), so its ``frac_reward_zero_std`` is 0 there; the gradient of exactly 0 gives it away.
"""

import math

from stablerank.dynamics.causes.diagnosis import Diagnosis
from stablerank.dynamics.causes.facts import Facts
from stablerank.dynamics.causes.series import shown, shown_share

NEARLY_ALL = 0.9
"""Share of groups: what is left over teaches too little to matter, and a stray group must not hide the fault."""
NO_GRADIENT = 1e-6
"""Gradient norm or advantage below which a step did nothing; smallest seen in a learning run of the zoo: 0.02."""
MOSTLY_CUT = 0.75
"""Share of answers cut at the limit from which too few are left to blame the verifier."""
FORMATTED = 0.2
"""Share of answers in the format from which a verifier has something to read."""


def one_sample_groups(facts: Facts) -> Diagnosis | None:
    """Groups with one scorable completion: nothing to compare it with."""
    if math.isfinite(facts.lone):
        if facts.lone < NEARLY_ALL:
            return None
        evidence = f"{shown_share(facts.lone)} of the groups have at most one completion with a reward"
    elif (idle := _idle_with_variance(facts)) is not None:
        evidence = idle
    else:
        return None
    return Diagnosis(
        "one_sample_groups",
        "Groups hold one completion that can be scored, so there is nothing to compare it with and every advantage "
        "is 0.",
        f"{evidence}. Rule: at least {shown_share(NEARLY_ALL)} of the groups; without completions on record, a "
        "gradient of 0 at every step although rewards differ and no group is reported without variance.",
        "Make the reward return a number, and not None, for most completions of a group (0 for a wrong answer is a "
        "verdict), or raise num_generations.",
        facts.first_step,
        "problem",
    )


def _idle_with_variance(facts: Facts) -> str | None:
    """Evidence from the log alone: rewards differ, no group is without variance, and yet nothing moves."""
    deviation, alike, truncated = facts.get("reward_std"), facts.get("zero_std"), facts.get("truncated")
    moved = facts.get("grad_norm") or facts.get("advantage_scale")
    if deviation is None or moved is None or moved.largest > NO_GRADIENT or deviation.peak <= 0:
        return None
    # Truncated completions may be masked, which makes every gradient 0 as well.
    if (alike is not None and alike.largest > 1 - NEARLY_ALL) or (truncated is not None and truncated.closing > 0.5):
        return None
    return f"the gradient is 0 at each of {len(moved)} steps, while rewards deviate by {shown(deviation.opening)}"


def constant_reward(facts: Facts) -> Diagnosis | None:
    """The same reward at every step, above 0."""
    value = _constant(facts)
    if value is None or value <= 0:
        return None
    return Diagnosis(
        "reward_constant",
        f"Every completion gets the same reward, {shown(value)}, so there is nothing to learn: either the reward does "
        "not look at the answer, or every answer already earns it in full.",
        _constant_evidence(facts, value),
        "Score a few answers by hand, right and wrong ones, with `stablerank inspect-reward`; if the reward tells "
        "them apart, train on harder problems.",
        facts.first_step,
        "problem",
    )


def rejecting_verifier(facts: Facts) -> Diagnosis | None:
    """No completion ever earns anything, though there are whole ones."""
    value, truncated = _constant(facts), facts.get("truncated")
    # Where most are cut at the limit there was little to accept; that limit is a cause of its own.
    if value is None or value > 0 or (truncated is not None and truncated.value_S.mean() >= MOSTLY_CUT):
        return None
    return Diagnosis(
        "verifier_rejects",
        f"No completion ever earns more than {shown(value)}: {_who_is_to_blame(facts)}.",
        _constant_evidence(facts, value),
        "Score one answer that you know to be right with `stablerank inspect-reward`, and compare what the verifier "
        "reads with the answer column: format, units, type.",
        facts.first_step,
        "problem",
    )


def _who_is_to_blame(facts: Facts) -> str:
    answered, right = facts.get("answered"), max((curve.value_E.max() for curve in facts.curves), default=0.0)
    if right > 0:
        return f"the verifier rejects right answers too, for held-out pass@1 is {shown(right)}"
    if answered is None:
        return "either the verifier rejects everything, or no answer is right or in the format it reads"
    if answered.opening < FORMATTED:
        return f"only {shown_share(answered.opening)} of the answers are in the format, so the verifier finds none"
    return (
        f"{shown_share(answered.opening)} of the answers are in the format, so either the verifier rejects everything "
        "or the model never gets one right"
    )


def alike_groups(facts: Facts) -> Diagnosis | None:
    """Rewards differ between prompts, never inside a group."""
    alike, deviation = facts.get("zero_std"), facts.get("reward_std")
    if alike is None or deviation is None or _constant(facts) is not None or alike.value_S.min() < NEARLY_ALL:
        return None
    return Diagnosis(
        "alike_groups",
        "Completions of one prompt always get the same reward, so no group teaches anything: either sampling gives "
        "the same text each time, or each prompt is always solved or never.",
        f"at least {shown_share(float(alike.value_S.min()))} of the groups have no variance at every step, while "
        f"rewards deviate by {shown(deviation.opening)} over the batch. Rule: {shown_share(NEARLY_ALL)} of the groups "
        "at every step.",
        "Check temperature, top_k and top_p; then choose problems that the model solves sometimes, or raise "
        "num_generations.",
        facts.first_step,
        "problem",
    )


def _constant(facts: Facts) -> float | None:
    """The one reward of the whole run; None where it varies or one step is all there is."""
    reward, deviation = facts.get("reward"), facts.get("reward_std")
    if reward is None or len(reward) < 2 or not reward.is_constant:
        return None
    return None if deviation is not None and deviation.largest > 1e-6 else reward.first


def _constant_evidence(facts: Facts, value: float) -> str:
    reward = facts.columns["reward"]
    return (
        f"the mean reward is {shown(value)} and does not deviate at any of {len(reward)} logged steps. Rule: the same "
        "reward at every step, from the first on."
    )
