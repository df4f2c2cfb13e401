r"""Why a batch taught the policy nothing: one cause a group, counted, with what to change.

Contract: `zero_of_batch` returns None as soon as one group has signal. A group has signal when a completion that is
trained on has an advantage, or when the rewards of the group differ and one of them is trained on. Pure functions of
rows; the order of completions and of groups does not matter.

A group without signal has the first of these causes that holds:

1. ``masked``: all that has a reward is kept out of the loss, so that neither rewards nor texts matter.
2. ``one_sample``: fewer than two completions have a reward, and an advantage compares.
3. ``correct``: all have the highest reward. Before what the completions look like, for it kept no reward away.
4. ``empty``, ``truncated``, ``unreadable``: what they look like explains their reward better than that they are wrong.
5. ``wrong``: all have the lowest reward.
6. ``equal``: all have the same reward, and it is neither, or nothing else has been seen.

Validity: highest and lowest are those that the run itself has seen, this batch included. A run that has seen a single
reward knows neither: 1 is then called correct and 0 wrong, as verifiers have it, and the message says that a reward
function which always returns that number looks the same. An advantage below `NOISE` beside equal rewards is rounding:
TRL divides the fp32 rounding of a group's mean by 1e-4. That is no signal, but it is a gradient, which Adam scales up,
so the message tells of it. TRL's ``frac_reward_zero_std`` takes such a group for one whose rewards vary, and a group
with a single reward too, as its deviation is NaN.

Source: GRPO's advantage, DeepSeekMath (arXiv 2402.03300) 4.1.2. That the KL term acts on groups of equal rewards too is
TRL's deliberate choice.

Left out on purpose: what a record of plain TRL does not hold. Its settings are unknown, so masking is not told there,
and without completions neither are groups with a single reward.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, get_args

from stablerank.dynamics.batch import ANSWER, answered
from stablerank.runs.record import Row, RunRecord, TrainingCompletion

Cause = Literal["masked", "one_sample", "correct", "empty", "truncated", "unreadable", "wrong", "equal"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
"""In the order in which they are tried; of causes with equal counts the first names the batch."""
LABELS: Mapping[Cause, str] = {
    "masked": "kept out of the loss",
    "one_sample": "with fewer than two rewards",
    "correct": "all correct",
    "empty": "all empty",
    "truncated": "all truncated",
    "unreadable": "without a readable answer",
    "wrong": "all wrong",
    "equal": "with equal rewards",
}
"""What a message calls the groups of a cause."""
REASONS: Mapping[str, str] = {
    "masked": "Completions that run into {limit} are kept out of the loss by mask_truncated_completions; raise the "
    "length, or turn the masking off.",
    "one_sample": "An advantage compares the completions of one prompt, and at most one of them has a reward; let the "
    "reward function return a number, not None, for two or more of each prompt.",
    "correct": "All correct means that every completion got {high}, the highest reward that this run has seen; such "
    "prompts have nothing left to teach, so stop here or take harder ones.",
    "empty": "Empty completions end before their first word; look at a prompt as the model reads it, its chat template "
    "and end token first.",
    "truncated": "Truncated completions reach {limit} before their end; raise it, or ask for shorter answers.",
    "unreadable": "A readable answer has the form {answer}; show the form in the prompt, or fine-tune on some answers "
    "that have it, or if answers of this task look otherwise give their pattern.",
    "wrong": "All wrong means that every completion got {low}, the lowest reward that this run has seen; give the "
    "reward function a right answer by hand to see that it accepts one, then take easier prompts, more "
    "num_generations, or a reward with partial credit.",
    "equal": "The completions of each prompt share one reward, and this run has seen {low} to {high}; let the reward "
    "tell better from worse answers to one prompt, or raise temperature or num_generations.",
    "constant": "Every reward of this run so far is {low}; make the reward function depend on the completion.",
}
"""What the groups of a cause have in common, and what to change; "constant" is "equal" where nothing else was seen."""
EQUAL = 5e-7
"""Difference of two rewards, relative where they exceed 1, that fp32 leaves of one number."""
NOISE = EQUAL / 1e-4
"""Advantage, for a reward of size 1, that TRL's division makes of `EQUAL`."""
HARMLESS = 1e-6
"""Largest advantage by rounding that is not worth a sentence."""

Completions = Sequence[TrainingCompletion]
Span = tuple[float, float]


@dataclass(frozen=True)
class Setting:
    """What a cause depends on beside the completions; None where it is unknown."""

    masks_truncated: bool = False
    """TRL's ``mask_truncated_completions``."""
    beta: float | None = None
    longest: int | None = None
    """TRL's ``max_completion_length``."""
    answer: str | None = ANSWER
    """Pattern of a readable answer; None tells no unreadable answer from a wrong one."""
    seen: Span | None = None
    """The smallest and the largest reward of the run so far."""


@dataclass(frozen=True)
class Zero:
    """Steps without any learning signal."""

    first_step: int
    last_step: int
    cause: Cause
    """Of most groups."""
    counts: Mapping[Cause, int]
    """Groups of each cause, all steps together; empty where a log row is all that is known."""
    differ: bool
    """Whether rewards differ between the groups of a step."""
    rounding: float
    """The largest advantage that rounding left."""
    setting: Setting
    """With the rewards of these steps among those seen."""

    @property
    def groups(self) -> int:
        """How many groups, all of them without signal."""
        return sum(self.counts.values())

    @property
    def message(self) -> str:
        """What happened, how often, and what to change."""
        parts = (_head(self), _reason(self), _doubt(self), _between(self), _rounding(self), _pull(self))
        return " ".join(part for part in parts if part)


def causes_of_batch(completions: Completions, setting: Setting) -> Counter[Cause | None]:
    """How many groups of one step have which cause; None counts those with signal."""
    setting = replace(setting, seen=widened(setting.seen, _rewards(completions)))
    by_group = sorted(completions, key=lambda one: one.group)
    return Counter(_cause(list(group), setting) for _, group in groupby(by_group, lambda one: one.group))


def zero_of_batch(completions: Completions, setting: Setting) -> Zero | None:
    """Why the completions of one step teach nothing; None if a group has signal, or there is no group."""
    counts = causes_of_batch(completions, setting)
    if None in counts or not counts:
        return None
    named = {cause: counts[cause] for cause in CAUSES if counts[cause]}
    rewards, step = _rewards(completions), completions[0].step
    differ = bool(rewards) and not _same(min(rewards), max(rewards))
    trained = [one.advantage for one in _trained(completions, setting) if math.isfinite(one.advantage)]
    rounding = max(map(abs, trained), default=0.0)
    setting = replace(setting, seen=widened(setting.seen, rewards))
    return Zero(step, step, max(named, key=named.__getitem__), named, differ, rounding, setting)


def zeros_of_record(record: RunRecord, pattern: str = ANSWER) -> list[Zero]:
    """Every stretch of steps without signal, in order; neighbours with one cause are one stretch.

    Read from the completions, and where those were not kept from the log. ``pattern`` is what a readable answer holds;
    for a run of TRL's, whose task is unknown, it counts only if some completion of the record holds it.
    """
    setting = _setting_of(record, pattern)
    batches = {step: list(group) for step, group in groupby(record.completions, lambda one: one.step)}
    rows = {int(row["step"]): row for row in record.steps}
    steps = sorted({*batches, *(step for step, row in rows.items() if "frac_reward_zero_std" in row)})
    found = [_zero_of_step(batches.get(step), rows.get(step, {}), setting) for step in steps]
    stretches = [list(stretch) for _, stretch in groupby(found, lambda zero: zero and zero.cause)]
    return [_joined([zero for zero in stretch if zero]) for stretch in stretches if stretch[0]]


def widened(seen: Span | None, rewards: Iterable[float]) -> Span | None:
    """The smallest and largest of a span and further rewards; None while there is no reward."""
    every = [*(seen or ()), *rewards]
    return (min(every), max(every)) if every else None


def _cause(group: Completions, setting: Setting) -> Cause | None:
    rewards, trained = _rewards(group), _trained(group, setting)
    if not trained:
        return "masked"
    size = max(1.0, *map(abs, rewards)) if rewards else 1.0
    if any(abs(one.advantage) > NOISE * size for one in trained):
        return None
    if len(rewards) < 2:
        return "one_sample"
    if not _same(min(rewards), max(rewards)):
        return None if _rewards(trained) else "masked"
    extreme = _extreme(rewards[0], setting.seen)
    return "correct" if extreme == "correct" else _look(group, setting.answer) or extreme


def _look(group: Completions, answer: str | None) -> Cause | None:
    """What all completions look like, if that explains an equal reward."""
    texts = [one.text for one in group]
    if not any(text.strip() for text in texts):
        return "empty"
    if all(one.truncated for one in group):
        return "truncated"
    return "unreadable" if answer is not None and answered(texts, answer) == 0 else None


def _extreme(reward: float, seen: Span | None) -> Cause:
    """Where a reward stands among those seen; verifiers' 1 and 0 while it stands alone."""
    low, high = seen or (reward, reward)
    if _same(low, high):
        return "correct" if reward == 1 else "wrong" if reward == 0 else "equal"
    return "correct" if _same(reward, high) else "wrong" if _same(reward, low) else "equal"


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=EQUAL, abs_tol=EQUAL)


def _trained(completions: Completions, setting: Setting) -> list[TrainingCompletion]:
    """Those that the loss does not leave out."""
    return [one for one in completions if not (one.truncated and setting.masks_truncated)]


def _rewards(completions: Completions) -> list[float]:
    return [one.reward for one in completions if math.isfinite(one.reward)]


def _setting_of(record: RunRecord, pattern: str) -> Setting:
    trainer = record.settings.get("trainer", {})
    texts = [one.text for one in record.completions]
    is_known = record.writer == "stablerank" or answered(texts, pattern) > 0
    means = [mean for row in record.steps if math.isfinite(mean := _number(row, "reward"))]
    return Setting(
        masks_truncated=bool(trainer.get("mask_truncated_completions", False)),
        beta=trainer.get("beta"),
        longest=trainer.get("max_completion_length"),
        answer=pattern if is_known else None,
        seen=widened(None, _rewards(record.completions) or means),
    )


def _zero_of_step(batch: Completions | None, row: Row, setting: Setting) -> Zero | None:
    # Of step rewards a run of ours keeps the advantage of the last token; its log knows of the others.
    if _number(row, "advantage_scale") > NOISE:
        return None
    if not batch:
        return _zero_of_log(row, setting)
    # TRL's completions do not say whether they were cut; its log does where all were.
    is_cut = _number(row, "completions/clipped_ratio") == 1
    return zero_of_batch([replace(one, truncated=True) for one in batch] if is_cut else batch, setting)


def _zero_of_log(row: Row, setting: Setting) -> Zero | None:
    """As far as TRL's means over a step tell; they are whole only where nothing varies."""
    reward, step = _number(row, "reward"), int(row["step"])
    is_cut = _number(row, "completions/clipped_ratio") == 1
    size, spread = max(1.0, abs(reward)), _number(row, "reward_std")
    differ = spread > EQUAL * size
    if is_cut and setting.masks_truncated:
        return Zero(step, step, "masked", {}, differ, 0.0, setting)
    # Without spread over the whole step no group has any, whatever TRL makes of a mean's rounding.
    if math.isnan(reward) or (_number(row, "frac_reward_zero_std") != 1 and not spread <= EQUAL * size):
        return None
    extreme = "equal" if differ else _extreme(reward, setting.seen)
    cause = "truncated" if is_cut and extreme != "correct" else extreme
    return Zero(step, step, cause, {}, differ, 0.0, setting)


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _joined(zeros: Sequence[Zero]) -> Zero:
    total = sum((Counter(zero.counts) for zero in zeros), Counter[Cause]())
    counts = {cause: total[cause] for cause in CAUSES if total[cause]}
    differ = any(zero.differ for zero in zeros)
    rounding = max(zero.rounding for zero in zeros)
    return replace(zeros[0], last_step=zeros[-1].last_step, counts=counts, differ=differ, rounding=rounding)


def _head(zero: Zero) -> str:
    is_one = zero.first_step == zero.last_step
    when = f"step {zero.first_step}" if is_one else f"steps {zero.first_step} to {zero.last_step}"
    if not zero.counts:
        return f"No learning signal in {when}: groups {LABELS[zero.cause]}."
    ranked = sorted(zero.counts.items(), key=lambda item: -item[1])
    (cause, count), *others = ranked
    named = [f"{count} of {zero.groups} groups {LABELS[cause]}", *(f"{n} {LABELS[other]}" for other, n in others)]
    return f"No learning signal in {when}: {', '.join(named)}."


def _reason(zero: Zero) -> str:
    setting = zero.setting
    low, high = setting.seen or (math.nan, math.nan)
    reason = REASONS["constant" if zero.cause == "equal" and _same(low, high) else zero.cause]
    return reason.format(
        low=f"{low:g}",
        high=f"{high:g}",
        limit="max_completion_length" + (f"={setting.longest}" if setting.longest else ""),
        answer=setting.answer,
    )


def _doubt(zero: Zero) -> str:
    seen = zero.setting.seen
    if zero.cause not in ("correct", "wrong") or seen is None or not _same(*seen):
        return ""
    return f"No other reward has been seen, so a reward function that always returns {seen[0]:g} would look the same."


def _between(zero: Zero) -> str:
    if not zero.differ or zero.cause in ("masked", "one_sample"):
        return ""
    return "Rewards differ between prompts, but an advantage compares within one."


def _rounding(zero: Zero) -> str:
    if zero.rounding < HARMLESS:
        return ""
    return (
        f"Rounding of the mean reward leaves advantages of up to {zero.rounding:.1g}, of which Adam still makes steps "
        "without meaning; rewards such as 0, 0.5 and 1 leave none."
    )


def _pull(zero: Zero) -> str:
    if not zero.setting.beta or zero.cause == "masked":
        return ""
    return f"The KL term (beta={zero.setting.beta:g}) still pulls the policy towards its reference."
