"""What arXiv 2512.02807 reports of stable rank and its text metrics: the numbers of its prose.

Origin: section 5 and appendix F.5 of version 1. Tables 11 and 12, with all 37 metrics, are not in the text copies
there are. RewardBench, 5,970 responses (sample-level) or 2,985 pairs (paired); the model is not named. The sign of the
prose's "causal, Spearman near 0" is unknown, so that number is 0 here.

A coefficient written as rho is Spearman's by appendix F.1, although section 5 names Pearson's for the sample level.
"""

from dataclasses import dataclass
from typing import Literal

from stablerank.evaluation.correlates.correlations import Coefficient

Level = Literal["sample", "paired"]


@dataclass(frozen=True)
class Published:
    """One number of the paper, under our name of the metric."""

    metric: str
    level: Level
    coefficient: Coefficient
    value: float


PUBLISHED = (
    Published("coherence_std", "sample", "spearman", -0.356),
    Published("progression", "sample", "spearman", 0.313),
    Published("qa_alignment_consistency", "sample", "spearman", 0.316),
    Published("lexical_diversity", "sample", "spearman", 0.238),
    Published("compression_ratio", "sample", "spearman", 0.233),
    Published("token_count", "sample", "spearman", -0.294),
    Published("sentence_count", "sample", "spearman", -0.368),
    Published("mean_sentence_length", "sample", "spearman", 0.085),
    Published("additive_per_100_tokens", "paired", "spearman", -0.156),
    Published("conditional_per_100_tokens", "paired", "spearman", -0.163),
    Published("enumeration_per_100_tokens", "paired", "spearman", -0.148),
    Published("total_per_100_tokens", "paired", "spearman", -0.204),
    Published("contrastive_per_100_tokens", "paired", "pearson", 0.187),
    Published("contrastive_per_100_tokens", "paired", "spearman", 0.067),
    Published("causal_per_100_tokens", "paired", "pearson", 0.139),
    Published("causal_per_100_tokens", "paired", "spearman", 0.0),
)
