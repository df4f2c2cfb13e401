"""Results of a study without a lock that its plan has left behind.

Contract: a result is stale when the cell would be told something else today: another spec, override or file. What a
cell hangs on is hashed (`inputs_of`) and kept with its result; a stale result counts as none. A locked study has no
stale results: its lock refuses the change itself.

The library's own sources are left out: an exploratory study goes on while the code around it is written, and each
result names its commit. A result without a hash is of an older release, and is left as it is.
"""

from collections.abc import Mapping

from stablerank.errors import StablerankError
from stablerank.studies import inputs
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import Plan
from stablerank.studies.results import Result
from stablerank.studies.sealing import digest


def inputs_of(study: StudyFolder, plan: Plan, arm: str) -> str | None:
    """A hash over all that decides the results of an arm; None of a recipe that cannot be read: its cell says so."""
    said = plan.model_dump(mode="json")["arms"][arm]
    own = {key: said[key] for key in ("kind", "spec", "overrides")}
    try:
        recipes = {arm: inputs.resolved_recipe(study, said)} if said["kind"] == "train" else {}
        files = inputs.named_files(study, {"arms": {arm: said}, "data": plan.data}, recipes)
    except StablerankError:
        return None
    return digest({"arm": own, "recipe": recipes.get(arm), "files": inputs.hashes(files)})


def stale(study: StudyFolder, plan: Plan, results: Mapping[str, Result]) -> frozenset[str]:
    """Ids of the stale results."""
    hashed = {name: result for name, result in results.items() if result.get("inputs_sha256") is not None}
    if study.lock_path.exists() or not hashed:
        return frozenset()
    now = {arm: inputs_of(study, plan, arm) for arm in plan.arms.keys() & {each["arm"] for each in hashed.values()}}
    known = {name: result for name, result in hashed.items() if result["arm"] in now}
    return frozenset(name for name, result in known.items() if result["inputs_sha256"] != now[result["arm"]])
