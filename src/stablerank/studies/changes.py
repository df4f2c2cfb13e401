"""What has changed in a study since it was locked, part by part.

Contract: `changes` holds the content of a lock, itself unedited, against plan, files, recipes, sources and packages as
they are now. What the plan named when it was locked is looked up, whatever the plan names now.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from stablerank.errors import StablerankError
from stablerank.studies import inputs
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import load_plan
from stablerank.studies.tampering import Tampering, changed_data, changed_hashes, short_hash
from stablerank.zoo.cache import sha256


def changes(study: StudyFolder, content: Mapping[str, Any]) -> list[Tampering]:
    """Every difference between a study and the content of its lock."""
    named = inputs.named_files(study, content["plan"]["content"], content["recipes"])
    files = list(changed_hashes(content["files"], inputs.hashes(named)))
    sources = _source_changes(content)
    packages = list(changed_data(content["packages"], inputs.packages(), "package {}".format))
    # Code, packages and spec decide what a recipe resolves to, so that an untouched study need not load the trainer.
    recipes = _recipe_changes(study, content) if files or sources or packages else []
    return [*_plan_changes(study, content["plan"]), *files, *recipes, *sources, *packages]


def _plan_changes(study: StudyFolder, locked: Mapping[str, Any]) -> list[Tampering]:
    name = study.plan_path.name
    if not study.plan_path.is_file():
        return [Tampering(name, "the locked plan", "nothing")]
    found = sha256(study.plan_path)
    if found == locked["bytes"]:
        return []
    try:
        said = load_plan(study.plan_path).model_dump(mode="json")
    except StablerankError as error:
        return [_unreadable(name, "plan", error)]
    differences = list(changed_data(locked["content"], said, partial("{}, {}".format, name)))
    return differences or [
        Tampering(name, short_hash(locked["bytes"]), f"{short_hash(found)}, which says the same in other bytes")
    ]


def _recipe_changes(study: StudyFolder, content: Mapping[str, Any]) -> Iterator[Tampering]:
    arms = content["plan"]["content"]["arms"]
    for name, locked in content["recipes"].items():
        place = f"arm {name}, {arms[name]['spec']}"
        try:
            found = inputs.resolved_recipe(study, arms[name])
        except StablerankError as error:
            yield _unreadable(place, "recipe", error)
        else:
            yield from changed_data(locked, found, partial("{}, {}".format, place))


def _unreadable(place: str, what: str, error: StablerankError) -> Tampering:
    return Tampering(place, f"the locked {what}", f"one that cannot be read ({str(error).rstrip('.')})")


def _source_changes(content: Mapping[str, Any]) -> list[Tampering]:
    found = inputs.sources()
    if found == content["sources"]:
        return []
    commit, dirty = inputs.commit()
    since = ""
    if content["commit"] or commit:
        now = "uncommitted changes" if dirty else f"commit {commit!s:.12}"
        since = f" (between commit {content['commit']!s:.12} and {now})"
    return list(changed_hashes(content["sources"], found, lambda file: file + since))
