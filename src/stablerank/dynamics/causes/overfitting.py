"""Overfitting: the held-out loss has risen from its best while the loss of training fell on."""

import math
from dataclasses import replace

from stablerank.dynamics.causes.diagnosis import Diagnosis
from stablerank.dynamics.causes.facts import Facts
from stablerank.dynamics.causes.series import shown
from stablerank.dynamics.overfitting import Moment, overfits_since

CLEAR_RISE = 0.05
"""Share of the best by which a held-out loss without an interval must have risen: TRL's own evaluations have none."""


def overfitting(facts: Facts) -> Diagnosis | None:
    """The rule of `overfits_since`, on a curve with or without intervals."""
    moments = [_bounded(moment) for moment in facts.losses]
    since = overfits_since(moments)
    if since is None:
        return None
    best, last = next(moment for moment in moments if moment.step == since), moments[-1]
    measured = not math.isnan(facts.losses[-1].held_out_low)
    return Diagnosis(
        "overfitting",
        f"The run overfits since step {since}: its held-out loss rose from {shown(best.held_out)} to "
        f"{shown(last.held_out)} by step {last.step}, while that of training fell from {shown(best.train)} to "
        f"{shown(last.train)}.",
        f"held-out loss at the end at least {shown(last.held_out_low)}, best {shown(best.held_out)}. Rule: the lower "
        "end of the last interval above the best point, and a training loss that is lower at the end; a loss without "
        f"an interval counts less {CLEAR_RISE:.0%}.",
        f"Go back to the checkpoint at step {since}; train for less long, on more examples, or at a lower rate. "
        "overfitting.action=stop ends such a run by itself.",
        since,
        "problem" if measured else "warning",
    )


def _bounded(moment: Moment) -> Moment:
    low = (1 - CLEAR_RISE) * moment.held_out if math.isnan(moment.held_out_low) else moment.held_out_low
    return replace(moment, held_out_low=low)
