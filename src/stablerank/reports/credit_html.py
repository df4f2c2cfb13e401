"""The page of one group's credit: every completion, its tokens coloured by the advantage that the loss gets.

One HTML file that needs no network and runs no script: numbers stand in titles, strips are inline SVG. A model's text
reaches the page through the escaping of ``reports/html.py``; a Content-Security-Policy without scripts and requests is
the second lock. The same group gives the same bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from stablerank.reports import credit, html
from stablerank.reports.credit import CreditGroup, Numbers
from stablerank.runs.atomic import write_text

LEVELS = 6
"""Shades of each sign."""
LONGEST_COMPLETION = 4000
"""Tokens of a completion that are shown; a browser lays out no more at ease."""
MIDDLE = 10
"""Half the height of a strip, in its own units; a token is one unit wide."""


@dataclass(frozen=True)
class Token:
    """One token as the page shows it: its text, how it looks, all its numbers, and the step that it ends.

    ``breaks`` are the line breaks at its end, which come after the mark of the step.
    """

    text: str
    breaks: str
    look: str
    words: str
    ended_step: int | None


@dataclass(frozen=True)
class Bar:
    """Neighbouring tokens of one value."""

    start: int
    width: int
    top: float
    height: float
    sign: str


@dataclass(frozen=True)
class Strip:
    """One number a token over a completion; ``marks`` are the tokens that hold a deposit."""

    name: str
    extent: str
    width: int
    bars: Sequence[Bar]
    marks: Sequence[int]


@dataclass(frozen=True)
class Completion:
    """One completion as the page shows it."""

    index: int
    extent: str
    rewards: Sequence[tuple[str, str]]
    tokens: Sequence[Token]
    left_out: int
    strips: Sequence[Strip]
    kl_strips: Sequence[Strip]


def write_credit_page(path: Path, group: CreditGroup) -> Path:
    """Write the page to ``path`` and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(group))
    return path


def page(group: CreditGroup) -> str:
    """The whole page as text."""
    template = html.environment().get_template("credit.html.j2")
    return template.render(
        group=group,
        credit=credit,
        completions=[_completion(group, index) for index in range(len(group))],
        levels=range(1, LEVELS + 1),
        share=lambda level: round(6 + 39 * level / LEVELS),
    )


def _completion(group: CreditGroup, index: int) -> Completion:
    count = len(group.tokens[index])
    shown = min(count, LONGEST_COMPLETION)
    return Completion(
        index=index,
        extent=credit.extent(group.advantages[index]),
        rewards=[(part.name, credit.reward_shown(part.rewards[index])) for part in group.parts],
        tokens=[_token(group, index, at) for at in range(shown)],
        left_out=count - shown,
        strips=_strips(group, index),
        kl_strips=_kl_strips(group, index),
    )


def _token(group: CreditGroup, index: int, at: int) -> Token:
    has_deposit = any(part.deposits[index][at] is not None and part.density != "token" for part in group.parts)
    text = group.tokens[index][at]
    last = text.rstrip("\n")
    look = [_shade(group.advantages[index][at], group.largest)]
    look += ["deposit"] * has_deposit + ["left-out"] * (not group.in_loss[index][at])
    return Token(
        text=last.replace("\n", "↵\n") + "↵" * (len(text) - len(last)),
        breaks=text[len(last) :],
        look=" ".join(look),
        words="\n".join(_words(group, index, at)),
        ended_step=group.steps[index][at] if group.ends_step(index, at) else None,
    )


def _words(group: CreditGroup, index: int, at: int) -> Iterator[str]:
    step = group.steps[index][at]
    place = "" if step is None else f", step {step}"
    in_loss = "in the loss" if group.in_loss[index][at] else "not in the loss"
    yield f"{at}: {credit.visible_token(group.tokens[index][at])} (id {group.token_ids[index][at]}){place}, {in_loss}"
    for part in group.parts:
        deposit, advantage = part.deposits[index][at], credit.signed(part.advantages[index][at])
        normalised = credit.signed(part.normalised[index][at])
        said = "no deposit" if deposit is None else f"deposit {credit.plain_number(deposit)}, normalised {normalised}"
        yield f"{part.name}: {said}, advantage {advantage}"
    yield f"final advantage {credit.signed(group.advantages[index][at])}"
    if group.kl is not None:
        yield "log policy {}, log reference {}".format(
            *(credit.plain_number(rows[index][at]) for rows in (group.kl.policy, group.kl.reference))
        )
        yield ", ".join(
            f"{credit.TERM_NAMES[name]} {credit.plain_number(rows[index][at])}" for name, rows in group.kl.terms.items()
        )


def _shade(value: float, largest: float) -> str:
    level = math.ceil(LEVELS * abs(value) / largest) if largest else 0
    return f"{'plus' if value > 0 else 'minus'}{level}" if level else "nothing"


def _strips(group: CreditGroup, index: int) -> list[Strip]:
    """The advantages of each reward before its weight, and what the loss gets where that is another thing."""
    strips = []
    for part in group.parts:
        largest = max(abs(value) for row in part.advantages for value in row)
        marks = [at for at, value in enumerate(part.deposits[index]) if value is not None]
        marks = [] if part.density == "token" else marks
        strips.append(_strip(part.name, part.advantages[index], largest, marks))
    if len(strips) > 1:
        strips.append(_strip("final advantage", group.advantages[index], group.largest, []))
    return strips


def _kl_strips(group: CreditGroup, index: int) -> list[Strip]:
    terms = {} if group.kl is None else group.kl.terms
    return [
        _strip(credit.TERM_NAMES[name], rows[index], max(abs(value) for row in rows for value in row), [])
        for name, rows in terms.items()
    ]


def _strip(name: str, values: Numbers, largest: float, marks: Sequence[int]) -> Strip:
    bars, start = [], 0
    for value, run in groupby(values):
        width = len(list(run))
        if value and largest:
            height = round((MIDDLE - 1) * abs(value) / largest, 2)
            sign, top = ("up", MIDDLE - height) if value > 0 else ("down", MIDDLE)
            bars.append(Bar(start, width, top, height, sign))
        start += width
    return Strip(name, credit.extent(values), len(values), bars, marks)
