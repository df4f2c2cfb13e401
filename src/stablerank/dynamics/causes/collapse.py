"""Causes in a reward on hidden states that no longer tells the completions of a group apart.

Such a reward is a real number, so its groups are never quite alike and the share of groups without variance stays 0;
what collapses is its deviation inside the groups relative to its level. GRPO divides by that deviation, so that what is
left of it is trained on at full strength. Why it collapsed is told from what else is on record; the first that fits is
named:

1. the completions are the same texts;
2. the texts are longer than the window, and what differs lies behind it;
3. the first token, or tokens of the template, own the leading direction, so that the rank is about them;
4. none of these: different texts whose states spread alike.

And a policy far from its reference, where nothing else tells of harm: training without gold answers has no other sign.

Validity: a collapse is told against the run's own beginning. In a run that learns to give every answer right the texts
become the same too; where held-out answers did not get worse, these causes are warnings.
"""

from dataclasses import dataclass

import numpy as np

from stablerank.dynamics.causes.diagnosis import Diagnosis, Severity
from stablerank.dynamics.causes.facts import Facts
from stablerank.dynamics.causes.harm import CLEAR, harms
from stablerank.dynamics.causes.series import Series, shown, shown_share
from stablerank.dynamics.causes.update import FAR_KL

COLLAPSED = 0.2
"""Share of its opening: deviation inside the groups swings by a factor of 2 between batches of 32."""
LEVELLED = 1e-3
"""Deviation over level at which a reward is flat from the first step on: a stable rank of 2 within 0.002."""
MOST = 0.5
"""Share of completions, of texts or of the leading direction's energy: more than half is what a mean is about."""
LEAP = 0.5
"""Share of the largest KL that one logged step must add for the size of the step to be the cause."""


@dataclass(frozen=True)
class Collapse:
    """A spread that went, and since when."""

    spread: Series
    first_step: int

    @property
    def words(self) -> str:
        """What happened, in words."""
        opening, closing = self.spread.opening, self.spread.closing
        went = f"fell from {shown_share(opening)}" if opening > LEVELLED else "was never above a thousandth"
        return f"the reward's deviation inside the groups {went} of its level ({closing:.2g} of it at the end)"

    @property
    def evidence(self) -> str:
        """The numbers, and the rule."""
        return (
            f"deviation over level {shown(self.spread.opening)} at first, {shown(self.spread.closing)} at the end. "
            f"Rule: {shown_share(COLLAPSED)} of its beginning or less for good, or {LEVELLED:g}"
        )


def collapse_of(facts: Facts) -> Collapse | None:
    """The collapse of a reward on hidden states; None where its spread lasted."""
    spread = facts.get("spread")
    if spread is None:
        return None
    floor = max(LEVELLED, COLLAPSED * spread.opening)
    first_step = spread.since(spread.value_S <= floor)
    has_fallen = spread.opening <= LEVELLED or spread.change <= -CLEAR
    return Collapse(spread, first_step) if first_step is not None and has_fallen else None


def identical_completions(facts: Facts) -> Diagnosis | None:
    """The texts of a group are the same."""
    share = _after(facts, "duplicates")
    if share < MOST:
        return None
    return _diagnosis(
        facts,
        "identical_completions",
        f"{shown_share(share)} of the completions stand more than once in their group",
        "The policy gives one text to each prompt",
        f"at least {shown_share(MOST)} of the completions",
        "Go back to a checkpoint before that step; raise the temperature or trainer.beta, or lower the learning rate.",
    )


def cut_by_window(facts: Facts) -> Diagnosis | None:
    """What differs lies behind the window."""
    share = _after(facts, "cut_by_window")
    if share < MOST or _after(facts, "duplicates") >= MOST:
        return None
    return _diagnosis(
        facts,
        "cut_by_window",
        f"{shown_share(share)} of the texts are longer than the window",
        "The window ends before the completions differ",
        f"at least {shown_share(MOST)} of the texts",
        "Raise reward.window above the length of prompt and completion, or take shorter prompts.",
    )


def template_owns(facts: Facts) -> Diagnosis | None:
    """The first token or the template owns the leading direction."""
    owners = {
        "the first token holds": _after(facts, "sigma1_first"),
        "special tokens hold": _after(facts, "sigma1_special"),
    }
    owner, share = max(owners.items(), key=lambda one: one[1])
    if share < MOST or max(_after(facts, "duplicates"), _after(facts, "cut_by_window")) >= MOST:
        return None
    return _diagnosis(
        facts,
        "template_owns",
        f"{owner} {shown_share(share)} of the energy of the leading direction",
        "The reward is about the beginning of the text or its template",
        f"at least {shown_share(MOST)} of that energy",
        "Set reward.scope=response, so that template and beginning do not count.",
    )


def alike_states(facts: Facts) -> Diagnosis | None:
    """Different texts, alike states."""
    others = ("duplicates", "cut_by_window", "sigma1_first", "sigma1_special")
    if max(_after(facts, name) for name in others) >= MOST:
        return None
    near = facts.get("near_duplicates")
    texts = "" if near is None else f", with {shown_share(near.closing)} that share nine tokens of ten with another"
    return _diagnosis(
        facts,
        "alike_states",
        f"the completions differ{texts}",
        "The states of different completions spread alike",
        "none of the other reasons on record",
        "Read a few groups with `stablerank inspect-reward`; if the texts are near copies, raise the temperature or "
        "trainer.beta, otherwise this reward has no more to say: stop there, or add the outcome.",
    )


def far_policy(facts: Facts) -> Diagnosis | None:
    """A large KL: the step or the leash."""
    kl = facts.get("kl")
    if kl is None or facts.get("spread") is None or kl.closing < FAR_KL:
        return None
    leap = float(np.diff(kl.value_S).max(initial=0.0)) / kl.largest
    reached = kl.since(kl.value_S >= FAR_KL)
    cause, remedy = _too_fast(facts) if leap >= LEAP else _too_free(facts)
    return Diagnosis(
        "far_policy",
        f"The policy went {shown(kl.closing)} nats a token away from the reference {cause}.",
        f"KL {shown(kl.closing)} at the end, {shown_share(leap)} of its largest in one logged step. Rule: at least "
        f"{FAR_KL:g}; {shown_share(LEAP)} in one step is a leap.",
        f"{remedy}, or stop before it gets there: so far out a reward without gold answers means nothing until "
        "held-out answers say that it does.",
        reached,
        "warning",
    )


def _too_fast(facts: Facts) -> tuple[str, str]:
    rate = facts.get("learning_rate")
    used = "" if rate is None else f" ({shown(rate.largest)})"
    return f"in one leap, so the learning rate{used} is too high", "Lower the learning rate to a third"


def _too_free(facts: Facts) -> tuple[str, str]:
    beta = facts.setting("trainer", "beta")
    used = "" if beta is None else f" ({beta:g})"
    return f"step by step, so beta{used} is too low for a run of this length", "Raise beta threefold"


def _after(facts: Facts, name: str) -> float:
    """The closing value of a share, 0 where it is not on record."""
    found = facts.get(name)
    return 0.0 if found is None else found.closing


def _diagnosis(facts: Facts, cause: str, seen: str, why: str, rule: str, remedy: str) -> Diagnosis | None:
    collapse = collapse_of(facts)
    if collapse is None:
        return None
    severity: Severity = "warning" if facts.curves and not harms(facts) else "problem"
    return Diagnosis(
        cause,
        f"{why}: {collapse.words}, and {seen}.",
        f"{collapse.evidence}; {seen}. Rule: {rule}.",
        remedy,
        collapse.first_step,
        severity,
    )
