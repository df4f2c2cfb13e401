"""What the text metrics read of an answer, and what a metric is.

Legend: S sentences of an answer, D size of an embedding.

A metric is a plain function from a `Reading` to a number, NaN where its formula says nothing. Embeddings are unit
vectors, so that a dot product is a cosine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stablerank.evaluation.correlates.sentences import sentences_of, tokens_of, words_of

Vectors = NDArray[np.float64]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts to unit vectors ``(N, D)``."""
Family = Literal["coherence", "density", "structure", "markers"]
Origin = Literal["paper", "standard", "ours"]
"""Whose formula: the paper's prose states it; the paper names a measure of the literature; unknown, our choice."""


@dataclass(frozen=True)
class Reading:
    """One answer, taken apart."""

    text: str
    prompt_D: Vectors
    sentences_SD: Vectors

    @cached_property
    def sentences(self) -> list[str]:
        """As `sentences_of` splits them."""
        return sentences_of(self.text)

    @cached_property
    def tokens(self) -> list[str]:
        """As `tokens_of` splits them."""
        return tokens_of(self.text)

    @cached_property
    def words(self) -> list[str]:
        """As `words_of` splits them."""
        return words_of(self.text)


@dataclass(frozen=True)
class Metric:
    """A text metric: ``value`` holds the formula, and its docstring states it with its domain."""

    name: str
    family: Family
    origin: Origin
    value: Callable[[Reading], float]


def readings(prompts: Sequence[str], texts: Sequence[str], embed: Embed) -> list[Reading]:
    """Answers taken apart, prompts and sentences embedded in one call."""
    split = [sentences_of(text) for text in texts]
    vectors_ND = embed([*prompts, *(sentence for sentences in split for sentence in sentences)])
    bounds = np.cumsum([len(prompts), *map(len, split)])
    return [
        Reading(text, vectors_ND[index], vectors_ND[bounds[index] : bounds[index + 1]])
        for index, text in enumerate(texts)
    ]
