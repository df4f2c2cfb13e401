"""Metrics of how much a text says for its length: diversity of its tokens, and how far it can be compressed.

The tokens are those of sentences.py. All but `moving_diversity` fall or rise with length by themselves: a longer text
repeats more tokens, and a compressor needs some text before it finds anything.

Left out on purpose: fitted curves of diversity over length (MTLD, vocd-D), which short answers leave undefined.
"""

import math
import zlib
from collections import Counter

from scipy.stats import entropy

from stablerank.evaluation.correlates.reading import Metric, Reading

WINDOW = 50
"""Tokens of the window of `moving_diversity`."""


def lexical_diversity(reading: Reading) -> float:
    """Unique tokens / tokens; needs a token."""
    return _distinct(reading.tokens)


def moving_diversity(reading: Reading) -> float:
    """The mean of `lexical_diversity` over all windows of 50 tokens (MATTR); needs 50 tokens.

    Covington and McFall, Journal of Quantitative Linguistics 17 (2010): the one that does not fall with length.
    """
    tokens = reading.tokens
    windows = len(tokens) - WINDOW + 1
    if windows < 1:
        return math.nan
    return sum(len(set(tokens[start : start + WINDOW])) for start in range(windows)) / (windows * WINDOW)


def distinct_bigrams(reading: Reading) -> float:
    """Unique pairs of adjacent tokens / such pairs (distinct-2); needs two tokens."""
    return _distinct(list(zip(reading.tokens, reading.tokens[1:], strict=False)))


def token_entropy(reading: Reading) -> float:
    """Shannon entropy in bits of the frequencies of the tokens; needs a token."""
    return float(entropy(list(Counter(reading.tokens).values()), base=2)) if reading.tokens else math.nan


def compression_ratio(reading: Reading) -> float:
    """Bytes by zlib at level 9 / bytes of the text in UTF-8; needs a byte. Above 1 for very short texts.

    The prose says compressed / original; the compressor is our choice.
    """
    raw = reading.text.encode("utf-8", "surrogatepass")
    return len(zlib.compress(raw, 9)) / len(raw) if raw else math.nan


def mean_word_length(reading: Reading) -> float:
    """Letters a word; needs a word."""
    return sum(map(len, reading.words)) / len(reading.words) if reading.words else math.nan


def _distinct(items: list[str] | list[tuple[str, str]]) -> float:
    return len(set(items)) / len(items) if items else math.nan


DENSITY = (
    Metric("lexical_diversity", "density", "paper", lexical_diversity),
    Metric("moving_diversity", "density", "ours", moving_diversity),
    Metric("distinct_bigrams", "density", "ours", distinct_bigrams),
    Metric("token_entropy", "density", "ours", token_entropy),
    Metric("compression_ratio", "density", "paper", compression_ratio),
    Metric("mean_word_length", "density", "ours", mean_word_length),
)
