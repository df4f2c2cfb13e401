"""The credit of one group of completions as plain data, and the words and numbers that text and page share.

Every list a token has the length of its completion; None is "no deposit", "no step" or "not scorable". Token texts are
a model's and untrusted: they are shown through `visible_token`, or escaped by the page.

Left out on purpose: tensors. What is here is what ``--json`` prints.
"""

from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from stablerank.reports import words
from stablerank.runs.strict_json import strict

Numbers = list[float]
Sparse = list[float | None]

WHITESPACE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})
"""How white space of a token is shown where it would be lost."""

TERM_NAMES = {"k1": "k1", "k2": "k2", "k3": "k3 (TRL)", "s4": "S4 one-sided"}


@dataclass(frozen=True)
class Part:
    """One reward of the mixture; the outer lists run over completions."""

    name: str
    density: str
    weight: float
    rule: str
    rewards: Sparse
    """One number a completion."""
    deposits: list[Sparse]
    normalised: list[Sparse]
    advantages: list[Numbers]
    """Before the weight."""
    notes: dict[str, float]

    @property
    def all_deposits(self) -> Numbers:
        """Of the whole group, in order."""
        return [value for row in self.deposits for value in row if value is not None]


@dataclass(frozen=True)
class KLTerms:
    """Log-probabilities of the sampled tokens and what each term makes of them; ``beta`` weighs k3 in TRL's loss."""

    beta: float
    policy: list[Numbers]
    reference: list[Numbers]
    terms: dict[str, list[Numbers]]


@dataclass(frozen=True)
class CreditGroup:
    """The completions of one prompt and where the credit of their tokens comes from."""

    recipe: str
    source: str
    prompt: str
    columns: dict[str, str]
    completions: list[str]
    tokens: list[list[str]]
    token_ids: list[list[int]]
    in_loss: list[list[bool]]
    steps: list[list[int | None]]
    parts: list[Part]
    advantages: list[Numbers]
    """What the loss gets: the weighted sum of the parts."""
    kl: KLTerms | None
    notes: list[str]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def largest(self) -> float:
        """Largest absolute advantage of the group."""
        return max(map(self.peak, range(len(self))))

    def peak(self, completion: int) -> float:
        """Largest absolute advantage of one completion."""
        return max(map(abs, self.advantages[completion]))

    @property
    def most_credited(self) -> int:
        """The completion with the largest absolute advantage, the first of equals."""
        return max(range(len(self)), key=self.peak)

    def ends_step(self, completion: int, token: int) -> bool:
        """Whether a step ends with this token."""
        here, steps = self.steps[completion][token], self.steps[completion]
        return here is not None and (token + 1 == len(steps) or steps[token + 1] != here)

    def to_json(self) -> dict[str, Any]:
        """The same as data that strict JSON can hold: a number that is not finite becomes None."""
        plain: dict[str, Any] = strict(asdict(self))
        return plain


def headline(group: CreditGroup) -> str:
    """What is looked at, in one line."""
    rewards = ", ".join(part.name for part in group.parts)
    return f"Credit of {len(group)} completions of one prompt under {rewards}"


def visible_token(text: str) -> str:
    """A token on one line: spaces, line breaks and tabs as marks, control and format characters as code points."""
    return words.plain(text.translate(WHITESPACE))


def signed(value: float | None) -> str:
    """A normalised deposit or an advantage; empty for none, and no minus in front of a zero."""
    if value is None:
        return ""
    shown = f"{value:+.3f}"
    return "0" if float(shown) == 0 else shown.replace("-", "\u2212")


def plain_number(value: float | None) -> str:
    """A reward, a deposit or a term; empty for none."""
    return "" if value is None else f"{value + 0.0:.4g}".replace("-", "\u2212")  # -0.0 + 0.0 is 0.0


def reward_shown(value: float | None) -> str:
    """The number of one completion, which may not be scorable."""
    return "none" if value is None else plain_number(value)


def spread(values: Numbers) -> str:
    """Count, mean and standard deviation (unbiased) of deposits or rewards."""
    if not values:
        return "none"
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{len(values)}, mean {plain_number(mean(values))}, deviation {plain_number(deviation)}"


def scorable(part: Part) -> Numbers:
    """The rewards of the completions that have one."""
    return [value for value in part.rewards if value is not None]


def extent(values: Numbers) -> str:
    """One number where all tokens have the same, else the smallest and the largest."""
    low, high = signed(min(values)), signed(max(values))
    return low if low == high else f"{low} to {high}"


def part_facts(part: Part) -> str:
    """Density, weight and rule of one reward."""
    counters = [f"{name.replace('_', ' ')} {plain_number(value)}" for name, value in part.notes.items() if value]
    counted = f" Counted: {', '.join(counters)}." if counters else ""
    return f"{part.name}: {part.density} reward, weight {plain_number(part.weight)}. {part.rule}{counted}"


def kl_facts(kl: KLTerms) -> str:
    """Where each KL term is used."""
    used = f"TRL's loss adds {plain_number(kl.beta)} k3 a token" if kl.beta else "TRL's loss has no KL term (beta is 0)"
    return f"{used}; k1, k2 and S4's one-sided term stand beside it for comparison and are in no loss."
