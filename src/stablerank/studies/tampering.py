"""What differs between what was locked and what is there, named key by key."""

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMED = 3
"""Differences that one refusal names; the rest are counted."""
_SHOWN = 80
_NOTHING = "nothing"
_ABSENT = object()


@dataclass(frozen=True)
class Tampering:
    """One thing that is not as it was locked; as text, one sentence."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}."


def changed_hashes(
    locked: Mapping[str, str], found: Mapping[str, str], place: Callable[[str], str] = str
) -> Iterator[Tampering]:
    """Every file whose SHA-256 is another, or that is on one side only; ``place`` names it to the reader."""
    for name in sorted({*locked, *found}):
        if locked.get(name) != found.get(name):
            before, now = (short_hash(of[name]) if name in of else _NOTHING for of in (locked, found))
            yield Tampering(place(name), before, now)


def changed_data(locked: Any, found: Any, place: Callable[[str], str], key: str = "") -> Iterator[Tampering]:
    """Every difference of nested plain data; ``place`` names a dotted key. As in JSON, 1, 1.0 and true differ."""
    before, now = _children(locked), _children(found)
    if before is None or now is None:
        texts = [_NOTHING if value is _ABSENT else json.dumps(value, ensure_ascii=False) for value in (locked, found)]
        if texts[0] != texts[1]:
            yield Tampering(place(key), *(textwrap.shorten(text, _SHOWN, placeholder=" ...") for text in texts))
        return
    for name in dict.fromkeys([*before, *now]):
        inner = f"{key}.{name}" if key else str(name)
        yield from changed_data(before.get(name, _ABSENT), now.get(name, _ABSENT), place, inner)


def in_one_line(differences: Sequence[Tampering]) -> str:
    """The first differences, and how many more there are, for the middle of a sentence."""
    more = f" and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
    return "; ".join(str(difference).rstrip(".") for difference in differences[:NAMED]) + more


def short_hash(value: str) -> str:
    """A SHA-256 as far as a reader compares it."""
    return f"SHA-256 {value:.12}"


def _children(value: Any) -> dict[Any, Any] | None:
    """What is inside, by key or place; None for a value that holds nothing further."""
    if isinstance(value, list):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else None
