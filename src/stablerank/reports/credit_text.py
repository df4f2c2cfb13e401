"""The credit of one completion, token by token, for the terminal; above it a line for each of its group.

Contract: no escape codes, no colour, at most 100 columns; of a model's text no control character, line break or
invisible mark survives (`visible_token`).

Left out on purpose: paging. ``--tokens A:B`` chooses what is shown, the page has everything.
"""

import io
import textwrap

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stablerank.reports import credit, words
from stablerank.reports.credit import CreditGroup, KLTerms, Part

WIDTH = 100
LONGEST_PROMPT = 600
LONGEST_TOKEN = 24
PLACE = ("at", "step", "token", "in loss")
"""Columns that say which token a line is about."""


def text(group: CreditGroup, completion: int, tokens: range) -> str:
    """The group, then the tokens ``tokens`` of one completion."""
    blocks = [_opening(group), _group(group), _heading(group, completion, tokens)]
    if not _is_plain(group):
        blocks.append(_sum(group, completion, tokens))
    blocks += [_part(group, part, completion, tokens) for part in group.parts]
    if group.kl is not None:
        blocks += [_wrapped(credit.kl_facts(group.kl)), _kl(group, group.kl, completion, tokens)]
    return "\n\n".join(blocks)


def _opening(group: CreditGroup) -> str:
    prompt = words.plain(group.prompt.replace("\n", "↵"))
    prompt = prompt if len(prompt) <= LONGEST_PROMPT else f"{prompt[:LONGEST_PROMPT]}…"
    columns = ", ".join(f"{name} {value!r:.60}" for name, value in group.columns.items())
    lines = [f"{credit.headline(group)}.", f"Recipe {group.recipe}, {group.source}.", f"Prompt: {prompt}"]
    lines += [f"Columns: {columns}"] if columns else []
    lines += [credit.part_facts(part) for part in group.parts]
    return "\n".join(_wrapped(line) for line in [*lines, *group.notes])


def _group(group: CreditGroup) -> str:
    table = _table("The group", "completion", "tokens", *(part.name for part in group.parts), "advantage")
    for index in range(len(group)):
        rewards = (credit.reward_shown(part.rewards[index]) for part in group.parts)
        count = str(len(group.tokens[index]))
        table.add_row(str(index), count, *rewards, credit.extent(group.advantages[index]))
    lines = [_rendered(table)]
    for part in group.parts:
        both = f"rewards {credit.spread(credit.scorable(part))}; deposits {credit.spread(part.all_deposits)}"
        lines.append(_wrapped(f"{part.name}: {both}"))
    return "\n".join(lines)


def _heading(group: CreditGroup, completion: int, tokens: range) -> str:
    count = len(group.tokens[completion])
    shown = f"Completion {completion}, tokens {tokens.start} to {tokens.stop - 1} of {count}"
    rest = f" (--tokens {tokens.stop}:{min(count, tokens.stop + len(tokens))} shows more)" * (tokens.stop < count)
    return _wrapped(f"{shown}{rest}. An empty cell: no deposit there, or no step.")


def _is_plain(group: CreditGroup) -> bool:
    """Whether the one reward's advantage is what the loss gets."""
    return len(group.parts) == 1 and group.parts[0].weight == 1


def _sum(group: CreditGroup, completion: int, tokens: range) -> str:
    """What each reward gives a token, weight included, and what the loss gets."""
    names = [f"{part.name} x {credit.plain_number(part.weight)}" for part in group.parts]
    table = _table("The sum: advantages times their weights", *PLACE, *names, "final")
    for at in tokens:
        shares = (part.weight * part.advantages[completion][at] for part in group.parts)
        final = group.advantages[completion][at]
        _add(table, group, completion, at, [*map(credit.signed, shares), credit.signed(final)])
    return _rendered(table)


def _part(group: CreditGroup, part: Part, completion: int, tokens: range) -> str:
    if part.density == "trajectory" and not _is_plain(group):
        return _wrapped(f"{part.name}: {_one_deposit(part, completion)}")
    table = _table(part.name, *PLACE, "deposit", "normalised", "advantage", *["final"] * _is_plain(group))
    for at in tokens:
        advantage = credit.signed(part.advantages[completion][at])
        numbers = [credit.plain_number(part.deposits[completion][at]), credit.signed(part.normalised[completion][at])]
        final = [credit.signed(group.advantages[completion][at])] * _is_plain(group)
        _add(table, group, completion, at, [*numbers, advantage, *final])
    return _rendered(table)


def _one_deposit(part: Part, completion: int) -> str:
    """A trajectory reward in a sentence: it has one deposit and the same advantage on every token."""
    advantage = f"every token gets {credit.extent(part.advantages[completion])}."
    for at, deposit in enumerate(part.deposits[completion]):
        if deposit is not None:
            normalised = credit.signed(part.normalised[completion][at])
            return f"deposit {credit.plain_number(deposit)} on token {at}, normalised {normalised}; {advantage}"
    return f"no deposit; {advantage}"


def _kl(group: CreditGroup, kl: KLTerms, completion: int, tokens: range) -> str:
    names = [credit.TERM_NAMES[name] for name in kl.terms]
    table = _table("KL terms", *PLACE, "log policy", "log reference", *names)
    for at in tokens:
        numbers = [rows[completion][at] for rows in (kl.policy, kl.reference, *kl.terms.values())]
        _add(table, group, completion, at, list(map(credit.plain_number, numbers)))
    return _rendered(table)


def _add(table: Table, group: CreditGroup, completion: int, at: int, numbers: list[str]) -> None:
    """A line; a gap behind it where a step ends."""
    step, token = group.steps[completion][at], credit.visible_token(group.tokens[completion][at])
    token = token if len(token) <= LONGEST_TOKEN else f"{token[: LONGEST_TOKEN - 1]}…"
    in_loss = "yes" if group.in_loss[completion][at] else "no"
    place = str(at), "" if step is None else str(step), Text(token), in_loss
    table.add_row(*place, *numbers, end_section=group.ends_step(completion, at))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify = "left" if column in ("completion", "token") else "right"
        table.add_column(Text(column), justify=justify, overflow="fold")
    return table


def _rendered(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _wrapped(sentence: str) -> str:
    return "\n".join(textwrap.wrap(words.plain(sentence), WIDTH, break_on_hyphens=False))
