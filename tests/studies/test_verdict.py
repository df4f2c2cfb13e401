"""From sealed results to the words of the verdict: every outcome, every reason for none, and the text."""

import json
import math

import numpy as np
import pytest
import yaml

from stablerank.errors import DataError
from stablerank.runs.atomic import write_json
from stablerank.studies.inference import evaluate
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import LockError, lock
from stablerank.studies.plan import load_plan
from stablerank.studies.results import load_results
from stablerank.studies.sealing import seal
from stablerank.studies.verdict import as_json, verdict
from stablerank.studies.verdict_text import WIDTH, text

RANK = {"kind": "difference", "column": "stable_rank"}
MEANS = {"flat": 1.0, "steep": 3.0, "twin": 3.0, "idle": 9.0}
PLAN = {
    "question": "Which arm has the higher stable rank?",
    "mode": "exploratory",
    "seeds": [0, 1, 2],
    "arms": {name: {"kind": "measure", "spec": "weights.safetensors"} for name in MEANS},
    "hypotheses": {
        "higher": {"claim": "Steep lies over flat.", "rule": {**RANK, "arm": "steep", "against": "flat"}},
        "lower": {"claim": "Steep lies under flat.", "rule": {**RANK, "arm": "flat", "against": "steep"}},
        "apart": {"claim": "Steep lies over its twin.", "rule": {**RANK, "arm": "steep", "against": "twin"}},
    },
    "traps": {"twins": {**RANK, "arm": "twin", "against": "steep", "margin": 1.0}},
    "controls": {"positive": {**RANK, "arm": "flat"}},
}
HOPELESS = {"claim": "Flat beats steep.", "rule": {**RANK, "arm": "flat", "against": "steep"}}


class Study:
    """A study in a folder, locked or about to be, whose cells a test fills by hand."""

    def __init__(self, path, **sections):
        self.path, self.folder = path, StudyFolder(path)
        (path / "weights.safetensors").write_bytes(b"weights")
        self.folder.plan_path.write_text(yaml.safe_dump({**PLAN, **sections}, sort_keys=False))
        self.lock = lock(path)
        self.generator = np.random.default_rng(0)

    def fill(self, *skipped, **changed):
        for cell in self.lock.plan.cells():
            if cell.id not in skipped:
                self.write(cell, **changed.get(cell.arm, {}))
        return self

    def write(self, cell, **changed):
        ranks = MEANS[cell.arm] + 0.1 * self.generator.normal(size=12)
        result = {
            "cell": cell.id,
            "arm": cell.arm,
            "seed": cell.seed,
            "kind": cell.kind,
            "study_sha256": self.lock.sha256,
            "exploratory": self.lock.exploratory,
            "status": "done",
            "error": None,
            "seconds": 1.0,
            "values": {"matrices": 12.0},
            "units": {"stable_rank": {f"matrix{unit}": float(rank) for unit, rank in enumerate(ranks)}},
            "provenance": {},
        }
        write_json(self.folder.result_path(cell.id), seal(result | changed))

    def verdict(self):
        found = verdict(self.path)
        assert json.loads(self.folder.verdict_path.read_text()) == json.loads(json.dumps(as_json(found)))
        return found

    def decisions(self):
        return {finding.name: finding.decision for finding in self.verdict().hypotheses}


@pytest.fixture
def study(tmp_path):
    return lambda **sections: Study(tmp_path, **sections)


def all_of(found):
    return {finding.decision for finding in found.hypotheses}


def test_confirmed_falsified_and_inconclusive(study):
    assert study().fill().decisions() == {"higher": "confirmed", "lower": "falsified", "apart": "inconclusive"}


def test_numbers_are_the_rules_own_and_name_their_files(study):
    made = study().fill()
    higher = made.verdict().hypotheses[0]
    plan, table = load_plan(made.folder.plan_path), load_results(made.folder.results_path)
    assert higher.rule.outcome == evaluate(plan.hypotheses["higher"].rule, table, 0.95)
    assert higher.p_corrected == pytest.approx(3 * higher.rule.outcome.p)
    assert higher.rule.files == tuple(f"results/{arm}--{seed}.json" for arm in ("steep", "flat") for seed in range(3))
    assert all((made.path / file).is_file() for file in higher.rule.files)


@pytest.mark.parametrize(("correction", "decision"), [("holm", "inconclusive"), ("none", "confirmed")])
def test_holm_asks_more_of_each_of_several(study, correction, decision):
    rule = {"kind": "difference", "column": "median_stable_rank"}
    claims = {
        name: {"claim": "!", "rule": {**rule, "arm": arm, "against": "flat"}}
        for name, arm in (("one", "steep"), ("two", "twin"), ("three", "idle"))
    }
    made = study(hypotheses=claims, traps={}, controls={}, correction=correction)
    for cell in made.lock.plan.cells():
        lead = (1.0, 1.5, 0.8)[cell.seed] if cell.arm == "steep" else 0.0
        noise = 0.0 if cell.arm in ("flat", "steep") else (-1.0, 1.0, 0.5)[cell.seed]
        made.write(cell, values={"median_stable_rank": 1 + lead + noise}, units={})
    one = made.verdict().hypotheses[0]
    assert 0.05 / 3 < one.rule.outcome.p < 0.05
    assert one.decision == decision
    assert one.p_corrected == pytest.approx(one.rule.outcome.p * (3 if correction == "holm" else 1))


def test_a_killed_hypothesis_needs_no_more_cells_and_stays_in_holms_family(study):
    kill = {**RANK, "arm": "idle", "against": "steep"}
    claims = {**PLAN["hypotheses"], "doomed": {"claim": "!", "rule": {**RANK, "arm": "idle"}, "kill": kill}}
    made = study(hypotheses=claims).fill("idle--2")
    found = made.verdict()
    assert made.decisions() == {
        "higher": "confirmed",
        "lower": "falsified",
        "apart": "inconclusive",
        "doomed": "killed",
    }
    doomed, higher = found.hypotheses[3], found.hypotheses[0]
    assert doomed.rule is None and doomed.kill.outcome.holds
    assert doomed.kill.outcome.n_seeds == 2
    assert doomed.kill.files == tuple(f"results/{arm}--{seed}.json" for arm in ("idle", "steep") for seed in range(2))
    assert higher.p_corrected == pytest.approx(4 * higher.rule.outcome.p)


def test_without_a_kill_the_same_cell_is_missing(study):
    claims = {**PLAN["hypotheses"], "hopeful": {"claim": "!", "rule": {**RANK, "arm": "idle"}}}
    assert study(hypotheses=claims).fill("idle--2").verdict().state == "incomplete"


def test_no_number_is_shown_before_the_last_cell(study):
    found = study().fill("flat--1", "twin--0").verdict()
    assert (found.state, all_of(found)) == ("incomplete", {"incomplete"})
    assert all(finding.rule is None for finding in found.hypotheses) and not found.traps and not found.controls
    assert "2 of 12 cells have no result yet" in found.problems[0] and "study run" in found.problems[0]


def test_a_failed_cell_makes_it_invalid_and_is_quoted(study):
    failed = {"status": "failed", "error": "ModelError: no matrix.", "values": {}, "units": {}}
    found = study().fill(twin=failed).verdict()
    assert (found.state, all_of(found)) == ("invalid", {"invalid"})
    assert len(found.problems) == 3 and "twin--0 failed (ModelError: no matrix)" in found.problems[0]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"traps": {"twins": {**RANK, "arm": "steep", "against": "flat"}}}, "Trap twins holds"),
        ({"controls": {"positive": {**RANK, "arm": "flat", "against": "steep"}}}, "Control positive does not hold"),
        (
            {"traps": {"t": {**RANK, "column": "median_stable_rank", "arm": "flat"}}},
            "Trap t cannot be judged (no result of arm flat",
        ),
        ({"controls": {"c": {**RANK, "column": "median_stable_rank", "arm": "flat"}}}, "Control c cannot be judged"),
    ],
)
def test_a_passing_trap_or_a_failing_control_makes_it_invalid(study, sections, said):
    found = study(**sections).fill().verdict()
    assert (found.state, all_of(found)) == ("invalid", {"invalid"})
    assert len(found.problems) == 1 and said in found.problems[0]
    assert all(finding.rule.outcome.is_defined for finding in found.hypotheses), "the numbers are shown all the same"


def edit_plan(made):
    path = made.folder.plan_path
    path.write_text(path.read_text().replace("margin: 1.0", "margin: 8.0"))


def edit_lock(made):
    path = made.folder.lock_path
    path.write_text(path.read_text().replace('"mode": "exploratory"', '"mode": "confirmatory"'))


def edit_result(made):
    path = made.folder.result_path("flat--1")
    path.write_text(path.read_text().replace('"matrix3": ', '"matrix3": 9'))


def edit_spec(made):
    (made.path / "weights.safetensors").write_bytes(b"other weights")


def foreign_result(made):
    cell = made.lock.plan.cells()[0]
    made.write(cell, study_sha256="0" * 64)


def confirmatory_result(made):
    made.write(made.lock.plan.cells()[0], exploratory=False)


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (edit_plan, "plan.yaml"),
        (edit_lock, "plan.lock"),
        (edit_result, "results/flat--1.json"),
        (edit_spec, "weights.safetensors"),
        (foreign_result, "results/flat--0.json"),
        (confirmatory_result, "results/flat--0.json"),
    ],
)
def test_tampering_makes_it_invalid_and_is_named(study, tamper, named):
    made = study().fill()
    assert made.verdict().state == "decided"
    tamper(made)
    found = made.verdict()
    assert (found.state, all_of(found)) == ("invalid", {"invalid"})
    assert any(named in problem for problem in found.problems)
    assert all(finding.rule is None for finding in found.hypotheses)


def test_a_sealed_file_that_is_no_result_is_refused(study):
    made = study().fill()
    path = made.folder.result_path("flat--0")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(seal({key: value for key, value in whole.items() if key != "units"})))
    with pytest.raises(DataError, match="lacks 'units'"):
        verdict(made.path)


def test_a_confirmatory_study_must_be_locked(tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**PLAN, "mode": "confirmatory"}))
    with pytest.raises(LockError, match="is not locked"):
        verdict(tmp_path)
    assert not (tmp_path / "verdict.json").exists()


def test_an_exploratory_study_may_lack_a_lock_and_says_so(study):
    made = study().fill(*[f"{arm}--{seed}" for arm in MEANS for seed in range(3)])
    made.folder.lock_path.unlink()
    for cell in made.lock.plan.cells():
        made.write(cell, study_sha256=None)
    found = made.verdict()
    assert (found.state, found.mode, found.lock) == ("decided", "exploratory", None)
    assert "exploratory (a lead, no evidence), not locked" in text(found)


def test_json_knows_no_infinity(study):
    made = study(seeds=[5], traps={}, controls={}).fill()
    outcome = made.verdict().hypotheses[0].rule.outcome
    assert outcome.low == -math.inf and all_of(made.verdict()) == {"inconclusive"}
    stored = json.loads(made.folder.verdict_path.read_text(), parse_constant=pytest.fail)
    assert stored["hypotheses"][0]["rule"]["outcome"]["low"] is None
    assert "[unbounded, unbounded]" in text(made.verdict())


def test_the_text_fits_a_screen_and_carries_every_number(study):
    kill = {**RANK, "arm": "idle", "against": "steep"}
    claims = {
        **PLAN["hypotheses"],
        "doomed": {"claim": "A\x1b[31m red\nclaim.", "rule": HOPELESS["rule"], "kill": kill},
    }
    found = study(hypotheses=claims).fill().verdict()
    lines = text(found).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= WIDTH
    assert "\x1b" not in text(found)
    joined = " ".join(" ".join(lines).split())
    for finding in found.hypotheses:
        judged = finding.rule or finding.kill
        assert f"{finding.decision} {finding.name}:" in joined
        outcome = judged.outcome
        assert f"{outcome.estimate:.4g} [{outcome.low:.4g}, {outcome.high:.4g}], p {outcome.p:.2g}" in joined
        assert outcome.method in joined
    assert "results/steep--{0,1,2}.json results/flat--{0,1,2}.json" in joined
    assert "trap fails twins" in joined and "control holds positive" in joined
    assert found.lock[:12] in lines[1]


def test_the_text_says_why_there_is_no_verdict(study):
    shown = text(study().fill("flat--1").verdict())
    assert "INCOMPLETE" in shown and "the first is flat--1" in shown and "[" not in shown


def test_a_verdict_is_the_same_twice_and_replaces_the_old_one(study):
    made = study().fill("flat--1")
    assert made.verdict().state == "incomplete"
    made.write(next(cell for cell in made.lock.plan.cells() if cell.id == "flat--1"))
    assert made.verdict() == made.verdict()
    assert [path.name for path in made.path.glob("*verdict*")] == ["verdict.json"]
