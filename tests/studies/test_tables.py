"""Tables of a study and what differs between two, from sealed results; intervals against scipy and statsmodels."""

import json

import numpy as np
import pytest
import yaml
from scipy import stats

from stablerank.errors import DataError, RecipeError
from stablerank.studies.comparison import differences
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import LockError
from stablerank.studies.plan import load_plan
from stablerank.studies.sealing import digest, seal
from stablerank.studies.tables import markdown, summary

SEEDS = (0, 1, 2)
VALUES = {
    ("student", "a"): (1.0, 2.0, 4.0),
    ("student", "b"): (0.5, 0.25, 0.75),
    ("teacher", "a"): (3.0, 3.0, 3.5),
    ("teacher", "b"): (-1.0, 0.0, 1.0),
}


def write_study(folder, values=VALUES, units=None, **sections):
    """A study of four arms by two axes, and one arm beside them, with a sealed result a seed."""
    folder.mkdir()
    plan = {
        "question": "Which is larger?",
        "mode": "exploratory",
        "seeds": list(SEEDS),
        "arms": {"lone": {"kind": "measure", "spec": "zoo:arith-prm"}},
        "matrix": {
            "kind": "measure",
            "spec": "zoo:arith-student",
            "axes": {"model": {"student": None, "teacher": None}, "part": {"a": None, "b": None}},
        },
        "hypotheses": {
            "h": {"claim": "?", "rule": {"kind": "difference", "column": "median_stable_rank", "arm": "lone"}}
        },
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump({**plan, **sections}, sort_keys=False))
    for (model, part), numbers in values.items():
        for seed, value in zip(SEEDS, numbers, strict=True):
            write_result(folder, f"{model}-{part}", seed, value, units)
    for seed in SEEDS:
        write_result(folder, "lone", seed, 7.0 + seed, units)
    return folder


def write_result(folder, arm, seed, value, units=None, **changes):
    study = StudyFolder(folder)
    study.results_path.mkdir(exist_ok=True)
    result = {
        **{"cell": f"{arm}--{seed}", "arm": arm, "seed": seed, "kind": "measure"},
        **{"study_sha256": None, "exploratory": True, "status": "done", "error": None, "seconds": 1.0},
        "values": {"median_stable_rank": value},
        "units": units or {},
        **changes,
    }
    study.result_path(f"{arm}--{seed}").write_text(json.dumps(seal(result)))


def test_a_table_holds_the_mean_of_each_arm_and_its_student_interval(tmp_path):
    found = summary(write_study(tmp_path / "study"))
    assert found.problems == ()
    assert list(found.columns) == ["median_stable_rank"]
    of_arm = {mean.arm: mean for mean in found.columns["median_stable_rank"]}
    for (model, part), numbers in VALUES.items():
        low, high = stats.t.interval(0.95, len(SEEDS) - 1, np.mean(numbers), stats.sem(numbers))
        mean = of_arm[f"{model}-{part}"]
        assert (mean.mean, mean.low, mean.high) == pytest.approx((np.mean(numbers), low, high))
        assert (mean.labels, mean.seeds, mean.units) == ({"model": model, "part": part}, 3, 0)
    assert of_arm["lone"].mean == pytest.approx(8.0)


def test_markdown_lays_out_the_axes_and_is_the_same_for_the_same_records(tmp_path):
    study = write_study(tmp_path / "study")
    text = markdown(summary(study))
    assert text == markdown(summary(study))
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert table[0] == ["model", "part a", "part b"]
    assert [row[0] for row in table[2:4]] == ["student", "teacher"]
    assert table[2][1].startswith("2.333 (")
    assert table[4] == ["arm", "mean (interval)"]
    assert table[6][0] == "lone" and table[6][1].startswith("8 (")


def test_units_count_as_a_sample_of_their_own(tmp_path):
    units = {"stable_rank": {"m1": 1.0, "m2": 2.0, "m3": 6.0}}
    found = summary(write_study(tmp_path / "study", units=units), ["stable_rank"])
    mean = found.columns["stable_rank"][0]
    assert (mean.mean, mean.seeds, mean.units) == (pytest.approx(3.0), 3, 3)
    # All seeds agree, so that the units' spread alone is left.
    assert (mean.low, mean.high) == pytest.approx(stats.t.interval(0.95, 2, 3.0, stats.sem([1.0, 2.0, 6.0])))


def test_missing_and_failed_cells_are_shown(tmp_path):
    study = write_study(tmp_path / "study")
    (study / "results" / "student-a--1.json").unlink()
    write_result(study, "student-b", 2, None, status="failed", error="no memory.", values={})
    found = summary(study)
    assert found.problems[0].startswith("1 of 15 cells have no result, the first is student-a--1")
    assert found.problems[1] == "Cell student-b--2 failed (no memory)."
    assert found.cells["student-a"] == {"done": 2, "failed": 0, "missing": 1}
    assert found.cells["student-b"] == {"done": 2, "failed": 1, "missing": 0}
    text = markdown(found)
    assert text.count("2 of 3 seeds") == 2


def test_a_confirmatory_study_shows_no_number_before_its_last_cell(tmp_path):
    study = write_study(tmp_path / "study", values={})
    for path in (study / "results").iterdir():
        path.unlink()
    (study / "plan.yaml").write_text((study / "plan.yaml").read_text().replace("exploratory", "confirmatory"))
    with pytest.raises(LockError, match="is not locked"):
        summary(study)
    # Locking needs committed sources, which a checkout under work lacks; reading a lock does not.
    plan = load_plan(study / "plan.yaml").model_dump(mode="json")
    keys = ("recipes", "files", "commit", "dirty", "sources", "packages", "locked_at")
    content = {"plan": {"bytes": "", "content": plan}, "exploratory": False, **dict.fromkeys(keys)}
    (study / "plan.lock").write_text(json.dumps({"sha256": digest(content), "content": content}))
    write_result(study, "lone", 0, 3.25, study_sha256=digest(content), exploratory=False)
    found = summary(study)
    assert found.columns == {}
    assert "3.25" not in markdown(found)
    assert "shown with its last cell" in found.problems[0]


def test_an_edited_result_or_an_unknown_column_is_refused(tmp_path):
    study = write_study(tmp_path / "study")
    with pytest.raises(RecipeError, match="no result has column 'gain'; the results have median_stable_rank"):
        summary(study, ["gain"])
    path = study / "results" / "lone--0.json"
    path.write_text(path.read_text().replace("7.0", "9.0"))
    with pytest.raises(LockError, match="lone--0"):
        summary(study)


def test_equal_studies_do_not_differ(tmp_path):
    assert differences(write_study(tmp_path / "one"), write_study(tmp_path / "other")) == []


def test_what_differs_is_told_by_cell_and_column(tmp_path):
    units = {"stable_rank": {"m1": 1.0, "m2": 2.0, "m3": None}}
    one, other = write_study(tmp_path / "one", units=units), write_study(tmp_path / "other", units=units)
    (other / "results" / "lone--2.json").unlink()
    write_result(other, "lone", 1, None, status="failed", error="no memory", values={})
    write_result(other, "lone", 0, 7.5, {"stable_rank": {"m1": 1.5, "m2": 4.0, "m3": None}, "extra": {"m1": 0.0}})
    told = [str(unlike) for unlike in differences(one, other)]
    assert told == [
        "lone--0 extra: no column | a column",
        "lone--0 median_stable_rank: 7.0 | 7.5",
        "lone--0 stable_rank, 2 units, the furthest m2: 2.0 | 4.0",
        "lone--1: done | failed",
        "lone--2: done | no result",
    ]
    assert [str(u) for u in differences(one, other, 0.4)][1] == told[2].replace("2 units", "1 unit")


def test_times_and_memory_are_not_compared(tmp_path):
    one, other = write_study(tmp_path / "one"), write_study(tmp_path / "other")
    for study, seconds in ((one, 1.0), (other, 2.0)):
        write_result(study, "lone", 0, 7.0, values={"median_stable_rank": 7.0, "train_seconds": seconds})
    assert differences(one, other) == []


def test_a_folder_without_results_has_no_difference_to_tell(tmp_path):
    study = write_study(tmp_path / "one")
    with pytest.raises(DataError, match="holds no result"):
        differences(study, tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="tolerance is -1"):
        differences(study, study, -1)
