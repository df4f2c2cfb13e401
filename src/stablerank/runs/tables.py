"""Tidy tables that grow while a run lives and can be cut back to a checkpoint.

`JsonlTable` holds one small row a line; `ShardedTable` holds one Parquet file a step, compacted into one file when the
run ends. Both know only one column by name: ``step``. Rows hold no wall-clock times, so that two runs of one recipe
can be compared byte for byte; times live in a table of their own.

Left out on purpose: locking. One process writes a run; everybody else reads.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stablerank.runs.atomic import write_text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class JsonlTable:
    """Append-only JSON lines. A line that a kill cut short is not a row."""

    path: Path

    def append(self, row: Row) -> None:
        """Add one row in a single write, so that a reader or a kill sees all of it or nothing."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def rows(self) -> list[dict[str, Any]]:
        """Every whole row; none when the file does not exist."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def truncate(self, last_step: int) -> None:
        """Forget every row after ``last_step`` (and a torn last line)."""
        kept = [row for row in self.rows() if row["step"] <= last_step]
        write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


@dataclass(frozen=True)
class ShardedTable:
    """One Parquet shard a step and part, named so that they sort; ``all.parquet`` once compacted."""

    folder: Path

    def write(self, step: int, rows: Sequence[Row], part: str = "rows") -> None:
        """Write, or write again, the shard of one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_parquet(self.folder / f"step-{step:08d}-{part}.parquet", pa.Table.from_pylist([dict(r) for r in rows]))

    def shards(self) -> list[Path]:
        """Paths of the shards, in order of their steps."""
        return sorted(self.folder.glob("step-*.parquet"))

    def truncate(self, last_step: int) -> None:
        """Delete the shards of every step after ``last_step``."""
        for shard in self.shards():
            if _step_of(shard) > last_step:
                shard.unlink()

    def compact(self) -> None:
        """Merge all shards into ``all.parquet``, once, when nothing more will be written."""
        shards, whole = self.shards(), self.folder / "all.parquet"
        # A kill while shards were being deleted leaves the whole file and some shards: merging those would lose rows.
        if shards and not whole.exists():
            _write_parquet(whole, _merged(shards))
        for shard in shards:
            shard.unlink()

    def read(self) -> pa.Table | None:
        """The whole table, or None when nothing was written."""
        whole = self.folder / "all.parquet"
        if whole.exists():
            return pq.read_table(whole)
        shards = self.shards()
        return _merged(shards) if shards else None

    def rows(self) -> list[dict[str, Any]]:
        """The whole table as dictionaries."""
        table = self.read()
        return [] if table is None else table.to_pylist()


def _merged(shards: Iterable[Path]) -> pa.Table:
    # A column may be all-null in one shard (no advantage before training); permissive promotion gives it its type.
    return pa.concat_tables([pq.read_table(shard) for shard in shards], promote_options="permissive")


def _write_parquet(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def _step_of(shard: Path) -> int:
    return int(shard.name.split("-")[1])
