"""Metrics of sentence embeddings: how an answer moves, and how near it stays to the prompt.

Legend: v_1 .. v_n unit embeddings of the sentences, v_p that of the prompt, a_i = cos(v_i, v_i+1), q_i = cos(v_i, v_p).

The formulas stood in a table that the text copies of arXiv 2512.02807 have lost (appendix F.2); what its prose says is
kept, the rest is our choice and named so. All of them change with the number of sentences, and so with length: the
standard deviation over few sentences is small, the least of many is low.

Left out on purpose: more than sentences one after the other, such as discourse trees.
"""

import math

import numpy as np

from stablerank.evaluation.correlates.reading import Metric, Reading, Vectors


def coherence_mean(reading: Reading) -> float:
    """``mean_i a_i``; needs two sentences."""
    adjacent = _adjacent(reading)
    return float(adjacent.mean()) if len(adjacent) else math.nan


def coherence_std(reading: Reading) -> float:
    """``std_i a_i``, over n - 1 values without correction; needs three sentences: one value has no spread."""
    adjacent = _adjacent(reading)
    return float(adjacent.std()) if len(adjacent) > 1 else math.nan


def coherence_min(reading: Reading) -> float:
    """``min_i a_i``, the most abrupt transition; needs two sentences."""
    adjacent = _adjacent(reading)
    return float(adjacent.min()) if len(adjacent) else math.nan


def progression(reading: Reading) -> float:
    """``mean_i>1 cos(v_i, v_1 + .. + v_i-1)``: each sentence beside all before it; needs two sentences.

    The prose says "each sentence builds on the previous one". The cosine to the one before would be `coherence_mean`.
    """
    before_SD = np.cumsum(reading.sentences_SD, axis=0)[:-1]
    if not len(before_SD):
        return math.nan
    return float(np.mean(np.sum(before_SD * reading.sentences_SD[1:], axis=1) / np.linalg.norm(before_SD, axis=1)))


def redundancy(reading: Reading) -> float:
    """``mean_i<j cos(v_i, v_j)``, over all pairs of sentences; needs two sentences."""
    count = len(reading.sentences_SD)
    if count < 2:
        return math.nan
    cosines_SS = reading.sentences_SD @ reading.sentences_SD.T
    return float((cosines_SS.sum() - np.trace(cosines_SS)) / (count * (count - 1)))


def qa_alignment_mean(reading: Reading) -> float:
    """``mean_i q_i``; needs a sentence."""
    alignment = _alignment(reading)
    return float(alignment.mean()) if len(alignment) else math.nan


def qa_alignment_consistency(reading: Reading) -> float:
    """``1 - std_i q_i``, without correction; needs two sentences."""
    alignment = _alignment(reading)
    return float(1 - alignment.std()) if len(alignment) > 1 else math.nan


def _adjacent(reading: Reading) -> Vectors:
    return np.sum(reading.sentences_SD[1:] * reading.sentences_SD[:-1], axis=1)


def _alignment(reading: Reading) -> Vectors:
    return reading.sentences_SD @ reading.prompt_D


COHERENCE = (
    Metric("coherence_mean", "coherence", "ours", coherence_mean),
    Metric("coherence_std", "coherence", "paper", coherence_std),
    Metric("coherence_min", "coherence", "ours", coherence_min),
    Metric("progression", "coherence", "ours", progression),
    Metric("redundancy", "coherence", "ours", redundancy),
    Metric("qa_alignment_mean", "coherence", "ours", qa_alignment_mean),
    Metric("qa_alignment_consistency", "coherence", "ours", qa_alignment_consistency),
)
