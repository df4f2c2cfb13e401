"""A matrix becomes the arms that one would have written, and cells are selected by what they are labelled with."""

import itertools

import pytest
import yaml

from stablerank.errors import RecipeError
from stablerank.studies.lock import lock, verify_lock
from stablerank.studies.plan import load_plan
from stablerank.studies.selection import parse_where, selected

RULE = {"kind": "difference", "column": "pass_at_1_gain", "arm": "outcome-rank1"}
MATRIX = {
    "kind": "train",
    "spec": "base.yaml",
    "overrides": ["trainer.max_steps=3"],
    "axes": {
        "density": {"outcome": None, "process": {"spec": "process.yaml", "difficulty": 2}},
        "rank": {1: ["adapter.r=1"], 16: ["adapter.r=16"], "full": ["adapter.kind=full"]},
    },
    "exclude": [{"density": "process", "rank": "full"}],
    "adjust": [{"where": {"rank": 16}, "overrides": ["optimiser.learning_rate=1e-3"]}],
}


def plan_file(tmp_path, matrix=None, **sections):
    raw = {
        "question": "?",
        "mode": "exploratory",
        "seeds": [4, 5],
        "matrix": MATRIX if matrix is None else matrix,
        "hypotheses": {"gain": {"claim": "It gains.", "rule": RULE}},
        **sections,
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def test_a_matrix_is_the_product_of_its_axes_less_what_is_excluded(tmp_path):
    plan = load_plan(plan_file(tmp_path))
    wanted = [
        f"{density}-{'full' if rank == 'full' else f'rank{rank}'}"
        for density, rank in itertools.product(("outcome", "process"), (1, 16, "full"))
        if (density, rank) != ("process", "full")
    ]
    assert list(plan.arms) == wanted
    assert plan.axes() == {"density": ("outcome", "process"), "rank": ("1", "16", "full")}
    assert len(plan.cells()) == 2 * len(wanted)
    assert [cell.arm for cell in plan.cells()[:4]] == ["process-rank1"] * 2 + ["process-rank16"] * 2, "hardest first"


def test_an_arm_has_what_the_matrix_its_labels_and_adjustments_say_in_that_order(tmp_path):
    arm = load_plan(plan_file(tmp_path)).arms["process-rank16"]
    assert (arm.kind, arm.spec, arm.difficulty) == ("train", "process.yaml", 2.0)
    assert arm.overrides == ("trainer.max_steps=3", "adapter.r=16", "optimiser.learning_rate=1e-3")
    assert arm.labels == {"density": "process", "rank": "16"}
    assert load_plan(plan_file(tmp_path)).arms["outcome-rank1"].spec == "base.yaml"


def test_a_matrix_says_the_same_as_its_arms_written_out(tmp_path):
    short = load_plan(plan_file(tmp_path))
    arms = short.model_dump(mode="json")["arms"]
    (tmp_path / "long").mkdir()
    raw = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    del raw["matrix"]
    (tmp_path / "long" / "plan.yaml").write_text(yaml.safe_dump({**raw, "arms": arms}, sort_keys=False))
    assert load_plan(tmp_path / "long" / "plan.yaml") == short


def test_arms_stand_beside_a_matrix(tmp_path):
    frozen = {"kind": "train", "spec": "base.yaml", "overrides": ["optimiser.learning_rate=0"]}
    plan = load_plan(plan_file(tmp_path, arms={"frozen": frozen}))
    assert next(iter(plan.arms)) == "frozen"
    assert plan.arms["frozen"].labels == {}


def with_(**changes):
    return {**MATRIX, **changes}


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (with_(exclude=[{"ranks": 1}]), "exclude names axis 'ranks', but the matrix has density, rank"),
        (with_(exclude=[{"rank": 2}]), "exclude names rank=2, but the axis has 1, 16, full"),
        (with_(adjust=[{"where": {"rank": 3}, "overrides": ["a=1"]}]), "adjust names rank=3"),
        (with_(axis={}), "unknown key 'matrix.axis'"),
        (with_(axes={}), "matrix.axes={}"),
        (with_(axes={"rank": {}}), "axes.rank has no label"),
        (with_(axes={"rank": [1, 2]}), "matrix.axes.rank=[1, 2]"),
        (with_(axes={"rank": {1: ["quick"]}}), "arms.rank1: override 'quick' is not KEY=VALUE"),
        (with_(axes={"seed": {1: [], 2: []}}, exclude=[], adjust=[]), "labels.seed would hide"),
        (with_(axes={"rank": {"a/b": []}}, exclude=[], adjust=[]), "cannot name a file"),
        (with_(spec=None), "'arms.outcome-rank1.spec' is missing"),
        (with_(kind="brew"), "arms.outcome-rank1.kind='brew'"),
        (with_(axes={"a": {"x-y": [], "x": []}, "b": {"z": [], "y-z": []}}, exclude=[], adjust=[]), "called x-y-z"),
    ],
)
def test_a_matrix_that_means_nothing_is_refused_in_one_sentence(tmp_path, matrix, said):
    path = plan_file(tmp_path, {**matrix, "exclude": matrix["exclude"] if "rank" in matrix["axes"] else []})
    if said.startswith(("axes.rank", "matrix.axes", "arms.rank1")):
        path = plan_file(tmp_path, {**matrix, "exclude": [], "adjust": []})
    with pytest.raises(RecipeError) as caught:
        load_plan(path)
    message = str(caught.value)
    assert said in message
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message


def test_a_matrix_locks_as_arms(tmp_path):
    matrix = {
        "kind": "measure",
        "spec": "zoo:arith-student",
        "axes": {"model": {"student": None, "teacher": {"spec": "zoo:arith-teacher"}}},
    }
    rule = {"kind": "difference", "column": "stable_rank", "arm": "student", "against": "teacher"}
    plan_file(tmp_path, matrix, hypotheses={"a": {"claim": "?", "rule": rule}})
    locked = lock(tmp_path)
    assert locked.content["plan"]["content"]["arms"]["teacher"]["labels"] == {"model": "teacher"}
    assert verify_lock(tmp_path) == []


def test_cells_are_selected_by_label_seed_arm_and_id(tmp_path):
    plan = load_plan(plan_file(tmp_path))
    every = [cell.id for cell in plan.cells()]
    assert [cell.id for cell in selected(plan)] == every
    where = parse_where(["rank=1,rank=16", "seed=5"])
    assert where == {"rank": {"1", "16"}, "seed": {"5"}}
    ranked = [cell for cell in plan.cells() if plan.arms[cell.arm].labels["rank"] in ("1", "16") and cell.seed == 5]
    assert selected(plan, where=where) == ranked
    assert [cell.id for cell in selected(plan, ["outcome-full--4"])] == ["outcome-full--4"]
    assert {cell.seed for cell in selected(plan, where={"arm": ["outcome-full"]})} == {4, 5}


@pytest.mark.parametrize(
    ("ids", "where", "said"),
    [
        (["outcome-full"], {}, "cell 'outcome-full' is none of the plan's 10"),
        ([], {"width": {"1"}}, "no 'width'; select by density, rank, arm, seed, kind"),
        ([], {"rank": {"2"}}, "no cell has rank=2; the plan has 1, 16, full"),
        (["outcome-full--4"], {"rank": {"1"}}, "no cell of the plan has all"),
    ],
)
def test_a_selection_of_nothing_is_one_sentence(tmp_path, ids, where, said):
    with pytest.raises(RecipeError) as caught:
        selected(load_plan(plan_file(tmp_path)), ids, where)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["rank", "=1", "rank=", "rank=1,"])
def test_where_is_key_and_value(text):
    with pytest.raises(RecipeError, match="is not KEY=VALUE"):
        parse_where([text])
