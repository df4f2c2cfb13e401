"""Make one number wrong, and leave everything else.

A number is a run of digits that is no part of a word and does not number a list. It becomes another one with as many
digits and no leading zero, so that the text stays as long. Other places with the same number keep it.
"""

import re
from random import Random

_NUMBER = re.compile(r"(?<![^\W\d_])(?<!\d)\d+(?!\d)(?![^\W\d_])")
_NUMBERING = re.compile(r"^[ \t]*(\d+)[.)][ \t]", re.MULTILINE)


def corrupt_number(text: str, rng: Random, span: tuple[int, int] | None = None) -> str | None:
    """Another number in one place, within ``span`` if given; None where there is no number."""
    numbering = {match.start(1) for match in _NUMBERING.finditer(text)}
    start, end = span or (0, len(text))
    within = (match for match in _NUMBER.finditer(text) if start <= match.start() and match.end() <= end)
    numbers = [match for match in within if match.start() not in numbering]
    if not numbers:
        return None
    chosen = rng.choice(numbers)
    return text[: chosen.start()] + _another(chosen[0], rng) + text[chosen.end() :]


def _another(digits: str, rng: Random) -> str:
    least = 10 ** (len(digits) - 1) if len(digits) > 1 else 0
    while (number := str(rng.randrange(least, 10 ** len(digits)))) == digits:
        pass
    return number
