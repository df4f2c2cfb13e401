"""What decides a study's results beside its plan: specs, data, weights, sources and packages, named and hashed.

A file is called as the plan or recipe calls it: ``zoo:``, ``data:``, a set of pairs, or a relative path from the
working directory, where the cells run. What the plan names is looked for in the study folder first, and called
``study:`` if found there.
Of a model folder every file counts that loading it may read: weights, configuration, tokenizer, chat template.

The library's own ``.py`` files are hashed one by one. They say what ran, with git or without; the commit only says
where to find it.

Left out on purpose: what a reward file imports (name those files under the plan's ``data``), and hub ids, whose bytes
can change behind their name.
"""

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from stablerank.runs.manifest import code_state, package_versions
from stablerank.studies.layout import StudyFolder
from stablerank.studies.plan import OWNED_ELSEWHERE
from stablerank.studies.settings import Scoring, settings_of
from stablerank.tasks.files import data_folder
from stablerank.tasks.preferences import SETS
from stablerank.zoo.cache import PROVENANCE, folder_of, sha256
from stablerank.zoo.catalogue import SCHEME, entry

PACKAGE = Path(__file__).parents[1]
_CONSTRAINTS = "stablerank:constraints.txt"
_DATA = "data:"
_PATHS = (
    ("model", "path"),
    ("adapter", "path"),
    ("data", "path"),
    ("data", "test_path"),
    ("reward", "ref"),
    ("evaluation", "reward", "ref"),
)
"""Every key of a recipe that names a file or a model, from the section down."""
_LOADED = frozenset({".safetensors", ".gguf", ".json", ".model", ".txt", ".jinja"})
"""Endings of what loading a model folder may read."""


def resolved_recipe(study: StudyFolder, arm: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A training arm's recipe with overrides and every default written out, less what the study decides.

    Raises:
        RecipeError: the recipe cannot be read or means nothing.
    """
    # The recipe loads TRL, seconds that verifying an unchanged study does not owe.
    from stablerank.training.recipe import load_recipe

    resolved = load_recipe(_found(study, arm["spec"])[1], arm["overrides"]).resolved()
    ours = {key: value for key, value in resolved.items() if key not in OWNED_ELSEWHERE}
    # Numbers that are not finite, which a seal refuses, become their names.
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(ours), parse_constant=str)
    return plain


def named_files(study: StudyFolder, plan: Mapping[str, Any], recipes: Mapping[str, Any]) -> dict[str, Path]:
    """Every file that the plan's content and the resolved recipes name, whether it exists or not."""
    found: dict[str, Path] = {}
    for name in (*(name for arm in plan["arms"].values() for name in _named_by(arm)), *plan["data"]):
        found |= _members(*_found(study, name))
    for recipe in recipes.values():
        for keys in _PATHS:
            if name := reduce(lambda section, key: (section or {}).get(key), keys, recipe):
                file = name.rpartition(":")[0] if keys[-1] == "ref" else name
                found |= _members(file, _path(file))
    constraints = PACKAGE.parents[1] / "constraints.txt"
    if PACKAGE.parent.name == "src" and constraints.is_file():
        found[_CONSTRAINTS] = constraints
    return found


def _named_by(arm: Mapping[str, Any]) -> Iterator[str]:
    """The spec of an arm, unless it is a testbed's name, and the model of one that scores."""
    if arm["kind"] != "testbed":
        yield arm["spec"]
    if arm["kind"] in ("score", "bestofn"):
        settings = settings_of(arm["kind"], arm["spec"], arm["overrides"])
        yield from (settings.model,) if isinstance(settings, Scoring) and settings.model else ()


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each file that is there."""
    return {name: sha256(path) for name, path in files.items() if path.is_file()}


def commit() -> tuple[str | None, bool]:
    """The commit of the library's sources, None outside a repository, and whether they differ from it."""
    state = code_state()
    return state["hash"], state["dirty"]


def sources() -> dict[str, str]:
    """SHA-256 of every ``.py`` file of the library."""
    return {path.relative_to(PACKAGE.parent).as_posix(): sha256(path) for path in PACKAGE.rglob("*.py")}


def packages() -> dict[str, str]:
    """Versions of what runs the cells and of what computes the verdict."""
    return {**package_versions(), **{name: importlib.metadata.version(name) for name in ("scipy", "statsmodels")}}


def _found(study: StudyFolder, name: str) -> tuple[str, Path]:
    """What the plan means by a name, as `StudyFolder.find` has it, under a name that says where it was found."""
    place = study.find(name)
    return (name if place == name else f"study:{name}"), _path(place)


def _path(name: str) -> Path:
    if name.startswith(SCHEME):
        return folder_of(entry(name))
    if name.startswith(_DATA):
        return data_folder() / name.removeprefix(_DATA)
    if name in SETS:
        return data_folder() / SETS[name][0]
    return Path(name).expanduser()


def _members(name: str, path: Path) -> dict[str, Path]:
    """The file itself, or the files of a model folder."""
    if not path.is_dir():
        return {name: path}
    # When and where a fetched model was fetched is in its provenance; the model is the same.
    files = [file for file in sorted(path.iterdir()) if file.suffix in _LOADED and file.name != PROVENANCE]
    return {f"{name}/{file.name}": file for file in files} or {name: path}
