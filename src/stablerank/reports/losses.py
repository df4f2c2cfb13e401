"""Held-out losses of a run, as records and as sentences, for objectives that are judged by a loss.

Losses are in nats a token (language modelling) or a pair (preferences).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stablerank.dynamics.overfitting import Moment
from stablerank.dynamics.overfitting import overfits_since as overfitting_rule

UNITS = {"clm": "token", "dpo": "pair"}
"""Objective to what a loss is counted by; other objectives have no held-out loss."""


@dataclass(frozen=True)
class Loss:
    """A loss in nats, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LossEvaluation:
    """One evaluation of held-out and of training examples."""

    step: int
    phase: Literal["before", "curve", "after"]
    split: str
    held_out: Loss
    train: Loss
    others: Mapping[str, Loss] = field(default_factory=dict)
    """What else the row has with an interval, by column."""


@dataclass(frozen=True)
class LossSummary:
    """What ``summary.json`` says of the held-out loss; ``change`` is after minus before on the same examples."""

    before: Loss
    after: Loss
    change: Loss
    examples: int


def loss_evaluation(row: Mapping[str, Any]) -> LossEvaluation:
    """A row of ``evaluations.jsonl``; raises KeyError, TypeError or ValueError for another kind of row."""
    held_out, train = (_loss(row, name) for name in ("loss", "loss_train"))
    names = [name.removesuffix("_low") for name in row if name.endswith("_low")]
    others = {name: _loss(row, name) for name in names if name not in ("loss", "loss_train")}
    return LossEvaluation(int(row["step"]), row["phase"], str(row["split"]), held_out, train, others)


def _loss(row: Mapping[str, Any], name: str) -> Loss:
    return Loss(*(float(row[name + end]) for end in ("", "_low", "_high")))


def loss_summary(raw: Mapping[str, Any]) -> LossSummary | None:
    """The losses of ``summary.json``; None where the run has none."""
    if "loss_change" not in raw:
        return None
    before, after, change = (
        Loss(*(float(raw[name][key]) for key in ("value", "low", "high")))
        for name in ("loss_before", "loss_after", "loss_change")
    )
    return LossSummary(before, after, change, int(raw["loss_change"]["examples"]))


def best(curve: Sequence[LossEvaluation]) -> LossEvaluation:
    """The point of the lowest held-out loss, the first of equals."""
    return min(curve, key=lambda point: point.held_out.value)


def overfits_since(curve: Sequence[LossEvaluation]) -> int | None:
    """The best point's step where the rule of dynamics/overfitting.py holds, else None."""
    return overfitting_rule([Moment(p.step, p.held_out.value, p.held_out.low, p.train.value) for p in curve])


def direction(change: Loss) -> str:
    """``lowered`` or ``raised`` when the whole interval is on one side of zero, else ``unclear``."""
    return "lowered" if change.high < 0 else "raised" if change.low > 0 else "unclear"


def headline(summary: LossSummary, unit: str) -> str:
    """The change of the held-out loss in one line."""
    opening = {"lowered": "Training lowered the held-out loss", "raised": "Training raised the held-out loss"}
    told = opening.get(direction(summary.change), "No clear change of the held-out loss:")
    return f"{told} from {nats(summary.before.value)} to {nats(summary.after.value)} nats a {unit}"


def held_out(summary: LossSummary, unit: str, split: str) -> str:
    """The numbers behind the headline, with their intervals."""
    things = "pairs" if unit == "pair" else "examples"
    before, after, change = summary.before, summary.after, summary.change
    doubt = ", so no change is a fair reading too" if direction(change) == "unclear" else ""
    return (
        f"On {summary.examples:,} {split} {things} that it never trained on, the loss is {nats(after.value)} nats a "
        f"{unit} (95 % interval {interval(after)}); before training it was {nats(before.value)} ({interval(before)}). "
        f"The change is {signed(change.value)} (95 % interval {signed_interval(change)}{doubt})."
    )


def overfitting(curve: Sequence[LossEvaluation]) -> str:
    """A sentence where the run overfits by the rule above, else empty."""
    step = overfits_since(curve)
    if step is None:
        return ""
    return (
        f"It overfits since step {step}: the held-out loss rose from {nats(best(curve).held_out.value)} to "
        f"{nats(curve[-1].held_out.value)} while that of training fell."
    )


def nats(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def interval(loss: Loss) -> str:
    """``1.01 to 1.05``."""
    return f"{nats(loss.low)} to {nats(loss.high)}"


def signed(value: float) -> str:
    """A difference, always with its sign."""
    return f"{value:+.3g}".replace("-", "\u2212")


def signed_interval(change: Loss) -> str:
    """Both ends of a difference's interval."""
    return f"{signed(change.low)} to {signed(change.high)}"
