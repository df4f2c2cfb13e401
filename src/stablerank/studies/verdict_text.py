"""A verdict as plain text for one screen: each number with its interval, its method and the files it came from.

Contract: no escape codes, no colour; lines of at most 100 columns but for file names, which are never broken. Foreign
text loses its control characters.

Left out on purpose: rounding by significance; four digits are enough to compare, ``verdict.json`` has them all.
"""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from stablerank.studies.intervals import LEAST_ALPHA
from stablerank.studies.verdict import Finding, Judged, Verdict

WIDTH = 100
_MARGIN = 16
_SEEDS_NAMED = 8

_STATES = {
    "decided": "Every cell is done, every trap failed and every control held.",
    "invalid": "INVALID: no hypothesis is decided.",
    "incomplete": "INCOMPLETE: no rule is judged before the last cell.",
}


def text(found: Verdict) -> str:
    """The verdict for a terminal."""
    lines = [*_wrapped(found.question, ""), *_wrapped(_setting(found), ""), "", _STATES[found.state]]
    lines += [line for problem in found.problems for line in _wrapped(problem, "- ")]
    for finding in found.hypotheses:
        lines += ["", *_finding(finding)]
    lines += [*_checks("trap", found.traps, "HOLDS", "fails"), *_checks("control", found.controls, "holds", "FAILS")]
    return "\n".join(lines)


def _setting(found: Verdict) -> str:
    lock = "not locked" if found.lock is None else f"lock {found.lock:.12}"
    mode = "exploratory (a lead, no evidence)" if found.mode == "exploratory" else found.mode
    correction = f"Holm over {len(found.hypotheses)}" if found.correction == "holm" else "no correction"
    return f"{mode}, {lock}, confidence {100 * found.confidence:.4g} %, {correction}"


def _finding(finding: Finding) -> Iterator[str]:
    yield from _wrapped(f"{finding.name}: {finding.claim}", f"{finding.decision:<{_MARGIN}}")
    if finding.rule is not None:
        p = "" if finding.p_corrected is None else f", corrected {_p(finding.p_corrected)}"
        yield from _judged(finding.rule, p)
    if finding.kill is not None:
        yield from _wrapped("its kill rule held:", " " * _MARGIN)
        yield from _judged(finding.kill)


def _checks(kind: str, checks: Mapping[str, Judged], holds: str, fails: str) -> Iterator[str]:
    for name, check in checks.items():
        yield ""
        yield from _wrapped(name, f"{kind} {holds if check.outcome.holds else fails}".ljust(_MARGIN))
        yield from _judged(check)


def _judged(judged: Judged, corrected: str = "") -> Iterator[str]:
    outcome, place = judged.outcome, " " * _MARGIN
    if outcome.is_defined:
        interval = f"{_number(outcome.estimate)} [{_number(outcome.low)}, {_number(outcome.high)}]"
        numbers = f"{judged.column} {interval}, p {_p(outcome.p)}{corrected}; {outcome.method}"
    else:
        numbers = f"cannot be judged: {outcome.method}"
    yield from _wrapped(numbers, place)
    yield from _wrapped(" ".join(_files(judged.files)), place)


def _files(files: Sequence[str]) -> Iterator[str]:
    """One name an arm, its seeds in braces as a shell takes them."""
    for start, names in groupby(files, key=lambda name: name.rpartition("--")[0]):
        seeds = [name.rpartition("--")[2].removesuffix(".json") for name in names]
        listed = seeds[0] if len(seeds) == 1 else f"{{{','.join(seeds)}}}"
        yield f"{start}--{listed if len(seeds) <= _SEEDS_NAMED else '*'}.json"


def _wrapped(words: str, first: str) -> Iterable[str]:
    plain = "".join(character if character.isprintable() else " " for character in words)
    return textwrap.wrap(
        plain,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _number(value: float) -> str:
    return "unbounded" if math.isinf(value) else f"{value:.4g}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value > LEAST_ALPHA else f"under {LEAST_ALPHA:g}"
