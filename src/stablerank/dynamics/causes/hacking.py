"""Causes in what the reward pays for: training reward holds or rises while the policy gets worse.

All four read one thing: a harm (harm.py) over whose course the reward did not fall. What else moved over that course
says which it is, and the first that fits is named:

1. completions grew, or began to be cut at the limit, and long ones earn more: the reward pays for length or for steps;
2. completions shrank, and short ones earn more: the penalty on length outweighs the answer;
3. the KL ran away: nothing held the policy near the text on which the reward means something;
4. none of these: the reward itself is wrong about the answers that it now sees.

That long or short ones earn more is read from the correlation of reward and length inside the groups; where it was not
recorded, growth alone counts, and shrinking from a half on.

Validity: 3 and 4 have one phenomenon in common, a reward that is right near the reference and wrong far from it. They
differ in how far the policy went, and each sentence names the other.
"""

import math
from dataclasses import dataclass

from stablerank.dynamics.causes.diagnosis import Diagnosis
from stablerank.dynamics.causes.facts import Facts
from stablerank.dynamics.causes.harm import CLEAR, CUT, Harm, harms
from stablerank.dynamics.causes.series import Series, shown, shown_share
from stablerank.dynamics.causes.update import FAR_KL

GROWN = 1.25
"""Times its length over the course of the harm: twice the noise of a mean over five batches of 32, some 12 %."""
SHRUNK = 0.75
"""Share of its length, where short answers are seen to earn more."""
SHRUNK_ALONE = 0.5
"""Share of its length, where the correlation is not on record: half the tokens cannot hold the same working."""
PAYS = 0.3
"""Correlation of reward and length inside groups: below it length explains less than a tenth of the reward."""


@dataclass(frozen=True)
class Hack:
    """A harm over whose course the reward did not fall."""

    harm: Harm
    reward: Series

    @property
    def words(self) -> str:
        """What happened, in words."""
        reward = self.reward
        rose = f"the training reward went from {shown(reward.opening)} to {shown(reward.after(self.harm.lost))}"
        return f"{rose} while {self.harm.words}"


def hack_of(facts: Facts) -> Hack | None:
    """The weightiest harm that the reward did not notice; held-out answers have the last word where there are any."""
    reward = facts.get("reward")
    if reward is None or len(reward) < 2 or reward.change_to_peak() < CLEAR:
        return None
    for harm in (found for found in harms(facts) if not facts.curves or found.sign == "held_out"):
        if reward.course(harm.well, harm.lost) > -CLEAR:
            return Hack(harm, reward)
    return None


def paid_by_length(facts: Facts) -> Diagnosis | None:
    """The reward grows with the number of steps or tokens."""
    hack = hack_of(facts)
    if hack is None or not _grew(facts, hack.harm):
        return None
    length = facts.columns["length"]
    return Diagnosis(
        "step_spam",
        f"The reward pays for length: {hack.words}, and completions grew from {shown(length.near(hack.harm.well))} to "
        f"{shown(length.after(hack.harm.lost))} tokens.",
        f"{_course(hack)}{_pay(facts, hack.harm)}. Rule: over that course completions grow by a factor of {GROWN:g} or "
        f"{shown_share(CUT)} more of them are cut at the limit, with a correlation of at least {PAYS:g} where it is "
        "known.",
        "Do not sum over steps: use the credit rule `mean_to_go` (the mean of the step rewards to come), or pay the "
        "mean of the steps; add the outcome to the reward.",
        hack.harm.lost,
        "problem",
    )


def strong_length_penalty(facts: Facts) -> Diagnosis | None:
    """The reward is had by saying little."""
    hack = hack_of(facts)
    if hack is None or not _shrank(facts, hack.harm):
        return None
    length = facts.columns["length"]
    return Diagnosis(
        "length_penalty_too_strong",
        f"The reward is had by saying little: {hack.words}, and completions shrank from "
        f"{shown(length.near(hack.harm.well))} to {shown(length.closing)} tokens.",
        f"{_course(hack)}{_pay(facts, hack.harm)}. Rule: from there to the end completions shrink to "
        f"{shown_share(SHRUNK)} or less with a correlation of at most {-PAYS:g}, or to {shown_share(SHRUNK_ALONE)} "
        "where it is not known.",
        "Lower the weight of the length penalty until a right answer of ordinary length earns more than an empty one, "
        "or let only the last tokens before the limit cost (`buffer` of the reward `length`).",
        hack.harm.lost,
        "problem",
    )


def low_beta(facts: Facts) -> Diagnosis | None:
    """The policy ran away from the reference to where the reward means nothing."""
    hack, kl = hack_of(facts), facts.get("kl")
    if hack is None or kl is None or not _ran_away(kl, hack.harm) or _length_moved(facts, hack.harm):
        return None
    beta = facts.setting("trainer", "beta")
    used = "" if beta is None else f" ({beta:g})"
    return Diagnosis(
        "beta_too_low",
        f"beta{used} is too low for this reward: the policy ran {shown(_distance(kl, hack.harm))} nats a token away "
        f"from the reference, and {hack.words}; a reward that cannot be misled would need no beta.",
        f"{_course(hack)}; KL {shown(_distance(kl, hack.harm))} from there on. Rule: a KL of at least {FAR_KL:g}, and "
        "no change of length that explains it.",
        "Raise beta until the KL stays below some tenths, stop at the best held-out step, or add the outcome to the "
        "reward.",
        hack.harm.lost,
        "problem",
    )


def misled_reward(facts: Facts) -> Diagnosis | None:
    """The reward rises on answers that are worse."""
    hack, kl = hack_of(facts), facts.get("kl")
    if hack is None or _length_moved(facts, hack.harm) or (kl is not None and _ran_away(kl, hack.harm)):
        return None
    distance = "the KL was not recorded" if kl is None else f"KL {shown(_distance(kl, hack.harm))} from there on"
    doubt = (
        "it is wrong about the answers it now sees"
        if kl is not None
        else "either it is wrong about these answers, or beta is too low to keep the policy from them"
    )
    return Diagnosis(
        "reward_misled",
        f"The reward was misled: {hack.words}; {doubt}.",
        f"{_course(hack)}; {distance}. Rule: a reward that does not fall while the policy gets worse, no change of "
        f"length that explains it, and a KL below {FAR_KL:g}.",
        f"Stop near step {hack.harm.well}, the last that was well; add the outcome to the reward, and read the answers "
        "that it pays best with `stablerank inspect-reward`.",
        hack.harm.lost,
        "problem",
    )


def _course(hack: Hack) -> str:
    change = hack.reward.course(hack.harm.well, hack.harm.lost)
    return (
        f"from step {hack.harm.well} to {hack.harm.lost} the reward changed by {shown(change)} standard errors (a fall "
        f"would be {-CLEAR:g} or less)"
    )


def _grew(facts: Facts, harm: Harm) -> bool:
    length, truncated, pays = facts.get("length"), facts.get("truncated"), _correlation(facts, harm)
    if length is None or pays < PAYS:  # NaN, where it is not known, is not below
        return False
    is_longer = length.after(harm.lost) >= GROWN * length.near(harm.well)
    return is_longer or (truncated is not None and truncated.after(harm.lost) >= truncated.near(harm.well) + CUT)


def _shrank(facts: Facts, harm: Harm) -> bool:
    length, pays = facts.get("length"), _correlation(facts, harm)
    if length is None or pays > -PAYS:
        return False
    return length.closing <= (SHRUNK_ALONE if math.isnan(pays) else SHRUNK) * length.near(harm.well)


def _length_moved(facts: Facts, harm: Harm) -> bool:
    return _grew(facts, harm) or _shrank(facts, harm)


def _distance(kl: Series, harm: Harm) -> float:
    return max(kl.after(harm.lost), kl.closing)


def _ran_away(kl: Series, harm: Harm) -> bool:
    return _distance(kl, harm) >= FAR_KL


def _correlation(facts: Facts, harm: Harm) -> float:
    """Of reward and length inside groups over the course of the harm; NaN where it is not known."""
    found = facts.get("reward_length")
    return math.nan if found is None else found.between(harm.well, harm.lost)


def _pay(facts: Facts, harm: Harm) -> str:
    pays = _correlation(facts, harm)
    return "" if math.isnan(pays) else f"; reward and length correlate by {shown(pays)} inside groups"
