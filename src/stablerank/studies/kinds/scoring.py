"""A ``score`` cell: how often one scorer prefers the chosen response of preference pairs.

``spec`` names the pairs as `tasks.preferences.read_pairs` takes them. With ``limit`` the cell's seed draws which pairs
are read; without it a seed changes nothing but a random scorer. Lengths behind the matched accuracy are characters.
"""

from typing import cast

import numpy as np

from stablerank.runs.strict_json import strict
from stablerank.studies.kinds.units import drawn, scorer_of, unit_of
from stablerank.studies.layout import StudyFolder
from stablerank.studies.settings import Pairs, settings_of
from stablerank.studies.task import Found, Task


def score(task: Task, study: StudyFolder) -> Found:
    """Accuracy and ties over the pairs that have both scores, and what each pair earned."""
    from stablerank.evaluation.pairs.agreement import agreement, credits_of
    from stablerank.evaluation.pairs.matched import matched_accuracy
    from stablerank.evaluation.pairs.score_table import ItemScores, distinct_answers
    from stablerank.tasks.preferences import read_pairs

    settings = cast(Pairs, settings_of(task.kind, task.spec, task.overrides))
    pairs = drawn(read_pairs(study.find(task.spec)).items, settings.limit, task.seed)
    answers, places = distinct_answers(pairs)
    scores = scorer_of(settings, task.seed).score(answers)
    both = ItemScores(scores, places).pairs(scores.names[0])
    groups = [pair.group for pair in pairs]
    overall = agreement(both.chosen_P, both.rejected_P, groups, settings.ties)
    credits_P = credits_of(both.chosen_P, both.rejected_P, settings.ties)
    log_ratios_P = np.log([max(len(pair.chosen), 1) / max(len(pair.rejected), 1) for pair in pairs])
    names = [unit_of(str(pair.prompt), pair.chosen, pair.rejected) for pair in pairs]
    return Found(
        {
            "accuracy": strict(overall.accuracy.value),
            "tie_rate": strict(overall.tie_rate),
            "matched_accuracy": strict(matched_accuracy(credits_P, log_ratios_P, groups).accuracy.value),
            "unscored": float(overall.undefined),
        },
        {"accuracy": {name: strict(credit) for name, credit in zip(names, credits_P.tolist(), strict=True)}},
    )
