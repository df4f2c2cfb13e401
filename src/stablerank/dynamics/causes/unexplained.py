"""What got worse without a cause that the rows would show; said, so that no run with a loss gets a clean bill."""

from stablerank.dynamics.causes.diagnosis import Diagnosis
from stablerank.dynamics.causes.facts import Facts
from stablerank.dynamics.causes.harm import LUCKY, Harm, harms


def lost_format(facts: Facts) -> Diagnosis | None:
    """Answers left the format that a verifier reads."""
    found = _first(facts, "format")
    if found is None:
        return None
    return Diagnosis(
        "format_lost",
        f"Answers left their format: {found.words} by step {found.lost}, so a verifier finds nothing to check.",
        f"{found.words}. Rule: the share halves for good.",
        "Pay for the format, or go back to a checkpoint before it was lost with a lower learning rate or a larger "
        "beta.",
        found.lost,
        "warning" if facts.curves else "problem",  # held-out answers that did not fall have the last word
    )


def unexplained_loss(facts: Facts) -> Diagnosis | None:
    """Held-out answers, or a part of the reward, got worse and no other rule says why."""
    found = _first(facts, "held_out") or _first(facts, "part")
    if found is None:
        return None
    return Diagnosis(
        "unexplained",
        f"The policy got worse: {found.words}.",
        f"{found.words}. Rule: a quarter of the best pass@1, and {LUCKY:g} standard errors, or half of a part of the "
        "reward, and no rule before this one.",
        f"The rows on record do not say why. Stop near step {found.well}; to learn the cause, log every step, with a "
        "beta above 0 (for the KL) and `log_completions`.",
        found.lost,
        "problem",
    )


def _first(facts: Facts, sign: str) -> Harm | None:
    return next((harm for harm in harms(facts) if harm.sign == sign), None)
