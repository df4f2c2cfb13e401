"""Day one: a user's own model folder, JSON lines and Python reward; and two processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stablerank.errors import DataError
from stablerank.facade import train
from stablerank.runs.folder import RunFolder
from stablerank.tasks.arithmetic import problems
from stablerank.zoo.resolve import resolve

REWARD = """
def ends_in_nine(prompts, completions, completion_ids, target, **columns):
    return [1.0 if text.rstrip("}\\n ").endswith(wanted) else 0.0 for text, wanted in zip(completions, target)]
"""


def test_own_model_own_rows_own_reward(small_recipe, tmp_path: Path) -> None:
    shutil.copytree(resolve("zoo:arith-student"), tmp_path / "my-model")
    rows = [{"q": p.prompt, "target": str(p.answer % 10)} for p in problems("train", 64, level="easy")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(REWARD)
    folder = train(
        small_recipe(
            tmp_path / "run",
            model={"path": str(tmp_path / "my-model")},
            data={"kind": "file", "path": str(tmp_path / "rows.jsonl"), "columns": {"prompt": "q"}},
            reward={"kind": "python", "ref": f"{tmp_path / 'reward.py'}:ends_in_nine"},
            trainer={"max_steps": 2},
            evaluation={"problems": 4, "every": 0},
        )
    )
    trained = [row for row in folder.rollouts.rows() if row["phase"] == "train"]
    wanted = {row["q"]: row["target"] for row in rows}
    for row in trained:
        assert row["reward"] == float(row["completion"].rstrip("}\n ").endswith(wanted[row["prompt"]]))
    held_out = {row["prompt"] for row in folder.rollouts.rows() if row["phase"] == "after"}
    assert held_out and not held_out & {row["prompt"] for row in trained}


def test_held_out_answers_have_a_judge_of_their_own(small_recipe, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("def all_right(completions, **rest):\n    return [1.0] * len(completions)\n")
    folder = train(
        small_recipe(
            tmp_path / "run",
            reward={"kind": "python", "ref": f"{tmp_path / 'reward.py'}:all_right"},
            trainer={"max_steps": 2},
            evaluation={"problems": 16, "every": 0, "reward": {"kind": "math_verify"}},
        )
    )
    assert {row["reward"] for row in folder.rollouts.rows() if row["phase"] == "train"} == {1.0}
    assert all(row["pass_at_1"] < 1 for row in folder.evaluations.rows())


def prompts_without_answers(folder: Path) -> dict:
    """Training rows are prompts alone; the held-out file has answers."""
    train_rows = [{"prompt": p.prompt} for p in problems("train", 32, level="easy")]
    test_rows = [{"prompt": p.prompt, "answer": str(p.answer)} for p in problems("test", 40, level="easy")]
    for name, rows in (("train", train_rows), ("test", test_rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "file", "path": str(folder / "train.jsonl"), "test_path": str(folder / "test.jsonl")}


def test_only_what_the_judge_reads_needs_its_answers(small_recipe, tmp_path: Path) -> None:
    folder = train(
        small_recipe(
            tmp_path / "run",
            data=prompts_without_answers(tmp_path),
            reward={"kind": "length", "limit": 32, "buffer": 16},
            trainer={"max_steps": 1, "save_steps": 1},
            evaluation={"problems": 8, "every": 0, "reward": {"kind": "math_verify"}},
        )
    )
    assert {row["answer"] for row in folder.rollouts.rows() if row["phase"] == "train"} == {None}
    assert 0 < folder.evaluations.rows()[0]["pass_at_1"] < 1


def test_a_column_that_a_reward_reads_is_missed_where_it_is_read(small_recipe, tmp_path: Path) -> None:
    data = prompts_without_answers(tmp_path)
    with pytest.raises(DataError, match="math_verify reads the column 'answer', which training row 0 lacks"):
        train(small_recipe(tmp_path / "run", data=data))
    judged = {"problems": 8, "every": 0, "reward": {"kind": "math_verify", "answer_column": "gold"}}
    with pytest.raises(DataError, match="'gold', which held-out row 0 lacks"):
        train(
            small_recipe(
                tmp_path / "run", reward={"kind": "length", "limit": 32, "buffer": 16}, data=data, evaluation=judged
            )
        )
    assert not (tmp_path / "run").exists()


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Our command on two processes. Without a GPU this means two CPU processes; `--cpu` would start only one."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "-m", "stablerank", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_accelerate_launch_on_two_processes(small_recipe, tmp_path: Path) -> None:
    raw = small_recipe(tmp_path / "run", trainer={"max_steps": 2, "per_device_train_batch_size": 6})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    done = launched("train", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["device"]["processes"] == 2
    assert [row["step"] for row in folder.metrics.rows()] == [1, 2]
    trained = [row for row in folder.rollouts.rows() if row["phase"] == "train"]
    # Groups of four over processes of six completions: the second group straddles them.
    assert len(trained) == 2 * 12
    for step in (1, 2):
        for group in range(3):
            rows = [row for row in trained if (row["step"], row["group"]) == (step, group)]
            assert len({row["prompt"] for row in rows}) == 1 and len(rows) == 4
            assert sum(row["advantage"] for row in rows) == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_blocks_are_refused_on_two_processes_before_anything_is_written(small_recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe(tmp_path / "run", geometry={"blocks_every": 2})))
    done = launched("train", str(tmp_path / "recipe.yaml"))
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert "geometry.blocks_every=2 measures the gradient of one process, but 2 train" in done.stderr
