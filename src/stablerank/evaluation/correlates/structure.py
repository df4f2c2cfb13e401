"""Counts, lengths and readability.

Syllables of an English word, by rule: runs of vowels (``y`` counts), less a silent ``e`` at the end (not that of
``-le`` behind a consonant) and a silent ``-ed`` (not behind t or d), at least 1. The source counts with the
hyphenation dictionary pyphen, which misses syllables that are no place for a hyphen; the rule is our choice. A complex
word has three syllables or more, as in the source.

Readability needs a word and a sentence, and is meant for English prose: on code or formulas it is a number without
that meaning.
"""

import math
import re

from stablerank.evaluation.correlates.reading import Metric, Reading

COMPLEX = 3
"""Syllables of a complex word (arXiv 2512.02807, appendix F.3)."""
_VOWELS = re.compile(r"[aeiouyà-öø-ÿ]+")
_SILENT = re.compile(r"(?:(?<![aeiouytd])ed|(?<![^aeiouy]l)(?<![aeiouy])e)$")


def syllables(word: str) -> int:
    """Syllables of one word by the rule of the module header."""
    return max(1, len(_VOWELS.findall(_SILENT.sub("", word.casefold()))))


def token_count(reading: Reading) -> float:
    """Tokens."""
    return float(len(reading.tokens))


def sentence_count(reading: Reading) -> float:
    """Sentences."""
    return float(len(reading.sentences))


def mean_sentence_length(reading: Reading) -> float:
    """Tokens / sentences; needs a sentence."""
    return len(reading.tokens) / len(reading.sentences) if reading.sentences else math.nan


def flesch_reading_ease(reading: Reading) -> float:
    """``206.835 - 1.015 words/sentences - 84.6 syllables/words`` (Flesch 1948); higher is easier."""
    words, sentences = len(reading.words), len(reading.sentences)
    if not words or not sentences:
        return math.nan
    return 206.835 - 1.015 * words / sentences - 84.6 * sum(map(syllables, reading.words)) / words


def flesch_kincaid_grade(reading: Reading) -> float:
    """``0.39 words/sentences + 11.8 syllables/words - 15.59`` (Kincaid et al. 1975), in school years."""
    words, sentences = len(reading.words), len(reading.sentences)
    if not words or not sentences:
        return math.nan
    return 0.39 * words / sentences + 11.8 * sum(map(syllables, reading.words)) / words - 15.59


def gunning_fog(reading: Reading) -> float:
    """``0.4 (words/sentences + 100 complex/words)`` (Gunning 1952), in school years."""
    words, sentences = len(reading.words), len(reading.sentences)
    if not words or not sentences:
        return math.nan
    complex_words = sum(syllables(word) >= COMPLEX for word in reading.words)
    return 0.4 * (words / sentences + 100 * complex_words / words)


STRUCTURE = (
    Metric("token_count", "structure", "paper", token_count),
    Metric("sentence_count", "structure", "paper", sentence_count),
    Metric("mean_sentence_length", "structure", "paper", mean_sentence_length),
    Metric("flesch_reading_ease", "structure", "standard", flesch_reading_ease),
    Metric("flesch_kincaid_grade", "structure", "standard", flesch_kincaid_grade),
    Metric("gunning_fog", "structure", "standard", gunning_fog),
)
