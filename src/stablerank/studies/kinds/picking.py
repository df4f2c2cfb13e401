"""A ``bestofn`` cell: what one scorer's pick among N recorded answers is worth, beside the controls.

``spec`` names the pool: ``gsm8k_solutions``, or a file as `evaluation.bestofn.recorded` reads it. Picks are expected
values over all subsets of N answers, so that nothing is drawn but, with ``limit``, the problems, by the cell's seed.

Left out on purpose: sampling answers, which `stablerank evaluate` does and keeps.
"""

from dataclasses import replace
from statistics import fmean
from typing import cast

import numpy as np

from stablerank.studies.kinds.units import drawn, scorer_of, unit_of
from stablerank.studies.layout import StudyFolder
from stablerank.studies.settings import Picks, settings_of
from stablerank.studies.task import Found, Numbers, Task

CONTROLS = ("random", "shortest", "longest", "oracle")


def pick(task: Task, study: StudyFolder) -> Found:
    """``pick``, each control, and the pick's lead over a random one, over problems and by problem."""
    from stablerank.evaluation.bestofn.controls import control_picks
    from stablerank.evaluation.bestofn.estimator import expected_picks
    from stablerank.evaluation.bestofn.recorded import GSM8K, gsm8k_solutions, recorded_pool
    from stablerank.evaluation.bestofn.scores import score_pool

    settings = cast(Picks, settings_of(task.kind, task.spec, task.overrides))
    whole = gsm8k_solutions() if task.spec == GSM8K else recorded_pool(study.find(task.spec))
    usable, _ = whole.usable(settings.n)
    pool = replace(usable, problems=tuple(drawn(usable.problems, settings.limit, task.seed)))
    units: dict[str, Numbers] = {name: {} for name in ("pick", "over_random", *CONTROLS)}
    for problem, scored in zip(pool.problems, score_pool(pool, [scorer_of(settings, task.seed)]), strict=True):
        (scores_M,) = scored.scores.values()
        picks = control_picks(pool, problem, str.__eq__)  # equality of answers is the vote's, which is not read
        picks["pick"] = expected_picks(scores_M, np.array(problem.right_M))
        picks["over_random"] = picks["pick"] - picks["random"]
        for name, found in units.items():
            found[unit_of(str(problem.prompt))] = float(picks[name][settings.n - 1])
    return Found(
        {name: fmean(value for value in found.values() if value is not None) for name, found in units.items()}, units
    )
