"""A plan says what it means, or says in one sentence why it cannot."""

import copy
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stablerank.errors import RecipeError
from stablerank.studies.plan import Cell, Plan, load_plan

GAIN = {"kind": "difference", "column": "pass_at_1_gain", "arm": "grpo", "against": "random"}
ABLE = {"kind": "rate", "column": "pass_at_1_before", "arm": "grpo", "at_least": 0.1}
RAW = {
    "question": "Does the outcome reward raise pass@1?",
    "seeds": [2, 0, 1],
    "arms": {
        "grpo": {"kind": "train", "spec": "grpo.yaml"},
        "random": {"kind": "train", "spec": "grpo.yaml", "overrides": ["reward.kind=random"], "difficulty": 2.0},
        "still": {"kind": "train", "spec": "grpo.yaml", "overrides": ["optimiser.learning_rate=1e-30"]},
        "weights": {"kind": "measure", "spec": "weights.yaml", "difficulty": 0.5},
    },
    "hypotheses": {
        "gain": {"claim": "It does.", "rule": {**GAIN, "margin": 0.02}, "kill": {**GAIN, "direction": "less"}},
        "order": {
            "claim": "And the arms line up.",
            "rule": {"kind": "ordering", "column": "pass_at_1_after", "arms": ["grpo", "random", "still"]},
        },
    },
    "traps": {"random": {**GAIN, "arm": "random", "against": None}},
    "controls": {
        "still": {"kind": "equivalence", "column": "pass_at_1_gain", "arm": "still", "margin": 0.01},
        "able": ABLE,
    },
}
MISSING = object()


def written(tmp_path, raw):
    path = tmp_path / "plan.yaml"
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False))
    return path


def changed(key, value):
    """`RAW` with one dotted key set, or left out."""
    raw = copy.deepcopy(RAW)
    *sections, leaf = key.split(".")
    place = raw
    for section in sections:
        place = place.setdefault(section, {})
    if value is MISSING:
        del place[leaf]
    else:
        place[leaf] = value
    return raw


def refusal(tmp_path, raw):
    path = written(tmp_path, raw)
    with pytest.raises(RecipeError) as caught:
        load_plan(path)
    message = str(caught.value)
    assert str(path) in message, "the sentence names the file"
    assert message.endswith(".") and "\n" not in message, "one sentence"
    return message


def test_defaults_are_the_strict_ones(tmp_path):
    plan = load_plan(written(tmp_path, RAW))
    assert (plan.mode, plan.confidence, plan.correction) == ("confirmatory", 0.95, "holm")
    assert (plan.hardening.baselines, plan.hardening.share) == (10, 0.10)
    assert plan.traps["random"].against is None and plan.traps["random"].margin == 0.0


def test_cells_run_the_hardest_arm_first_then_the_plans_order_then_by_seed(tmp_path):
    cells = load_plan(written(tmp_path, RAW)).cells()
    arms = ["random", "weights", "grpo", "still"]
    assert [cell.id for cell in cells] == [f"{arm}--{seed}" for arm in arms for seed in (0, 1, 2)]
    assert cells[1] == Cell("random--1", "random", 1, "train", "grpo.yaml", ("reward.kind=random",))


def test_every_rule_is_listed_with_its_key(tmp_path):
    listed = dict(load_plan(written(tmp_path, RAW)).rules())
    assert list(listed) == [
        "hypotheses.gain.rule",
        "hypotheses.gain.kill",
        "hypotheses.order.rule",
        "traps.random",
        "controls.still",
        "controls.able",
    ]
    assert listed["hypotheses.gain.kill"].arms_read == ("grpo", "random")
    assert listed["hypotheses.order.rule"].arms_read == ("grpo", "random", "still")
    assert listed["traps.random"].arms_read == ("random",)


def test_a_constant_and_an_arm_are_not_both_held_against(tmp_path):
    rule = {"kind": "difference", "column": "stable_rank", "arm": "weights", "constant": 2.0}
    raw = {**RAW, "controls": {"able": rule}}
    assert load_plan(written(tmp_path, raw)).controls["able"].constant == 2.0
    both = {**raw, "controls": {"able": {**rule, "against": "weights-again"}}}
    assert "keep one of them" in refusal(tmp_path, both)
    shares = {**rule, "column": "pass_at_1_after", "arm": "grpo", "constant": 0.5}
    assert "use kind: rate, or a margin" in refusal(tmp_path, {**raw, "controls": {"able": shares}})


TRAIN_ARMS = ["grpo", "random", "still"]
ARMS = st.sampled_from(TRAIN_ARMS)
RULES = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("difference"), "column": st.just("mean_stable_rank"), "arm": ARMS},
        optional={"margin": st.floats(0, 1e300), "direction": st.sampled_from(["greater", "less"])},
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("equivalence"),
            "column": st.just("mean_stable_rank"),
            "arm": ARMS,
            "margin": st.floats(1e-300, 1e300),
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.just("trend"), "column": st.just("pass_at_1_after"), "arms": st.permutations(TRAIN_ARMS)},
        optional={"direction": st.sampled_from(["increasing", "decreasing"])},
    ),
    st.fixed_dictionaries(
        {"kind": st.just("baseline"), "column": st.just("mean_stable_rank"), "arm": st.just("grpo")},
        optional={"share": st.floats(0.1, 10)},
    ).map(lambda rule: {**rule, "nulls": ["random", "still"]}),
)


@given(rule=RULES, seeds=st.lists(st.integers(0, 2**31), min_size=5, max_size=6, unique=True))
def test_a_plan_survives_its_canonical_json(rule, seeds):
    plan = Plan.model_validate({**RAW, "seeds": seeds, "traps": {"other": rule}})
    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True, allow_nan=False)
    assert Plan.model_validate(json.loads(text)) == plan


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("questoin", "?", ["unknown key 'questoin'"]),
        ("question", MISSING, ["'question' is missing"]),
        ("hypotheses", {}, ["hypotheses={}", "at least 1"]),
        ("hypotheses", MISSING, ["'hypotheses' is missing"]),
        ("seeds", [], ["seeds=[]", "at least 1"]),
        ("seeds", [0, 1, 0], ["seeds holds 0 twice"]),
        ("seeds", [-1], ["seeds.0=-1"]),
        ("confidence", 1.0, ["confidence=1.0", "less than 1"]),
        ("correction", "bonferroni", ["correction='bonferroni'", "'holm'"]),
        ("arms.grpo.kind", "brew", ["arms.grpo.kind='brew'", "'train'"]),
        ("arms.grpo.overrides", ["seed=3"], ["arms.grpo: override 'seed=3'", "the plan's seeds"]),
        ("arms.grpo.overrides", ["quick"], ["arms.grpo: override 'quick' is not KEY=VALUE"]),
        ("arms.a--b", RAW["arms"]["grpo"], ["arms.'a--b' cannot name a file"]),
        ("arms.gr/po", RAW["arms"]["grpo"], ["cannot name a file"]),
        ("arms.GRPO", RAW["arms"]["grpo"], ["arms.grpo has a twin"]),
        ("hypotheses.gain.rule.arm", "gpro", ["hypotheses.gain.rule names arm 'gpro'", "grpo, random, still"]),
        ("hypotheses.gain.rule.against", "grpo", ["hypotheses.gain.rule: arm 'grpo' is named twice"]),
        ("hypotheses.gain.rule.margins", 1, ["unknown key 'hypotheses.gain.rule.margins'"]),
        ("hypotheses.gain.rule.margin", -0.1, ["hypotheses.gain.rule.margin=-0.1"]),
        ("hypotheses.gain.rule.margin", float("nan"), ["hypotheses.gain.rule.margin=nan"]),
        ("hypotheses.gain.rule.kind", MISSING, ["'hypotheses.gain.rule.kind' is missing"]),
        ("hypotheses.gain.rule.kind", "hunch", ["hypotheses.gain.rule", "'difference'"]),
        ("hypotheses.gain.rule", MISSING, ["'hypotheses.gain.rule' is missing"]),
        ("hypotheses.gain.kill", RAW["hypotheses"]["gain"]["rule"], ["hypotheses.gain: kill repeats rule"]),
        ("hypotheses.order.rule.arms", ["grpo"], ["hypotheses.order.rule.arms=['grpo']", "at least 2"]),
        ("traps.random", None, ["'traps.random' is missing"]),
        ("traps.random.arm", "weights", ["reads column 'pass_at_1_gain', which cell weights of kind measure lacks"]),
        ("traps.random.column", "pass_at_1_gian", ["traps.random reads column 'pass_at_1_gian'", "pass_at_1_gain"]),
        (
            "arms.weights.overrides",
            ["model.path=zoo:arith-teacher"],
            ["arms.weights: a measure arm has no setting 'model.path'; it has none."],
        ),
        ("spread.matrices", {"between": 1}, ["spread.matrices is of a column that no rule reads"]),
        ("spread.pass_at_1_gain", {"between": 0}, ["spread.pass_at_1_gain.between=0", "greater than 0"]),
        ("controls.still.margin", MISSING, ["'controls.still.margin' is missing"]),
        ("controls.still.margin", 0, ["controls.still.margin=0", "greater than 0"]),
        ("controls.able.at_least", None, ["controls.able: a rate without at_least or at_most always holds"]),
        ("controls.able.at_most", 0.05, ["at_least=0.1 leaves no room below at_most=0.05"]),
        ("controls.able.at_most", 1.5, ["controls.able.at_most=1.5"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence_that_names_the_key(tmp_path, key, value, said):
    message = refusal(tmp_path, changed(key, value))
    assert [words for words in said if words not in message] == []


def with_baseline(**rule):
    rule = {"kind": "baseline", "column": "pass_at_1_gain", "arm": "grpo", "nulls": ["random", "still"], **rule}
    return {**RAW, "hypotheses": {"lead": {"claim": "It beats luck.", "rule": rule}}}


def test_a_baseline_rule_owes_the_null_values_and_the_lead_that_hardening_asks_for(tmp_path):
    assert "6 null values (2 arms x 3 seeds)" in refusal(tmp_path, with_baseline())
    enough = {**with_baseline(), "seeds": [0, 1, 2, 3, 4]}
    assert load_plan(written(tmp_path, enough)).hypotheses["lead"].rule.arms_read == ("grpo", "random", "still")
    timid = {**with_baseline(share=0.01), "seeds": [0, 1, 2, 3, 4]}
    assert "hypotheses.lead.rule.share=0.01 is under hardening.share=0.1" in refusal(tmp_path, timid)
    load_plan(written(tmp_path, {**with_baseline(share=0.01), "hardening": None}))


def test_an_arm_may_not_be_its_own_null(tmp_path):
    assert "'grpo' is named twice" in refusal(tmp_path, with_baseline(nulls=["grpo", "random"]))


def test_a_rule_named_like_a_kind_keeps_its_name_in_the_sentence(tmp_path):
    raw = {**RAW, "traps": {"difference": {**GAIN, "margin": "wide"}}}
    assert "traps.difference.margin='wide'" in refusal(tmp_path, raw)


def test_a_key_written_twice_is_refused_not_silently_replaced(tmp_path):
    text = yaml.safe_dump(RAW, sort_keys=False)
    twice = text.replace("hypotheses:\n", "hypotheses:\n  order: {claim: 'first'}\n")
    assert "key 'order' stands twice" in refusal(tmp_path, twice)


def test_files_that_are_no_plan(tmp_path):
    assert "holds list" in refusal(tmp_path, "- question")
    assert "is not YAML" in refusal(tmp_path, "question: [")
    with pytest.raises(RecipeError, match=r"absent\.yaml cannot be read \(No such file"):
        load_plan(tmp_path / "absent.yaml")
