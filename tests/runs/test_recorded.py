"""Recorded completions come back in their groups, and what is no rollout is refused by its row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stablerank.errors import DataError
from stablerank.runs.atomic import write_json
from stablerank.runs.folder import RunFolder
from stablerank.runs.recorded import read_groups

CHAT = [{"role": "user", "content": "1+1"}]


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_rows_of_one_prompt_are_a_group(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "1", "answer": 3},
        {"prompt": CHAT, "completion_ids": [5, 6], "truncated": True},
        {"prompt": "a", "completion": "2\u2028", "answer": 3},
    ]
    first, second = read_groups(written(tmp_path / "rows.jsonl", *rows))
    assert (first.name, first.prompt, [c.text for c in first.completions]) == ("group 0", "a", ["1", "2\u2028"])
    assert first.completions[0].columns == {"answer": 3} and first.completions[0].ids is None
    assert (second.prompt, second.completions[0].ids, second.completions[0].truncated) == (CHAT, (5, 6), True)


def test_parquet_reads_as_json_lines_do(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "1", "completion_ids": [1, 2]}, {"prompt": "a", "completion": "2"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_groups(tmp_path / "rows.parquet") == read_groups(written(tmp_path / "rows.jsonl", *rows))


def test_a_run_gives_its_training_groups_in_order_of_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.manifest_path, {"recipe": {}})
    for step in (2, 1):
        rows = [
            {"step": step, "phase": phase, "row": row, "group": row // 2, "prompt": "same", "answer": "3",
             "completion": f"{step}{row}", "reward": 1.0, "rewards": "{}", "advantage": 0.5, "tokens": 2,
             "truncated": False}
            for phase in ("train", "after") for row in range(4)
        ]  # fmt: skip
        folder.rollouts.write(step, rows)
    groups = read_groups(tmp_path)
    assert [group.name for group in groups] == [
        "group 0 (step 1)",
        "group 1 (step 1)",
        "group 2 (step 2)",
        "group 3 (step 2)",
    ]
    texts = [[completion.text for completion in group.completions] for group in groups]
    assert texts == [["10", "11"], ["12", "13"], ["20", "21"], ["22", "23"]]
    assert groups[0].completions[0].columns == {"answer": "3"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no rollout"),
        ([{"completion": "1"}], "row 0 has no prompt"),
        ([{"prompt": "a", "completion": "1"}, {"prompt": [], "completion": "1"}], "row 1 has no prompt"),
        ([{"prompt": "a"}], "row 0 has neither completion"),
        ([{"prompt": "a", "completion": 3}], "row 0 has neither completion"),
        ([{"prompt": "a", "completion_ids": ["1"]}], "row 0 has completion_ids that are no list"),
        ([{"prompt": "a", "completion_ids": "12"}], "row 0 has completion_ids that are no list"),
        ([[1]], "row 0 has no prompt"),
    ],
)
def test_a_row_that_is_no_rollout_is_named(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_groups(written(tmp_path / "rows.jsonl", *rows))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} cannot be read as rollouts"):
            read_groups(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read as rollouts"):
        read_groups(tmp_path / "absent.jsonl")
