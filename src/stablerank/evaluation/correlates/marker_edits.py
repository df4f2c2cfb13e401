"""Edits that put a discourse marker in, or take all markers of a kind out.

A marker goes in front of a sentence that is not the first and starts with a letter; that sentence keeps its characters,
its capital too, so that taking the marker out again gives the old text. Markers are taken out as whole words, unlike
the substrings that markers.py counts, with a comma and the blanks behind; what then opens a sentence gets a capital.
"""

import re
from random import Random

from stablerank.evaluation.correlates.markers import MARKERS, Kind
from stablerank.evaluation.correlates.sentences import sentence_spans

OPENINGS: dict[Kind, tuple[str, ...]] = {
    "contrastive": ("However, ", "Nevertheless, ", "On the other hand, "),
    "causal": ("Therefore, ", "As a result, ", "For this reason, "),
}


def insert_marker(text: str, rng: Random, kind: Kind) -> str | None:
    """A marker of this kind in front of one sentence; None where no sentence but the first starts with a letter."""
    places = [start for start, _ in sentence_spans(text)[1:] if text[start].isalpha()]
    if not places:
        return None
    place = rng.choice(places)
    return text[:place] + rng.choice(OPENINGS[kind]) + text[place:]


def delete_markers(text: str, kind: Kind) -> str | None:
    """The text without its markers of this kind; None where it has none, or nothing else."""
    starts = {start for start, _ in sentence_spans(text)}
    parts, last = [], 0
    for match in _pattern(kind).finditer(text):
        parts.append(text[last : match.start()])
        last = match.end()
        if match.start() in starts and last < len(text):
            parts.append(text[last].upper())
            last += 1
    shorter = "".join([*parts, text[last:]])
    return shorter if parts and shorter.strip() else None


def _pattern(kind: Kind) -> re.Pattern[str]:
    words = {marker.rstrip(" ,") for marker in MARKERS[kind]}
    # The longest first, so that no marker is taken for a shorter one.
    choices = "|".join(map(re.escape, sorted(words, key=lambda word: (-len(word), word))))
    return re.compile(rf"\b(?:{choices})\b,?[ \t]*", re.IGNORECASE)
