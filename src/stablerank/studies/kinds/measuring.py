"""A ``measure`` cell: the certified stable rank of every matrix of a checkpoint; a matrix is known by its name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stablerank.errors import ModelError
from stablerank.runs.strict_json import strict
from stablerank.studies.kinds.units import median_of
from stablerank.studies.layout import StudyFolder
from stablerank.studies.settings import settings_of
from stablerank.studies.task import Found, Task

if TYPE_CHECKING:
    from stablerank.probes.sources.stored import Problem


def measure(task: Task, study: StudyFolder) -> Found:
    """Every matrix, or a failure of the whole cell."""
    from stablerank.probes.checkpoints import weights
    from stablerank.probes.measure import MeasuredTensor, Settings, measure_all
    from stablerank.spectral.certified import DELTA, RTOL

    settings_of(task.kind, task.spec, task.overrides)  # there are none
    work = weights(study.find(task.spec))
    tensors: list[MeasuredTensor] = []
    measure_all(work, Settings(task.cell, ("stable_rank",), RTOL, DELTA), keep=tensors.append)
    problems = [*work.problems, *(problem for tensor in tensors for problem in tensor.problems)]
    if problems or not tensors:
        raise ModelError(f"{task.spec} cannot be measured whole: {_why(problems)}")
    ranks = {matrix.name: strict(matrix.rows[0].value) for tensor in tensors for matrix in tensor.matrices}
    return Found(
        {"median_stable_rank": median_of(ranks.values()), "matrices": float(len(ranks))}, {"stable_rank": ranks}
    )


def _why(problems: "Sequence[Problem]") -> str:
    if not problems:
        return "it holds no matrix."
    first = problems[0]
    return first.reason if first.tensor is None or first.tensor in first.reason else f"{first.tensor}: {first.reason}"
