"""A study of its own with a library of its own, in a git repository: locked, given results, then tampered with.

Every case starts from a locked study with a result a cell, changes one thing the way a person would, and asks for the
changed file by name. The repository is moved after the lock, so that every case also shows that no path is absolute.
"""

import copy
import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from stablerank.errors import ModelError, RecipeError
from stablerank.runs.atomic import write_json
from stablerank.runs.manifest import PACKAGES
from stablerank.studies import inputs
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import LockError, lock, locked_study, read_lock, verify_lock, verify_results
from stablerank.studies.plan import load_plan
from stablerank.studies.sealing import digest, is_sealed, seal
from stablerank.training import recipe as recipes
from stablerank.zoo import catalogue

PLAN = {
    "question": "Does outcome reward raise pass@1?",
    "seeds": [0, 1, 2],
    "arms": {
        "outcome": {"kind": "train", "spec": "recipe.yaml", "difficulty": 1.0},
        "random": {
            "kind": "train",
            "spec": "recipe.yaml",
            "overrides": ["reward={kind: python, ref: 'studies/gain/reward.py:score'}"],
        },
        "tiny": {"kind": "measure", "spec": "models/tiny"},
    },
    "hypotheses": {
        "gain": {
            "claim": "Outcome reward raises pass@1.",
            "rule": {"kind": "difference", "column": "pass_at_1_gain", "arm": "outcome", "margin": 0.05},
        }
    },
    "traps": {"noise": {"kind": "difference", "column": "pass_at_1_gain", "arm": "random", "margin": 0.05}},
    "data": ["notes.csv"],
}
RECIPE = {
    "model": {"path": "zoo:arith-student"},
    "data": {"kind": "file", "path": "data/train.jsonl", "test_path": "data:test.jsonl"},
    "reward": {"kind": "math_verify"},
    "optimiser": {"learning_rate": 1e-3},
    "trainer": {"max_steps": 10},
    "output": "unused",
}
FILES = {
    "study:recipe.yaml",
    "study:notes.csv",
    "data/train.jsonl",
    "data:test.jsonl",
    "studies/gain/reward.py",
    "models/tiny/model.safetensors",
    "models/tiny/config.json",
    "zoo:arith-student/model.safetensors",
    "zoo:arith-student/tokenizer.json",
    "stablerank:constraints.txt",
}
SOURCES = ("errors.py", "rewards/credit/advantages.py", "runs/manifest.py", "spectral/gram.py", "training/recipe.py")
"""As much of the library as the cases below change."""
SCORE = "def score(completions, **columns):\n    return [0.5 for _ in completions]\n"
VERSIONS = {"torch": "2.9.0", "scipy": "1.17.0"}


@dataclass(frozen=True)
class World:
    """A checkout of the library with a study in it."""

    root: Path

    @property
    def study(self):
        return StudyFolder(self.root / "studies" / "gain")

    @property
    def package(self):
        return self.root / "src" / "stablerank"

    def file(self, name):
        """Where the test put what the lock calls ``name``."""
        scheme, _, rest = name.rpartition(":")
        roots = {
            "study": self.study.path,
            "data": self.root / "real",
            "zoo": self.package / "zoo" / "models",
            "stablerank": self.root,
            "": self.root,
        }
        return roots[scheme] / rest

    def git(self, *arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.autocrlf=false"]
        command = ["git", "-C", str(self.root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self):
        self.git("add", "--all")
        self.git("commit", "-q", "--allow-empty", "-m", "work")
        return self.git("rev-parse", "HEAD")

    def enter(self, monkeypatch):
        """Make this the library whose code is recorded and whose zoo is read, and its root the working directory."""
        spec = importlib.util.spec_from_file_location("manifest_of_a_world", self.package / "runs" / "manifest.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(inputs, "PACKAGE", self.package)
        monkeypatch.setattr(inputs, "code_state", module.code_state)
        monkeypatch.setattr(catalogue, "_EMBEDDED", self.package / "zoo" / "models")
        monkeypatch.setenv("STABLERANK_DATA", str(self.root / "real"))
        monkeypatch.chdir(self.root)

    def lock(self):
        return lock(self.study.path)

    def plan(self, **changes):
        write_yaml(self.study.plan_path, {**PLAN, **changes})

    def result(self, cell, terms=None, **changes):
        """Seal a result as a cell would, numbers apart."""
        terms = terms or locked_study(self.study.path)
        planned = next(planned for planned in terms.plan.cells() if planned.id == cell)
        content = {
            "cell": cell,
            "arm": planned.arm,
            "seed": planned.seed,
            "kind": planned.kind,
            "study_sha256": terms.sha256,
            "exploratory": terms.exploratory,
            "status": "done",
            "error": None,
            "seconds": 1.5,
            "values": {"pass_at_1_gain": 0.125},
            "units": {"pass_at_1_gain": {"q1": 1.0, "q2": 0.0}},
            "provenance": {"spec": planned.spec},
        }
        write_json(self.study.result_path(cell), seal({**content, **changes}))

    def results(self):
        terms = locked_study(self.study.path)
        for cell in terms.plan.cells():
            self.result(cell.id, terms)

    def faults(self):
        """Everything that is found, of a study that ought to be finished."""
        if differences := verify_lock(self.study.path):
            return differences
        return verify_results(self.study.path, [cell.id for cell in read_lock(self.study.path).plan.cells()])


def write_yaml(path, value):
    path.write_text(yaml.safe_dump(value, sort_keys=False))


def change_json(path, change):
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value, indent=2))


def change_text(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # in another test's folder the file may be a link to the same bytes
    path.write_bytes(content)


def copied(template, root):
    """The template's tree, its megabytes of weights linked."""

    def copy_or_link(source, target):
        return os.link(source, target) if source.endswith(".safetensors") else shutil.copy(source, target)

    return World(Path(shutil.copytree(template.root, root, copy_function=copy_or_link)))


@pytest.fixture(scope="module")
def unlocked_template(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world") / "checkout")
    ours = Path(inputs.__file__).parents[1]
    for name in SOURCES:
        (world.package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ours / name, world.package / name)
    student = ours / "zoo" / "models" / "arith-student"
    shutil.copytree(student, world.package / "zoo" / "models" / "arith-student")
    for name in FILES:
        world.file(name).parent.mkdir(parents=True, exist_ok=True)
    world.plan()
    write_yaml(world.file("study:recipe.yaml"), RECIPE)
    world.file("study:notes.csv").write_text("a,b\n")
    world.file("data/train.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    world.file("data:test.jsonl").write_text('{"prompt": "2+2", "answer": "4"}\n')
    world.file("studies/gain/reward.py").write_text(SCORE)
    save_file({"w": np.eye(4, dtype=np.float32)}, world.file("models/tiny/model.safetensors"))
    world.file("models/tiny/config.json").write_text("{}")
    world.file("stablerank:constraints.txt").write_text("torch==2.9.0\n")
    (world.root / "models" / "tiny" / "notes.md").write_text("not read when the model is loaded")
    (world.root / ".gitignore").write_text("*.safetensors\n")
    world.git("init", "-q", "--template=")
    world.commit()
    return world


@pytest.fixture(scope="module")
def locked_template(unlocked_template, tmp_path_factory):
    world = copied(unlocked_template, tmp_path_factory.mktemp("locked") / "checkout")
    with pytest.MonkeyPatch.context() as monkeypatch:
        world.enter(monkeypatch)
        world.lock()
        world.results()
    return world


@pytest.fixture
def fresh(unlocked_template, tmp_path, monkeypatch):
    """A study that is not locked."""
    world = copied(unlocked_template, tmp_path / "here")
    world.enter(monkeypatch)
    return world


@pytest.fixture
def world(locked_template, tmp_path, monkeypatch):
    """A study that was locked elsewhere and has a result a cell."""
    world = copied(locked_template, tmp_path / "elsewhere")
    world.enter(monkeypatch)
    return world


def plan_field(*keys, value):
    def tamper(world, monkeypatch):
        plan = copy.deepcopy(PLAN)
        place = plan
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        write_yaml(world.study.plan_path, plan)

    return tamper


def bit(name):
    return lambda world, monkeypatch: flip_a_bit(world.file(name))


def gone(name):
    return lambda world, monkeypatch: world.file(name).unlink()


def text(name, before, after):
    return lambda world, monkeypatch: change_text(world.file(name), before, after)


def written(name, content):
    return lambda world, monkeypatch: world.file(name).write_text(content)


def in_lock(change):
    return lambda world, monkeypatch: change_json(world.study.lock_path, change)


def in_result(change, cell="outcome--1"):
    return lambda world, monkeypatch: change_json(world.study.result_path(cell), change)


def resealed(cell="outcome--1", **changes):
    return lambda world, monkeypatch: world.result(cell, **changes)


def version(name):
    def tamper(world, monkeypatch):
        real = inputs.package_versions()
        monkeypatch.setattr(inputs, "package_versions", lambda: {**real, name: "0.0.1"})

    return tamper


def committed_source(world, monkeypatch):
    change_text(world.package / "rewards" / "credit" / "advantages.py", "import", "import  ")
    world.commit()


def moved_default(world, monkeypatch):
    change_text(world.package / "training" / "recipe.py", '"beta": 0.0', '"beta": 0.25')
    monkeypatch.setitem(recipes.LOSS_SETTINGS, "beta", 0.25)


def swap(world, monkeypatch):
    first, second = (world.study.result_path(cell) for cell in ("outcome--0", "random--0"))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def rename(before, after):
    return lambda world, monkeypatch: world.study.result_path(before).rename(world.study.result_path(after))


def other_study(world, monkeypatch):
    """A result of the same cell from a study that was locked a second time elsewhere."""
    change_json(world.study.lock_path, lambda lock: lock["content"].update(locked_at="2020-01-01T00:00:00+00:00"))
    reseal_lock(world)


def reseal_lock(world):
    change_json(world.study.lock_path, lambda lock: lock.update(sha256=digest(lock["content"])))


def forged_lock(world, monkeypatch):
    """A lock rewritten with every hash in it: the results still say whose they are."""
    change_json(world.study.lock_path, lambda lock: lock["content"].update(dirty=True))
    reseal_lock(world)


RULE = ("hypotheses", "gain", "rule")
ONE_RESULT = "results/outcome--1.json"
CASES = {
    # The plan.
    "plan margin": (plan_field(*RULE, "margin", value=0.01), "plan.yaml, hypotheses.gain.rule.margin"),
    "plan direction": (plan_field(*RULE, "direction", value="less"), "plan.yaml, hypotheses.gain.rule.direction"),
    "plan column": (plan_field(*RULE, "column", value="pass_at_1_after"), "plan.yaml, hypotheses.gain.rule.column"),
    "plan arm": (plan_field(*RULE, "arm", value="random"), "plan.yaml, hypotheses.gain.rule.arm"),
    "plan claim": (plan_field("hypotheses", "gain", "claim", value="It helps."), "plan.yaml, hypotheses.gain.claim"),
    "plan question": (plan_field("question", value="Does it?"), "plan.yaml, question"),
    "plan seed": (plan_field("seeds", value=[0, 1, 3]), "plan.yaml, seeds.2"),
    "plan seed dropped": (plan_field("seeds", value=[0, 1]), "plan.yaml, seeds.2"),
    "plan confidence": (plan_field("confidence", value=0.9), "plan.yaml, confidence"),
    "plan correction": (plan_field("correction", value="none"), "plan.yaml, correction"),
    "plan hardening": (plan_field("hardening", value=None), "plan.yaml, hardening"),
    "plan mode": (plan_field("mode", value="exploratory"), "plan.yaml, mode"),
    "plan trap dropped": (plan_field("traps", value={}), "plan.yaml, traps"),
    "plan kill added": (plan_field("hypotheses", "gain", "kill", value={**PLAN["traps"]["noise"]}), "gain.kill"),
    "plan override": (plan_field("arms", "outcome", "overrides", value=["seed_=1"]), "arms.outcome.overrides"),
    "plan data dropped": (plan_field("data", value=[]), "plan.yaml, data"),
    "plan layout": (lambda w, m: w.study.plan_path.write_bytes(w.study.plan_path.read_bytes() + b"\n"), "plan.yaml"),
    "plan comment": (lambda w, m: change_text(w.study.plan_path, "seeds:", "seeds:  # ten"), "plan.yaml"),
    "plan broken": (lambda w, m: w.study.plan_path.write_text("{"), "plan.yaml"),
    "plan removed": (lambda w, m: w.study.plan_path.unlink(), "plan.yaml"),
    # What the plan names.
    "spec value": (text("study:recipe.yaml", "0.001", "0.002"), "arm outcome, recipe.yaml, optimiser.learning_rate"),
    "spec bytes": (written("study:recipe.yaml", "# mine\n" + yaml.safe_dump(RECIPE)), "recipe.yaml"),
    "spec broken": (written("study:recipe.yaml", "model: ["), "arm random, recipe.yaml"),
    "spec removed": (gone("study:recipe.yaml"), "recipe.yaml"),
    "spec default": (moved_default, "arm outcome, recipe.yaml, trainer.beta"),
    "spec shadowed": (
        lambda w, m: (
            shutil.copytree(w.root / "models", w.study.path / "models")
            and flip_a_bit(w.study.path / "models" / "tiny" / "model.safetensors")
        ),
        "models/tiny/model.safetensors",
    ),
    "reward file": (text("studies/gain/reward.py", "0.5", "0.6"), "studies/gain/reward.py"),
    "training data": (text("data/train.jsonl", "2", "3"), "data/train.jsonl"),
    "test data": (bit("data:test.jsonl"), "data:test.jsonl"),
    "data removed": (gone("data/train.jsonl"), "data/train.jsonl"),
    "plan's data": (bit("study:notes.csv"), "notes.csv"),
    "zoo weights": (bit("zoo:arith-student/model.safetensors"), "zoo:arith-student/model.safetensors"),
    "zoo tokenizer": (bit("zoo:arith-student/tokenizer.json"), "zoo:arith-student/tokenizer.json"),
    "local weights": (bit("models/tiny/model.safetensors"), "models/tiny/model.safetensors"),
    "local weights joined": (written("models/tiny/x.safetensors", "more"), "models/tiny/x.safetensors"),
    "constraints": (text("stablerank:constraints.txt", "2.9.0", "2.9.1"), "constraints.txt"),
    "constraints removed": (gone("stablerank:constraints.txt"), "constraints.txt"),
    # The code.
    "commit": (committed_source, "stablerank/rewards/credit/advantages.py"),
    "source edited": (text("src/stablerank/errors.py", "user's", "users'"), "stablerank/errors.py"),
    "source added": (written("src/stablerank/sneaky.py", ""), "stablerank/sneaky.py"),
    "source removed": (gone("src/stablerank/spectral/gram.py"), "stablerank/spectral/gram.py"),
    "torch": (version("torch"), "package torch"),
    "own version": (version("stablerank"), "package stablerank"),
    # The lock.
    "lock plan": (in_lock(lambda k: k["content"]["plan"]["content"].update(confidence=0.9)), "plan.lock"),
    "lock mode": (in_lock(lambda k: k["content"].update(exploratory=True)), "plan.lock"),
    "lock file hash": (in_lock(lambda k: k["content"]["files"].update({"notes.csv": "0" * 64})), "plan.lock"),
    "lock commit": (in_lock(lambda k: k["content"].update(commit="0" * 40)), "plan.lock"),
    "lock dirty": (in_lock(lambda k: k["content"].update(dirty=True)), "plan.lock"),
    "lock date": (in_lock(lambda k: k["content"].update(locked_at="2020-01-01")), "plan.lock"),
    "lock hash": (in_lock(lambda k: k.update(sha256="0" * 64)), "plan.lock"),
    "lock addition": (in_lock(lambda k: k.update(note="fine")), "plan.lock"),
    "lock broken": (lambda w, m: w.study.lock_path.write_text("{"), "plan.lock"),
    "lock forged": (forged_lock, ONE_RESULT),
    "lock of another day": (other_study, ONE_RESULT),
    # The results.
    "value": (in_result(lambda r: r["values"].update(pass_at_1_gain=0.5)), ONE_RESULT),
    "value to null": (in_result(lambda r: r["values"].update(pass_at_1_gain=None)), ONE_RESULT),
    "value to NaN": (in_result(lambda r: r["values"].update(pass_at_1_gain=float("nan"))), ONE_RESULT),
    "value added": (in_result(lambda r: r["values"].update(luck=1.0)), ONE_RESULT),
    "value's last digit": (in_result(lambda r: r["values"].update(pass_at_1_gain=0.12500000000000003)), ONE_RESULT),
    "unit": (in_result(lambda r: r["units"]["pass_at_1_gain"].update(q2=1.0)), ONE_RESULT),
    "unit dropped": (in_result(lambda r: r["units"]["pass_at_1_gain"].pop("q2")), ONE_RESULT),
    "seed": (in_result(lambda r: r.update(seed=7)), ONE_RESULT),
    "cell": (in_result(lambda r: r.update(cell="outcome--2")), ONE_RESULT),
    "status": (in_result(lambda r: r.update(status="failed")), ONE_RESULT),
    "exploratory flag": (in_result(lambda r: r.update(exploratory=True)), ONE_RESULT),
    "provenance": (in_result(lambda r: r["provenance"].update(spec="other.yaml")), ONE_RESULT),
    "seal dropped": (in_result(lambda r: r.pop("sha256")), ONE_RESULT),
    "result broken": (lambda w, m: w.study.result_path("outcome--1").write_text("{"), ONE_RESULT),
    "result emptied": (lambda w, m: w.study.result_path("outcome--1").write_text(""), ONE_RESULT),
    "result of no object": (lambda w, m: w.study.result_path("outcome--1").write_text("[]"), ONE_RESULT),
    "result removed": (lambda w, m: w.study.result_path("outcome--1").unlink(), ONE_RESULT),
    "result renamed": (rename("outcome--1", "outcome--9"), "results/outcome--9.json"),
    "result copied over": (rename("outcome--0", "outcome--1"), ONE_RESULT),
    "results swapped": (swap, "results/random--0.json"),
    "result added": (
        lambda w, m: shutil.copy(w.study.result_path("tiny--0"), w.study.result_path("tiny--3")),
        "tiny--3",
    ),
    # Results that some cell did seal.
    "exploratory result": (resealed(exploratory=True), ONE_RESULT),
    "unlocked result": (resealed(study_sha256=None), ONE_RESULT),
    "foreign result": (resealed(study_sha256="f" * 64), ONE_RESULT),
    "foreign seed": (resealed(seed=2), ONE_RESULT),
    "foreign arm": (resealed(arm="random"), ONE_RESULT),
    "foreign kind": (resealed(kind="measure"), ONE_RESULT),
    "odd hash": (resealed(study_sha256=["f"]), ONE_RESULT),
}


def test_an_untouched_study_verifies_where_it_was_locked_and_where_it_was_moved(locked_template, world, monkeypatch):
    assert world.faults() == []
    assert locked_study(world.study.path).sha256 == json.loads(world.study.lock_path.read_text())["sha256"]
    locked_template.enter(monkeypatch)
    assert locked_template.faults() == []


@pytest.mark.parametrize("case", CASES)
def test_tampering_is_found_and_named(world, monkeypatch, case):
    tamper, expected = CASES[case]
    tamper(world, monkeypatch)
    faults = world.faults()
    assert any(expected in fault.what for fault in faults), [str(fault) for fault in faults]
    assert all(fault.expected != fault.found for fault in faults)
    assert all(str(fault).endswith(".") and "\n" not in str(fault) for fault in faults)


BYTES = sorted(name for name in FILES if "zoo:" not in name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(BYTES), place=st.integers(0, 10**6), other=st.integers(1, 255))
def test_any_byte_of_any_file_is_found(world, name, place, other):
    path = world.file(name)
    held = path.read_bytes()
    content = bytearray(held)
    content[place % len(held)] ^= other
    path.unlink()
    path.write_bytes(content)
    try:
        assert name in {fault.what for fault in verify_lock(world.study.path)}
    finally:
        path.write_bytes(held)


def leaf_places(value, place=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in leaf_places(item, (*place, key))] or [place]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_of_lock_or_result_is_found(world, data):
    path = data.draw(st.sampled_from([world.study.lock_path, *sorted(world.study.results_path.iterdir())]))
    held = path.read_bytes()
    value = json.loads(held)
    *keys, last = data.draw(st.sampled_from(leaf_places(value)))
    place = value
    for key in keys:
        place = place[key]
    place[last] = data.draw(st.sampled_from([None, True, 2, 0.5, "x", [], {}]).filter(lambda new: new != place[last]))
    path.write_text(json.dumps(value))
    try:
        assert [path.name in fault.what for fault in world.faults()] == [True]
    finally:
        path.write_bytes(held)


def test_everything_that_decides_the_results_is_locked(fresh):
    made = fresh.lock()
    assert made.content["files"].keys() >= FILES
    assert "models/tiny/notes.md" not in made.content["files"]
    assert made.content["commit"] == fresh.git("rev-parse", "HEAD")
    assert made.content["sources"].keys() == {
        path.relative_to(fresh.root / "src").as_posix() for path in fresh.package.rglob("*.py")
    }
    assert {*PACKAGES, "scipy", "statsmodels"} == made.content["packages"].keys()
    assert made.content["recipes"]["outcome"]["trainer"]["vespo_k_pos"] == recipes.LOSS_SETTINGS["vespo_k_pos"]
    assert made.content["recipes"]["random"]["reward"] == {"kind": "python", "ref": "studies/gain/reward.py:score"}


def test_every_recipe_key_that_names_a_file_is_known():
    """A new kind of data or reward with a path of its own must not stay unlocked."""
    schema = recipes.Recipe.model_json_schema()
    named = {
        (section, key)
        for section in ("model", "adapter", "data", "reward", "credit", "optimiser", "geometry", "evaluation")
        for part in parts_of(schema, schema["properties"][section])
        for key in part.get("properties", {})
        if key in ("ref", "file", "folder") or key.endswith("path")
    }
    judges = {
        ("evaluation", "reward", key)
        for part in parts_of(schema, schema["properties"]["evaluation"])
        for branch in part["properties"]["reward"]["anyOf"]
        for judge in parts_of(schema, branch)
        for key in judge.get("properties", {})
        if key == "ref"
    }
    assert judges
    assert named | judges == set(inputs._PATHS)


def parts_of(schema, node):
    refs = [
        node.get("$ref"),
        *(branch.get("$ref") for key in ("oneOf", "anyOf", "allOf") for branch in node.get(key, [])),
    ]
    return [schema["$defs"][ref.rpartition("/")[2]] for ref in refs if ref]


def absolute_override(world):
    reward = f"{{kind: python, ref: '{world.file('studies/gain/reward.py')}:score'}}"
    return {"arms": {**PLAN["arms"], "random": {**PLAN["arms"]["random"], "overrides": [f"reward={reward}"]}}}


ABSOLUTE = {
    "studies/gain/reward.py": absolute_override,
    "models/tiny": lambda w: {"arms": {**PLAN["arms"], "tiny": {"kind": "measure", "spec": f"{w.root}/models/tiny"}}},
    "studies/gain/notes.csv": lambda w: {"data": [str(w.file("study:notes.csv"))]},
}


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_paths_are_refused_with_the_relative_one(fresh, name):
    fresh.plan(**ABSOLUTE[name](fresh))
    with pytest.raises(LockError, match=f"{fresh.root}/{name}.*; write {name}"):
        fresh.lock()


@pytest.mark.parametrize(
    "case", ["plan margin", "zoo weights", "spec default", "commit", "lock mode", "value", "odd hash"]
)
def test_a_study_that_was_tampered_with_does_not_run(world, monkeypatch, case):
    tamper, expected = CASES[case]
    tamper(world, monkeypatch)
    with pytest.raises(LockError) as caught:
        locked_study(world.study.path)
    assert expected in str(caught.value)
    assert str(world.study.path) in str(caught.value)


def test_no_path_of_this_machine_is_stored(world):
    assert "/tmp" not in world.study.lock_path.read_text()
    assert str(world.root.parents[1]) not in world.study.lock_path.read_text()


def test_what_does_not_decide_results_may_change(world):
    world.file("models/tiny/notes.md").write_text("other notes")
    (world.root / "README.md").write_text("new")
    (world.study.path / "logs").mkdir()
    (world.study.results_path / ".partial.json.tmp").write_text("{")
    change_json(world.study.result_path("outcome--1"), lambda result: None)
    assert world.faults() == []


def test_one_name_for_two_files_locks_both(fresh):
    """A recipe's path starts at the working directory, the plan's in the study folder."""
    twin = fresh.study.path / "data" / "train.jsonl"
    twin.parent.mkdir()
    twin.write_text("twin")
    fresh.plan(data=["data/train.jsonl"])
    fresh.lock()
    flip_a_bit(twin)
    assert [fault.what for fault in verify_lock(fresh.study.path)] == ["study:data/train.jsonl"]
    flip_a_bit(twin)
    flip_a_bit(fresh.file("data/train.jsonl"))
    assert [fault.what for fault in verify_lock(fresh.study.path)] == ["data/train.jsonl"]


def test_committing_the_lock_is_no_tampering(world):
    locked_at = read_lock(world.study.path).content["commit"]
    assert world.commit() != locked_at
    assert world.faults() == []


def test_a_changed_source_is_named_with_both_commits(world):
    before = world.git("rev-parse", "HEAD")
    change_text(world.package / "errors.py", "user's", "users'")
    assert f"between commit {before:.12} and uncommitted changes" in str(world.faults()[0])
    after = world.commit()
    assert f"between commit {before:.12} and commit {after:.12}" in str(world.faults()[0])


def test_sources_are_watched_without_git(fresh, monkeypatch):
    shutil.rmtree(fresh.root / ".git")
    made = fresh.lock()
    assert (made.content["commit"], made.content["dirty"]) == (None, False)
    assert fresh.lock().is_new is False
    change_text(fresh.package / "errors.py", "user's", "users'")
    assert [fault.what for fault in verify_lock(fresh.study.path)] == ["stablerank/errors.py"]


def test_a_second_lock_of_an_untouched_study_changes_nothing(world):
    before = world.study.lock_path.read_bytes()
    again = world.lock()
    assert not again.is_new
    assert again == read_lock(world.study.path)
    assert world.study.lock_path.read_bytes() == before


def test_a_second_lock_of_a_changed_study_is_refused_with_the_changes(world):
    before = world.study.lock_path.read_bytes()
    world.plan(confidence=0.9)
    flip_a_bit(world.file("study:notes.csv"))
    with pytest.raises(
        LockError, match=r"plan.yaml, confidence: expected 0.95, found 0.9; study:notes.csv: .*own"
    ) as caught:
        world.lock()
    assert "\n" not in str(caught.value)
    assert world.study.lock_path.read_bytes() == before


def test_many_changes_are_counted(world):
    for name in sorted(FILES)[:5]:
        world.file(name).write_bytes(world.file(name).read_bytes() + b"\n")
    with pytest.raises(LockError, match="and 2 more; put that back"):
        world.lock()


@pytest.mark.parametrize("leftover", ["results/outcome--0.json", "results/old.json", "runs/outcome--0/manifest.json"])
def test_results_older_than_the_lock_are_refused(fresh, leftover):
    place = fresh.study.path / leftover
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    with pytest.raises(LockError, match="older than the lock"):
        fresh.lock()
    assert not fresh.study.lock_path.exists()


def test_locking_anew_after_results_is_refused(world):
    world.study.lock_path.unlink()
    with pytest.raises(LockError, match="older than the lock"):
        world.lock()


def test_a_dirty_tree_is_refused_unless_exploratory(fresh):
    change_text(fresh.package / "errors.py", "user's", "users'")
    with pytest.raises(LockError, match="commit them, or set `mode: exploratory`"):
        fresh.lock()
    fresh.plan(mode="exploratory")
    made = fresh.lock()
    assert made.exploratory
    assert made.content["exploratory"] and made.content["dirty"]
    assert verify_lock(fresh.study.path) == []


def test_an_exploratory_study_is_not_promoted(fresh):
    fresh.plan(mode="exploratory")
    explored = fresh.lock()
    fresh.results()
    assert fresh.faults() == []
    fresh.plan(mode="confirmatory")
    assert [fault.what for fault in verify_lock(fresh.study.path)] == ["plan.yaml, mode"]
    with pytest.raises(LockError, match="changed since"):
        fresh.lock()
    fresh.study.lock_path.unlink()
    with pytest.raises(LockError, match="older than the lock"):
        fresh.lock()
    fresh.study.results_path.rename(fresh.root / "aside")
    confirmatory = fresh.lock()
    (fresh.root / "aside").rename(fresh.study.results_path)
    assert explored.sha256 != confirmatory.sha256
    faults = verify_results(fresh.study.path)
    assert {(fault.expected, fault.found) for fault in faults} == {("a confirmatory result", "an exploratory result")}
    assert len(faults) == 9


def test_an_exploratory_study_runs_without_a_lock(fresh):
    fresh.plan(mode="exploratory")
    terms = locked_study(fresh.study.path)
    assert (terms.sha256, terms.exploratory) == (None, True)
    fresh.result("outcome--0")
    assert verify_results(fresh.study.path) == []
    fresh.result("outcome--1", study_sha256="f" * 64)
    change_json(
        fresh.study.result_path("outcome--0"), lambda result: result.update(seal({**result, "exploratory": False}))
    )
    assert [fault.what for fault in verify_results(fresh.study.path)] == ["results/outcome--0.json", ONE_RESULT]


@pytest.mark.parametrize("ask", [verify_lock, verify_results, read_lock, locked_study])
def test_a_confirmatory_study_needs_its_lock(fresh, ask):
    with pytest.raises(LockError, match="is not locked; run `stablerank study lock"):
        ask(fresh.study.path)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": ["absent.csv"]}, LockError, "absent.csv is no file"),
        ({"data": ["data/train.jsonl/x"]}, LockError, "no file"),
        ({"arms": {**PLAN["arms"], "tiny": {"kind": "measure", "spec": "Qwen/Qwen3-8B"}}}, LockError, "hf download"),
        (
            {"arms": {**PLAN["arms"], "tiny": {"kind": "measure", "spec": "zoo:absent"}}},
            ModelError,
            "zoo:arith-student",
        ),
        ({"arms": {**PLAN["arms"], "tiny": {"kind": "train", "spec": "absent.yaml"}}}, RecipeError, "absent.yaml"),
        ({"seeds": []}, RecipeError, "seeds"),
    ],
)
def test_what_cannot_be_locked_is_refused_in_one_sentence(fresh, changes, error, words):
    fresh.plan(**changes)
    with pytest.raises(error, match=words) as caught:
        fresh.lock()
    assert "\n" not in str(caught.value)
    assert not fresh.study.lock_path.exists()


def test_hub_ids_of_recipes_are_refused(fresh):
    write_yaml(fresh.file("study:recipe.yaml"), {**RECIPE, "data": {"kind": "file", "path": "openai/gsm8k"}})
    with pytest.raises(LockError, match="openai/gsm8k is no file or model folder"):
        fresh.lock()


def test_numbers_without_json_can_be_locked(fresh):
    write_yaml(fresh.file("study:recipe.yaml"), {**RECIPE, "trainer": {"max_steps": 10, "delta": float("inf")}})
    assert fresh.lock().content["recipes"]["outcome"]["trainer"]["delta"] == "Infinity"
    assert fresh.lock().is_new is False


def test_the_lock_is_its_own_hash(fresh):
    made = fresh.lock()
    raw = json.loads(fresh.study.lock_path.read_text())
    assert made.is_new
    assert raw == {"sha256": made.sha256, "content": made.content}
    assert is_sealed({**raw["content"], "sha256": raw["sha256"]})
    assert made.plan == load_plan(fresh.study.plan_path) == read_lock(fresh.study.path).plan
    assert os.stat(fresh.study.lock_path).st_mode & 0o777 == 0o644


def test_a_set_of_pairs_is_the_file_behind_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STABLERANK_DATA", str(tmp_path))
    named = {"dpo": {"data": {"kind": "pairs", "path": "llmbar"}}}
    found = inputs.named_files(StudyFolder(tmp_path), {"arms": {}, "data": []}, named)
    assert found["llmbar"] == tmp_path / "llmbar_pairs.jsonl"
