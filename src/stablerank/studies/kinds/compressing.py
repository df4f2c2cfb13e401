"""A ``compress`` cell: the bytes of a compressed adapter, and what its updates lost.

``spec`` is the folder of an adapter, or of a run. Nothing is drawn: a seed repeats the cell, and a plan that compares
adapters of several seeds has an arm for each. The file stays in the cell's run folder.
"""

from typing import cast

from stablerank.runs.strict_json import strict
from stablerank.studies.kinds.units import median_of
from stablerank.studies.layout import StudyFolder
from stablerank.studies.settings import Compression, settings_of
from stablerank.studies.task import Found, Task


def compress(task: Task, study: StudyFolder) -> Found:
    """Bytes on disk and their share of fp16; relative error and stable rank of every update."""
    from stablerank.compression.compress import compress as write
    from stablerank.compression.spec import CompressionSpec

    settings = cast(Compression, settings_of(task.kind, task.spec, task.overrides))
    file = study.run_path(task.cell) / "adapter.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # of a start that was killed before its result was sealed
    written = write(study.find(task.spec), file, CompressionSpec(**settings.model_dump()))
    size = file.stat().st_size
    errors = {loss.module: strict(loss.error) for loss in written.losses}
    ranks = {loss.module: strict(loss.stable_rank_after) for loss in written.losses}
    changes = {loss.module: strict(loss.stable_rank_after - loss.stable_rank_before) for loss in written.losses}
    units = {"update_error": errors, "update_rank": ranks, "update_rank_change": changes}
    medians = {name: median_of(found.values()) for name, found in units.items()}
    return Found({"bytes": float(size), "share_of_fp16": size / written.account.fp16, **medians}, units)
