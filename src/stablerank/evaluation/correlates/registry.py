"""All text metrics, 37 as in arXiv 2512.02807, and the table of their values.

Legend: N answers, M metrics.

The source names about half of its 37 and states fewer formulas; each metric of ours says whose formula it has
(`reading.Origin`). The lists of markers, the rules for sentences, tokens and syllables, and the embeddings are ours
throughout.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stablerank.evaluation.correlates.coherence import COHERENCE
from stablerank.evaluation.correlates.density import DENSITY
from stablerank.evaluation.correlates.markers import MARKER_METRICS
from stablerank.evaluation.correlates.reading import Embed, Metric, readings
from stablerank.evaluation.correlates.structure import STRUCTURE

METRICS: tuple[Metric, ...] = (*COHERENCE, *DENSITY, *STRUCTURE, *MARKER_METRICS)


def metric_table(prompts: Sequence[str], texts: Sequence[str], embed: Embed) -> NDArray[np.float64]:
    """The value ``(N, M)`` of every metric, in the order of `METRICS`, for each answer; NaN where undefined."""
    values = [[metric.value(reading) for metric in METRICS] for reading in readings(prompts, texts, embed)]
    return np.array(values, dtype=np.float64).reshape(len(texts), len(METRICS))
