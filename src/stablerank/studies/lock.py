"""The lock of a study: what its results hang on, fixed before there are any, and checked ever after.

``plan.lock`` is ``{"sha256": digest of content, "content": ...}``. The content holds the plan (what it says, and a hash
of its bytes, so that a reworded comment shows too), each training arm's recipe with every default written out, the
hash of each file that these name, of the library's own sources and of ``constraints.txt``, the commit and package
versions. Each difference found later is one `Tampering` with the file or key in it.

Sources decide, not the commit: committing the lock itself moves the commit on and changes nothing that runs, while an
edit to the library shows with git and without. The mode is part of the plan: an exploratory study cannot be promoted.

What a lock cannot show: somebody who rewrites the plan, recomputes every hash and seals every result anew. The lock is
evidence together with the commit that holds it, made before the results; commit it, or send its hash to somebody.

Left out on purpose: signatures and time stamps from outside, which version control and mail already give.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stablerank.errors import StablerankError
from stablerank.runs.atomic import write_json
from stablerank.studies import inputs
from stablerank.studies.changes import changes
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import Cell, Plan, load_plan
from stablerank.studies.sealing import SEAL, digest, is_sealed
from stablerank.studies.tampering import Tampering, in_one_line
from stablerank.zoo.cache import sha256

_CONTENT = {"plan", "exploratory", "recipes", "files", "commit", "dirty", "sources", "packages", "locked_at"}


class LockError(StablerankError, ValueError):
    """A study that cannot be locked, is not, or is no longer what was locked."""


@dataclass(frozen=True)
class Lock:
    """What the results of a study must agree with.

    ``sha256`` and ``content`` are those of ``plan.lock``; an exploratory study that was never locked has None and
    nothing. ``is_new`` is true of a lock that this call made.
    """

    sha256: str | None
    plan: Plan
    content: Mapping[str, Any]
    is_new: bool = False

    @property
    def exploratory(self) -> bool:
        """Whether this study, and every result of it, is exploratory for ever."""
        return self.plan.mode == "exploratory"


def lock(folder: str | Path) -> Lock:
    """Lock a study, or find it locked as it stands and change nothing (``is_new`` is false).

    Raises:
        LockError: locked otherwise, results there already, uncommitted sources under a confirmatory plan, or a file
            missing.
        StablerankError: the plan or a recipe cannot mean what it says.
    """
    study = StudyFolder(Path(folder))
    if study.lock_path.exists():
        _refuse_changes(study)
        return read_lock(folder)
    plan = load_plan(study.plan_path)
    _refuse_results(study)
    content = _content(study, plan)
    if content["dirty"] and not content["exploratory"]:
        raise LockError(
            f"The library's sources differ from commit {content['commit']!s:.12}, so a confirmatory lock would name "
            "code that nobody can check out; commit them, or set `mode: exploratory` in the plan."
        )
    own = digest(content)
    write_json(study.lock_path, {SEAL: own, "content": content})
    return Lock(own, plan, content, is_new=True)


def read_lock(folder: str | Path) -> Lock:
    """The lock as it was written; whether the study still agrees is `verify_lock`'s to say.

    Raises:
        LockError: no lock, or one that was edited.
    """
    study = StudyFolder(Path(folder))
    raw = _raw(study)
    if fault := _lock_fault(raw):
        raise LockError(f"{study.path}: {str(fault).rstrip('.')}; take it back from version control.")
    try:
        plan = Plan.model_validate(raw["content"]["plan"]["content"])
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise LockError(f"{study.lock_path} holds a plan of another release ({reason}); install that one.") from error
    return Lock(raw[SEAL], plan, raw["content"])


def locked_study(folder: str | Path) -> Lock:
    """The lock of a study that is still as it was locked, all results included; a runner starts from it.

    An exploratory study may run without a lock.

    Raises:
        LockError: a confirmatory study without a lock, or anything that `verify_lock` or `verify_results` names.
    """
    study = StudyFolder(Path(folder))
    _refuse_changes(study)
    terms = study_terms(folder)
    if faults := verify_results(folder):
        raise LockError(f"{study.path} holds results that do not count: {in_one_line(faults)}; move them away.")
    return terms


def verify_lock(folder: str | Path) -> list[Tampering]:
    """Every difference between the study and its lock; none for an untouched one, or an exploratory one without lock.

    A lock that was edited itself is the one difference named: nothing can be held against it.

    Raises:
        LockError: a confirmatory study without a lock.
    """
    study = StudyFolder(Path(folder))
    if not study.lock_path.exists() and study_terms(folder).exploratory:
        return []
    raw = _raw(study)
    if fault := _lock_fault(raw):
        return [fault]
    return changes(study, raw["content"])


def verify_results(folder: str | Path, required: Collection[str] = ()) -> list[Tampering]:
    """Every result file that does not count: edited, renamed, of no planned cell, of another study or mode.

    Args:
        folder: the study.
        required: ids of cells whose absence is named too, such as all that a finished study once had.

    Raises:
        LockError: a confirmatory study without a whole lock.
    """
    study = StudyFolder(Path(folder))
    terms = study_terms(folder)
    results = {path.stem: _parsed(path) for path in sorted(study.results_path.glob("[!.]*.json"))}
    sealed = {name: result for name, result in results.items() if result is not None}
    edited = [
        Tampering(f"results/{name}.json", "the result that its cell sealed", "an edited one")
        for name in results
        if name not in sealed
    ]
    absent = [Tampering(f"results/{cell}.json", "a result", "nothing") for cell in required if cell not in results]
    return [*edited, *foreign_results(terms, sealed), *absent]


def foreign_results(terms: Lock, results: Mapping[str, Mapping[str, Any]]) -> list[Tampering]:
    """Of results that were read and found sealed, by file name without ``.json``: those that are not this study's."""
    cells = {cell.id: cell for cell in terms.plan.cells()}
    faults = ((name, _difference(name, result, terms, cells)) for name, result in results.items())
    return [Tampering(f"results/{name}.json", *difference) for name, difference in faults if difference]


def study_terms(folder: str | Path) -> Lock:
    """What results must agree with: the lock, or for want of one the plan of an exploratory study.

    Raises:
        LockError: a confirmatory study without a lock, or a lock that was edited.
    """
    study = StudyFolder(Path(folder))
    if study.lock_path.exists():
        return read_lock(folder)
    plan = load_plan(study.plan_path)
    if plan.mode == "confirmatory":
        raise _not_locked(study)
    return Lock(None, plan, {})


def _not_locked(study: StudyFolder) -> LockError:
    return LockError(f"{study.path} is not locked; run `stablerank study lock {study.path}` before it has results.")


def _refuse_changes(study: StudyFolder) -> None:
    if differences := verify_lock(study.path):
        raise LockError(
            f"{study.path} has changed since it was locked: {in_one_line(differences)}; put that back, or lock the new "
            "study in a folder of its own."
        )


def _refuse_results(study: StudyFolder) -> None:
    for folder in (study.results_path, study.path / "runs"):
        if folder.is_dir() and (there := sorted(path.name for path in folder.glob("[!.]*"))):
            raise LockError(
                f"{folder / there[0]} is older than the lock would be, and a plan made after its results proves "
                "nothing; lock a copy of plan and specs in a new folder."
            )


def _refuse_unlockable(files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        if os.path.isabs(name):
            raise LockError(
                f"{name} is a path of this machine alone, so it is not locked; write {os.path.relpath(name)}."
            )
        if not path.is_file():
            raise LockError(
                f"{name} is no file or model folder here, so its bytes cannot be locked; give the path of one "
                "(`hf download` makes a folder of a hub id, `stablerank zoo fetch` one of a zoo name)."
            )


def _content(study: StudyFolder, plan: Plan) -> dict[str, Any]:
    said = plan.model_dump(mode="json")
    recipes = {name: inputs.resolved_recipe(study, arm) for name, arm in said["arms"].items() if arm["kind"] == "train"}
    files = inputs.named_files(study, said, recipes)
    _refuse_unlockable(files)
    commit, dirty = inputs.commit()
    return {
        "plan": {"bytes": sha256(study.plan_path), "content": said},
        "exploratory": plan.mode == "exploratory",
        "recipes": recipes,
        "files": inputs.hashes(files),
        "commit": commit,
        "dirty": dirty,
        "sources": inputs.sources(),
        "packages": inputs.packages(),
        "locked_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _raw(study: StudyFolder) -> Any:
    """What ``plan.lock`` holds, None when it is not JSON."""
    try:
        return json.loads(study.lock_path.read_bytes())
    except FileNotFoundError:
        raise _not_locked(study) from None
    except (ValueError, RecursionError):
        return None


def _lock_fault(raw: Any) -> Tampering | None:
    if not isinstance(raw, dict) or raw.keys() != {SEAL, "content"} or not isinstance(raw["content"], dict):
        return Tampering("plan.lock", "a lock as `stablerank study lock` writes it", "something else")
    if not is_sealed({**raw["content"], SEAL: raw[SEAL]}):
        return Tampering("plan.lock", "the content that was locked", "an edited one, which its SHA-256 does not fit")
    if raw["content"].keys() != _CONTENT:
        return Tampering("plan.lock", "the sections of this release", "others")
    return None


def _parsed(path: Path) -> dict[str, Any] | None:
    """A result whose seal holds, or None."""
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) and is_sealed(result) else None


def _difference(name: str, result: Mapping[str, Any], terms: Lock, cells: Mapping[str, Cell]) -> tuple[str, str] | None:
    """What was expected and what was found, of the first thing that is wrong with a result."""
    cell = cells.get(name)
    if cell is None:
        return "a cell of the plan", f"{name}, which is none"
    for key, expected in (("cell", cell.id), ("arm", cell.arm), ("seed", cell.seed), ("kind", cell.kind)):
        if result.get(key) != expected:
            return f"{key} {expected}", f"{key} {result.get(key)}"
    if result.get("exploratory") is not terms.exploratory:
        modes = ("an exploratory result", "a confirmatory result")
        return modes if terms.exploratory else modes[::-1]
    # An exploratory result may have been made without the lock.
    locks = (terms.sha256, None) if terms.exploratory else (terms.sha256,)
    found = result.get("study_sha256")
    return None if found in locks else (f"one under {_lock_name(terms.sha256)}", f"one under {_lock_name(found)}")


def _lock_name(digest: Any) -> str:
    return "no lock" if digest is None else f"lock {digest!s:.12}"
