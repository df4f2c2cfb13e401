"""What an alarm is, and the eight there are: the signal each reads, when it counts, what it means and what to change.

Contract: one form for all. An alarm reads one signal as it is or against the run's own start (ratio, difference; the
start is the median of its first `BASELINE` logged values), takes the median of the last ``window`` values, and is up
while that stays past its threshold for ``hold`` values in a row and its guard holds. Structure stands here; threshold,
window and hold stand in thresholds.json with where they come from, written by benchmarks/alarm_calibration.py.

Validity: thresholds were set on runs of one embedded model. Ratios, differences and shares carry over to other models
better than the plain values do, which are the KL divergence and the stable rank.

Chain of a collapse and its hyperparameters: gernim/lora-reward-density. Left out on purpose: any rule on held-out
accuracy, which is what the alarms are to run ahead of, and learned detectors, whose reasons cannot be read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Against = Literal["value", "ratio", "difference"]
"""How a signal is read: itself, divided by its start, or less its start."""
Direction = Literal["above", "below"]

BASELINE = 5
"""Logged values of a signal whose median is its start."""
THRESHOLDS = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True)
class Guard:
    """What must hold besides: the signal, read like the alarm's own, at ``bound`` or on the named side of it."""

    signal: str
    against: Against
    direction: Direction
    bound: float


@dataclass(frozen=True)
class Alarm:
    """One way to go wrong. ``says`` takes the value; ``least_start`` is the start below which the alarm is off."""

    name: str
    signal: str
    against: Against
    direction: Direction
    says: str
    cause: str
    remedy: str
    guard: Guard | None = None
    least_start: float | None = None

    @property
    def sign(self) -> int:
        """1 where larger is worse, -1 where smaller is."""
        return 1 if self.direction == "above" else -1


@dataclass(frozen=True)
class Rule:
    """An alarm with its numbers; ``window`` is odd, so that the median is one of the values."""

    alarm: Alarm
    threshold: float
    window: int
    hold: int


ALARMS = (
    Alarm(
        "advantage_spike",
        "advantage_scale",
        "ratio",
        "above",
        "the advantage scale is {value} times that of the start",
        "every gradient grows with the advantages, and sums of step rewards grow with the number of steps",
        "Credit steps by a rule that does not sum them (credit.rule=mean_to_go), or lower optimiser.learning_rate.",
        # Advantages below deviation 1 that grow are groups that begin to differ, not a spike.
        Guard("advantage_scale", "value", "above", 1.0),
    ),
    Alarm(
        "length_drift",
        "length_of_cap",
        "value",
        "above",
        "the mean completion takes up {value} of max_completion_length, and it has grown",
        "more text is paid for than answers need, or the model no longer ends its answers",
        "Look for pay per step or per token in reward and credit, and add a `length` component to the reward.",
        Guard("length_of_cap", "difference", "above", 0.1),
    ),
    Alarm(
        "truncation",
        "truncated",
        "difference",
        "above",
        "the share of completions cut at max_completion_length is {value} above that of the start",
        "a completion that is cut has no answer, so its reward says little about its tokens",
        "Stop the growth first (see length_drift); raise trainer.max_completion_length only if the texts are sound.",
    ),
    Alarm(
        "format_loss",
        "answered",
        "difference",
        "below",
        "the share of completions with an answer in its format has changed by {value} since the start",
        "without the format a verifier finds no answer, right or wrong",
        "Read the latest completions; reward the answer itself beside its steps, or raise trainer.beta.",
        least_start=0.5,
    ),
    Alarm(
        "variance_death",
        "zero_std",
        "value",
        "above",
        "a share {value} of the groups scores all its completions alike, and the reward has not risen",
        "groups without a difference teach nothing: all their advantages are zero",
        "Choose problems that are sometimes solved, sample more a group (trainer.num_generations) or hotter.",
        # Healthy learning ends with equal groups too, but with a reward above its start.
        Guard("reward", "difference", "below", 0.0),
    ),
    Alarm(
        "kl_spike",
        "kl",
        "value",
        "above",
        "the KL divergence from the reference stands at {value}",
        "the policy has left the region in which the reward was made or trained",
        "Lower optimiser.learning_rate or raise trainer.beta, and check the texts against a second judge.",
    ),
    Alarm(
        "reward_length",
        "reward_length",
        # A base that answers too early is right to be paid for length, so healthy runs start high.
        "difference",
        "above",
        "inside the groups reward and length correlate {value} more than at the start, and completions have grown",
        "longer completions are paid more and more, so length is learnt in place of answers",
        "Use a reward or credit that does not add up over steps or tokens, or add a `length` component.",
        Guard("length_of_cap", "difference", "above", 0.1),
    ),
    Alarm(
        "rank_collapse",
        "stable_rank",
        "value",
        "below",
        "the mean stable rank of the updates is down to {value}",
        "the updates of nearly all matrices point in one direction each, as when one shortcut is learnt",
        "Lower optimiser.learning_rate; look at the geometry section of the report for the matrices concerned.",
    ),
)
BY_NAME: Mapping[str, Alarm] = {alarm.name: alarm for alarm in ALARMS}


def rules(thresholds: Mapping[str, float] | None = None) -> tuple[Rule, ...]:
    """Every alarm with its recorded numbers; ``thresholds`` replaces some, by the name of the alarm."""
    chosen, recorded = thresholds or {}, recorded_thresholds()["alarms"]
    return tuple(
        Rule(alarm, float(chosen.get(alarm.name, row["threshold"])), row["window"], row["hold"])
        for alarm in ALARMS
        for row in [recorded[alarm.name]]
    )


def recorded_thresholds() -> dict[str, Any]:
    """Thresholds.json as it is: ``origin`` (runs, seeds, commit, date) and ``alarms`` by name."""
    found: dict[str, Any] = json.loads(THRESHOLDS.read_text())
    return found
