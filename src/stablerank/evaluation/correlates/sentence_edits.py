"""Edits that keep every sentence: put them in another order, or say one of them twice.

Contract of every edit of an answer, here and in its sister files: a pure function of a text and a random generator,
which gives the changed text, or None where the edit does not apply. What it does not change keeps its very characters.
"""

from random import Random

from stablerank.evaluation.correlates.sentences import sentence_spans


def shuffle_sentences(text: str, rng: Random) -> str | None:
    """The sentences in another order, in the places and with the white space of the old ones.

    None for a text with fewer than two different sentences.
    """
    spans = sentence_spans(text)
    sentences = [text[start:end] for start, end in spans]
    if len(set(sentences)) < 2:
        return None
    shuffled = list(sentences)
    while shuffled == sentences:
        rng.shuffle(shuffled)
    return _with_replaced(text, spans, shuffled)


def duplicate_sentence(text: str, rng: Random) -> str | None:
    """One sentence, drawn at random, a second time right behind itself; None for a text without a sentence."""
    spans = sentence_spans(text)
    if not spans:
        return None
    start, end = rng.choice(spans)
    return f"{text[:end]} {text[start:end]}{text[end:]}"


def _with_replaced(text: str, spans: list[tuple[int, int]], pieces: list[str]) -> str:
    parts, last = [], 0
    for (start, end), piece in zip(spans, pieces, strict=True):
        parts += [text[last:start], piece]
        last = end
    return "".join([*parts, text[last:]])
