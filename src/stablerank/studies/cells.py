"""One cell: an arm with a seed, done in a process of its own, and sealed as ``results/ID.json``.

Contract: `run_cell` reads ``cells/ID.json`` and always leaves a sealed result, of status ``failed`` where the work
raised; only a signal leaves none. What a kind of cell does is one function of `stablerank.studies.kinds`. A value that
is not defined is None. Units pair results across arms: problems, matrices.
"""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stablerank.errors import StablerankError
from stablerank.studies.kinds.compressing import compress
from stablerank.studies.kinds.measuring import measure
from stablerank.studies.kinds.picking import pick
from stablerank.studies.kinds.scoring import score
from stablerank.studies.kinds.small_worlds import run_testbed
from stablerank.studies.kinds.training import train
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import Kind
from stablerank.studies.task import Found, Task, read_task, write_result


def run_cell(path: Path) -> dict[str, Any]:
    """Do the work of one cell and write its sealed result, which is returned.

    Raises:
        RunFolderError: ``path`` is no cell of a study.
    """
    task, study = read_task(path), StudyFolder(path.resolve().parents[1])
    started = time.perf_counter()
    try:
        found, error = KINDS[task.kind](task, study), None
    except Exception as problem:  # whatever went wrong is what this cell came to
        traceback.print_exc()
        found, error = Found(), _one_line(problem)
    return write_result(study, task, found, error, time.perf_counter() - started)


def _one_line(problem: Exception) -> str:
    text = " ".join(str(problem).split())
    return text if isinstance(problem, StablerankError) else f"{type(problem).__name__}: {text}"


KINDS: dict[Kind, Callable[[Task, StudyFolder], Found]] = {
    "train": train,
    "measure": measure,
    "score": score,
    "bestofn": pick,
    "compress": compress,
    "testbed": run_testbed,
}
"""What each kind of cell does."""
