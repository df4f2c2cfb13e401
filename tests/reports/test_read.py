"""A run folder is read whatever state a run, or its death, left it in."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stablerank.errors import RunFolderError
from stablerank.reports.read import NO_LAYER, read_run, series


def test_a_finished_run_is_read_whole(finished_run: Path) -> None:
    run = read_run(finished_run)
    assert run.damage == ()
    assert run.summary is not None and run.summary.gain is not None
    assert run.summary.gain.value == 0.289
    assert [e.phase for e in run.evaluations] == ["curve"] * 7 + ["before", "after"]
    assert len(run.metrics) == run.last_step == 60
    assert len(run.before) == len(run.after) == 120


def test_only_stable_ranks_of_updates_are_kept(finished_run: Path) -> None:
    ranks = read_run(finished_run).ranks
    assert ranks is not None
    assert ranks.value_R.size == 13 * (7 * 4 + 1)
    assert np.isnan(ranks.value_R[ranks.step_R == 0]).all()
    assert np.nanmax(ranks.value_R) < 10
    assert set(ranks.layer_R[ranks.module_R == "lm_head"]) == {NO_LAYER}


def test_a_missing_null_is_nan(finished_run: Path) -> None:
    for shard in (finished_run / "geometry").glob("*.parquet"):
        rows = pq.read_table(shard).to_pylist()
        pq.write_table(pa.Table.from_pylist([row | {"null": None} for row in rows]), shard)
    ranks = read_run(finished_run).ranks
    assert ranks is not None and np.isnan(ranks.null_R).all()


def test_a_run_that_just_began_has_only_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"recipe": {}}')
    run = read_run(tmp_path)
    assert run.summary is None and run.ranks is None and run.last_step == 0
    assert not (run.metrics or run.evaluations or run.before or run.damage)


def test_a_line_that_a_kill_cut_short_is_no_row(finished_run: Path) -> None:
    for name in ("metrics.jsonl", "timings.jsonl", "evaluations.jsonl"):
        path = finished_run / name
        path.write_bytes(path.read_bytes()[:-7])
    run = read_run(finished_run)
    assert run.last_step == 59 and run.damage == ()
    assert run.evaluations_of("after") == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "summary.json"])
def test_a_damaged_file_is_named_and_left_out(finished_run: Path, name: str) -> None:
    (finished_run / name).write_text("{nonsense\n")
    assert [sentence.split(" ")[0] for sentence in read_run(finished_run).damage] == [name]


def test_a_damaged_shard_is_named_and_left_out(finished_run: Path) -> None:
    next((finished_run / "geometry").glob("*.parquet")).write_bytes(b"PAR1")
    run = read_run(finished_run)
    assert run.ranks is None and run.damage[0].startswith("geometry/ cannot be read")


@pytest.mark.parametrize("manifest", [None, "", "{", "[1, 2]", "{}"])
def test_a_folder_without_a_manifest_is_refused_in_one_sentence(tmp_path: Path, manifest: str | None) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(RunFolderError, match="not a run folder") as refusal:
        read_run(tmp_path)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_series_skips_what_was_not_measured() -> None:
    rows = [{"step": 1, "kl": 0.5}, {"step": 2}, {"step": 3, "kl": None}, {"step": 4, "kl": float("nan")}]
    steps, values = series([*rows, {"step": 5, "kl": 1}], "kl")
    assert steps.tolist() == [1, 5] and values.tolist() == [0.5, 1.0]
    assert series(rows, "entropy")[0].size == 0


def test_of_two_rows_with_one_step_the_later_counts(finished_run: Path) -> None:
    with (finished_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60, "reward": 7.0}) + "\n")
    run = read_run(finished_run)
    assert len(run.metrics) == 60 and run.metrics[-1]["reward"] == 7.0


def test_the_recipe_says_which_reward_passes(finished_run: Path) -> None:
    path = finished_run / "manifest.json"
    manifest = json.loads(path.read_text())
    right = sum(rollout.passed for rollout in read_run(finished_run).after)
    manifest["recipe"]["evaluation"]["pass_reward"] = 0.0
    path.write_text(json.dumps(manifest))
    assert 0 < right < 120 == sum(rollout.passed for rollout in read_run(finished_run).after)
