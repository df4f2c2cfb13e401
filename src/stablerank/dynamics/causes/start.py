"""Causes that are there before the first update: a wrong reference and a length limit that cuts answers off."""

from stablerank.dynamics.causes.diagnosis import Diagnosis
from stablerank.dynamics.causes.facts import Facts
from stablerank.dynamics.causes.series import MOST_ROWS, Series, shown, shown_share

STANDING_KL = 0.01
"""Nats a token at step 1, where policy and reference are one model and only rounding is left. PEFT's initialisers that
move TRL's reference leave 0.1 (OLoRA, a toy model) to 5 (PiSSA, the zoo)."""
UNGROWN = 0.8
"""Where the first row is a mean over several steps, its share of the next rows' KL from which it did not grow."""
CUT_SHARE = 0.15
"""Share of answers cut at the limit over the first rows: one in seven is scored on what it could not say, and in most
groups of eight there is one."""
AT_ONCE = 0.5
"""Share of that which the first row must have: it has seen no update, and a cap that is too short cuts it already."""


def wrong_reference(facts: Facts) -> Diagnosis | None:
    """KL to the reference before any update moved the policy."""
    kl = facts.get("kl")
    if kl is None or kl.first < STANDING_KL:
        return None
    if facts.first_step > 1 and not _stands(kl):
        return None
    place = (
        "at step 1, before any update"
        if facts.first_step <= 1
        else f"over steps 1 to {facts.first_step} together, and did not grow from there"
    )
    doubt = "" if facts.first_step <= 1 else ", unless the first steps moved the policy at once"
    return Diagnosis(
        "wrong_reference",
        f"The reference is not the policy that training began from{doubt}: the KL between them was "
        f"{shown(kl.first)} nats a token {place}.",
        f"KL {shown(kl.first)} at the first logged step. Rule: at least {STANDING_KL} at step 1, where it must be 0; "
        f"where the first row covers several steps, also at least {UNGROWN} of the rows after it.",
        "Call `stablerank.adapters.reference.guard_reference(trainer)` before `train()`: initialisers such as PiSSA "
        'and OLoRA change the base that "adapter off" falls back to. Check the reference\'s folder, and dropout.',
        facts.first_step,
        "problem",
    )


def _stands(kl: Series) -> bool:
    following = kl.value_S[1 : 1 + kl.window]
    return bool(following.size) and kl.first >= UNGROWN * float(following.mean())


def short_cap(facts: Facts) -> Diagnosis | None:
    """Answers cut at the limit from the first step on."""
    truncated = facts.get("truncated")
    if truncated is None or truncated.opening < CUT_SHARE or truncated.first < AT_ONCE * truncated.opening:
        return None
    longest = facts.get("longest")
    cap = facts.setting("trainer", "max_completion_length") or (None if longest is None else longest.largest)
    limit = "the length limit" if cap is None else f"the length limit of {cap:.0f} tokens"
    return Diagnosis(
        "cap_too_short",
        f"{shown_share(truncated.opening)} of the answers are cut at {limit} from the first step on: "
        f"{_too_short_or_endless(facts)}.",
        f"truncated share {shown_share(truncated.first)} at the first step, {shown_share(truncated.opening)} at the "
        f"beginning, {shown_share(truncated.closing)} at the end. Rule: at least {shown_share(CUT_SHARE)} on "
        f"average over the first {MOST_ROWS} steps or fewer, and half of that average at the first.",
        "Raise max_completion_length until fewer than one answer in ten is cut; if none ever ends, check the "
        "end-of-text token and the chat template.",
        facts.first_step,
        "problem",
    )


def _too_short_or_endless(facts: Facts) -> str:
    truncated = facts.columns["truncated"]
    if truncated.opening >= 0.99:
        return "either the limit is too short for any answer, or the model never ends one"
    return "the limit is too short for what the model has to say, so it is scored on unfinished answers"
