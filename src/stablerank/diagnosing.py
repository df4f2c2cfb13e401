"""`stablerank.diagnose`: from a run on disk to its causes. Reading and rules have rooms of their own."""

from pathlib import Path

from stablerank.dynamics.causes.explain import Diagnoses, explain
from stablerank.runs.record import read_record


def diagnose_run(path: str | Path) -> Diagnoses:
    """What went wrong in a run, when, and what to change; first the cause that explains most.

    Args:
        path: a run folder of ours, finished or not; or of TRL's, an output folder, a checkpoint or a
            ``trainer_state.json``.

    Raises:
        RunFolderError: there is no run, or one of its files is damaged.
    """
    return explain(read_record(Path(path).expanduser()))
