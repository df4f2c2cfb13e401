"""Discourse markers of five kinds: how often, a sentence, and in 100 tokens.

Found as the source finds them (arXiv 2512.02807, appendix F.3): case-insensitive *substrings*. Its lists are unknown;
ours follow its examples ("however", "because", "if", "first", "moreover", "then"). So that a substring is the word that
is meant, white space ends those markers that other words contain (``if`` in ``different``, ``but`` in ``button``), and
words that are mostly something else ("so", "and", "also", "since", "second") are left out. No marker contains another
of its kind.

"Total" is the sum over the five kinds.
"""

import math
from collections.abc import Callable
from typing import Literal

from stablerank.evaluation.correlates.reading import Metric, Reading

Kind = Literal["additive", "contrastive", "causal", "conditional", "enumeration"]

MARKERS: dict[Kind, tuple[str, ...]] = {
    "additive": ("moreover", "furthermore", "in addition", "additionally", "besides", "as well as", "likewise"),
    "contrastive": (
        *("however", "although", "nevertheless", "nonetheless", "on the other hand", "in contrast", "whereas"),
        *("despite", "even though", "but ", "on the contrary"),
    ),
    "causal": (
        *("because", "therefore", "thus ", "thus,", "hence ", "hence,", "consequently", "as a result", "due to "),
        *("for this reason", "so that "),
    ),
    "conditional": ("if ", "unless", "otherwise", "provided that", "in case ", "as long as", "whether"),
    "enumeration": (
        *("first", "secondly", "second,", "thirdly", "third,", "then ", "then,", "next,", "finally", "lastly"),
    ),
}


def count(reading: Reading, kinds: tuple[Kind, ...]) -> float:
    """Occurrences of the markers of these kinds; 0 where there are none."""
    text = reading.text.casefold()
    return float(sum(text.count(marker) for kind in kinds for marker in MARKERS[kind]))


def per_sentence(reading: Reading, kinds: tuple[Kind, ...]) -> float:
    """Occurrences / sentences; needs a sentence."""
    return count(reading, kinds) / len(reading.sentences) if reading.sentences else math.nan


def per_100_tokens(reading: Reading, kinds: tuple[Kind, ...]) -> float:
    """100 occurrences / tokens; needs a token."""
    return 100 * count(reading, kinds) / len(reading.tokens) if reading.tokens else math.nan


def _metric(group: str, kinds: tuple[Kind, ...], form: str, of: Callable[[Reading, tuple[Kind, ...]], float]) -> Metric:
    def value(reading: Reading) -> float:
        return of(reading, kinds)

    return Metric(f"{group}_{form}", "markers", "paper", value)


FORMS = {"count": count, "per_sentence": per_sentence, "per_100_tokens": per_100_tokens}
_GROUPS: dict[str, tuple[Kind, ...]] = {**{kind: (kind,) for kind in MARKERS}, "total": tuple(MARKERS)}
MARKER_METRICS = tuple(
    _metric(group, kinds, form, of) for group, kinds in _GROUPS.items() for form, of in FORMS.items()
)
