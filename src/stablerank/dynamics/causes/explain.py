"""From a run's rows to its causes, ranked: `explain`.

The ranking is the order of `CAUSES`, and the first cause found is the headline. A cause stands before those whose
symptoms it can make: what was wrong before the first update (reference, rewards that cannot differ, length limit, no
update at all), then what the reward pays for, then how far and how fast the policy was let go, then a reward that tells
nothing apart any more, then losses that nothing explains. A cause that the headline ``explains`` is told as its
consequence and counts no more.

Left out on purpose: probabilities. Rules fire or do not; their thresholds stand beside them with a reason each.
"""

from dataclasses import dataclass

from stablerank.dynamics.causes import collapse, hacking, overfitting, start, unexplained, update, variance
from stablerank.dynamics.causes.diagnosis import Cause, Diagnosis
from stablerank.dynamics.causes.facts import FEWEST_ROWS, Facts, facts_of
from stablerank.dynamics.causes.story import story
from stablerank.runs.record import RunRecord

_WORSE = ("held_out", "parts", "answered", "truncated")
_LOSSES = ("format_lost", "unexplained")
_FAR = ("beta_too_low", "reward_misled", "far_policy", *_LOSSES)
_STILL = ("no_learning", "reward_flat")

CAUSES = (
    Cause("wrong_reference", "wrong reference", start.wrong_reference, (("kl",),), _FAR),
    Cause("one_sample_groups", "one-sample groups", variance.one_sample_groups,
          (("groups", "grad_norm", "advantage_scale"),), _STILL),
    Cause("verifier_rejects", "verifier that rejects everything", variance.rejecting_verifier, (("reward",),), _STILL),
    Cause("reward_constant", "constant reward", variance.constant_reward, (("reward",),), _STILL),
    Cause("alike_groups", "groups without variance", variance.alike_groups, (("zero_std",), ("reward_std",)),
          (*_STILL, "identical_completions")),
    Cause("cap_too_short", "length limit too short", start.short_cap, (("truncated",),), (*_STILL, "format_lost")),
    Cause("no_learning", "no learning", update.no_learning, (("learning_rate", "kl"),), _STILL),
    Cause("step_spam", "reward that pays for length", hacking.paid_by_length,
          (("course",), ("reward",), ("length",), _WORSE), _FAR),
    Cause("length_penalty_too_strong", "length penalty too strong", hacking.strong_length_penalty,
          (("course",), ("reward",), ("length",), _WORSE), _FAR),
    Cause("learning_rate_too_high", "learning rate too high", update.high_learning_rate,
          (("course",), ("reward",), ("kl", "grad_norm", "entropy")), ("not_finite", *_FAR)),
    Cause("not_finite", "numbers that are not finite", update.not_finite, (("rows",),), _LOSSES),
    Cause("beta_too_low", "beta too low", hacking.low_beta, (("course",), ("reward",), ("kl",), _WORSE), _FAR),
    Cause("reward_misled", "misled reward", hacking.misled_reward, (("course",), ("reward",), _WORSE), _LOSSES),
    Cause("identical_completions", "identical completions", collapse.identical_completions,
          (("course",), ("spread",), ("duplicates",)), _STILL),
    Cause("cut_by_window", "texts cut by the window of the reward", collapse.cut_by_window,
          (("course",), ("spread",), ("cut_by_window",)), _STILL),
    Cause("template_owns", "reward owned by template or first token", collapse.template_owns,
          (("course",), ("spread",), ("sigma1_first", "sigma1_special")), _STILL),
    Cause("alike_states", "states alike", collapse.alike_states, (("course",), ("spread",)), _STILL),
    Cause("far_policy", "policy far from the reference", collapse.far_policy, (("course",), ("spread",), ("kl",))),
    Cause("overfitting", "overfitting", overfitting.overfitting, (("losses",),)),
    Cause("format_lost", "lost answer format", unexplained.lost_format, (("course",), ("answered",)), ("unexplained",)),
    Cause("unexplained", "loss without a known cause", unexplained.unexplained_loss,
          (("course",), ("held_out", "parts"))),
    Cause("reward_flat", "flat reward", update.flat_reward, (("course",), ("reward",))),
)  # fmt: skip
"""Every cause, first the one that a headline prefers."""

NAMES = {
    "kl": "KL to the reference (log it with beta above 0)",
    "course": f"at least {FEWEST_ROWS} logged steps",
    "rows": "a log",
    "losses": "two held-out losses",
    "groups": "training completions",
    "held_out": "two held-out evaluations",
    "parts": "several reward functions",
    "answered": "training completions",
    "truncated": "share of cut answers",
    "zero_std": "share of groups without variance",
    "reward_std": "deviation of the reward",
    "grad_norm": "gradient norm",
    "advantage_scale": "scale of the advantages",
    "learning_rate": "learning rate",
    "spread": "spread of a reward on hidden states",
    "duplicates": "share of identical completions",
    "cut_by_window": "share of texts cut by the reward's window",
    "sigma1_first": "owners of the leading direction",
    "sigma1_special": "owners of the leading direction",
}
"""What a missing fact is called; others are called by their own name."""


@dataclass(frozen=True)
class Unchecked:
    """A cause that the record cannot show or rule out, and what it lacks, in words."""

    cause: str
    title: str
    missing: str


@dataclass(frozen=True)
class Diagnoses:
    """What a run's rows say about its causes."""

    writer: str
    found: tuple[Diagnosis, ...]
    """The headline first."""
    consequences: tuple[Diagnosis, ...]
    """What the headline explains."""
    clear: tuple[str, ...]
    """Titles of the causes that were looked for and not found."""
    unchecked: tuple[Unchecked, ...]
    story: tuple[str, ...]
    """What the run did, a sentence a signal."""

    @property
    def has_problem(self) -> bool:
        """Whether anything worse than a warning was found."""
        return any(diagnosis.severity == "problem" for diagnosis in self.found)

    @property
    def marks(self) -> tuple[str, ...]:
        """The first step of each finding that has one, in words."""
        titles = {cause.name: cause.title for cause in CAUSES}
        found = (one for one in self.found if one.first_step is not None)
        return tuple(f"step {one.first_step}, {titles[one.cause]}" for one in found)

    @property
    def verdict(self) -> str:
        """One sentence for somebody who reads nothing else."""
        if self.found:
            return self.found[0].sentence
        if not self.clear:
            return "Nothing can be said: the log holds nothing that a rule reads."
        rest = f" {len(self.unchecked)} could not be looked for." if self.unchecked else ""
        return f"No problem found: {len(self.clear)} causes were looked for.{rest}"


def explain(record: RunRecord) -> Diagnoses:
    """Every cause that the rows show, ranked; what they show not to be there; and what they cannot show."""
    facts = facts_of(record)
    checked = [cause for cause in CAUSES if not cause.missing(facts)]
    answers = [(cause, cause.rule(facts)) for cause in checked]
    found = [(cause, diagnosis) for cause, diagnosis in answers if diagnosis is not None]
    explained = found[0][0].explains if found else ()
    others = [diagnosis for _, diagnosis in found[1:]]
    return Diagnoses(
        record.writer,
        (*(diagnosis for _, diagnosis in found[:1]), *(one for one in others if one.cause not in explained)),
        tuple(one for one in others if one.cause in explained),
        tuple(cause.title for cause, diagnosis in answers if diagnosis is None),
        tuple(Unchecked(cause.name, cause.title, _lacks(cause, facts)) for cause in CAUSES if cause not in checked),
        story(facts),
    )


def _lacks(cause: Cause, facts: Facts) -> str:
    groups = [" or ".join(dict.fromkeys(NAMES.get(name, name) for name in group)) for group in cause.missing(facts)]
    return "; ".join(groups)
