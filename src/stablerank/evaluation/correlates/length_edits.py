"""The yardstick of length: neutral filler behind an answer, and an answer that stops early.

A share is of the words of the text, words being what white space separates. The filler is sentences that say nothing,
in an order drawn at random, cut where enough words are there. It holds no marker of markers.py and no number.

Any text changes a model's states, so no filler is neutral for certain; it is what a longer answer without more content
looks like.
"""

import re
from random import Random

FILLER = (
    "That is how it looks from here.",
    "This is what there is to say about it.",
    "All of this stays the way it was described.",
    "There is nothing more to it than that.",
    "It can be left as it stands.",
    "Everything else remains the same as above.",
    "Such is the way of these things.",
    "One may take it the way it is given.",
)
_WORD = re.compile(r"\S+")


def pad(text: str, rng: Random, share: float) -> str | None:
    """Filler of ``share`` times as many words behind the text, at least one; None for a text without a word."""
    words = len(text.split())
    if not words:
        return None
    wanted = max(1, round(share * words))
    filler: list[str] = []
    while len(filler) < wanted:
        filler += [word for sentence in rng.sample(FILLER, len(FILLER)) for word in sentence.split()]
    return f"{text.rstrip()} {' '.join(filler[:wanted])}"


def cut(text: str, share: float) -> str | None:
    """The text without its last words, ``share`` of them and at least one; None where no word would be left."""
    words = list(_WORD.finditer(text))
    kept = len(words) - max(1, round(share * len(words)))
    return text[: words[kept - 1].end()] if kept > 0 else None
