"""What the sweeps of stable rank over pairs share: one evaluation in a folder that an interrupted call goes on in."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import ROOT, print_table

from stablerank.cli.bars import passing_bar
from stablerank.rewardbenching import rewardbench

SETS = ("llmbar", "judgebench", "rmbench", "gsm8k_solutions")


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sets", nargs="+", default=list(SETS))
    made.add_argument("--pairs", type=int, default=None, help="of each set, evenly spread; all by default")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--work", type=Path, default=ROOT / "runs" / "sweeps")
    return made


def accuracies(sets: Sequence[str], scorers: Sequence[str], work: Path, **settings: Any) -> list[dict[str, Any]]:
    """Accuracy, also length-matched, of each scorer on every part of every set; one row each."""
    asked = json.dumps([list(sets), list(scorers), settings], sort_keys=True)
    out = work / hashlib.sha256(asked.encode()).hexdigest()[:12]
    with passing_bar("pairs") as tell:
        found = rewardbench(list(sets), list(scorers), out=out, progress=tell, **settings)
    return [
        {
            **{"set": one.name, "part": row.part, "scorer": row.scorer},
            **{"accuracy": asdict(row.agreement.accuracy), "matched": asdict(row.matched.accuracy)},
            **{"tie_rate": row.agreement.tie_rate, "pairs": row.agreement.pairs, "undefined": row.agreement.undefined},
        }
        for one in found.sets
        for row in one.rows
    ]


def show(title: str, rows: Sequence[dict[str, Any]], of: str) -> None:
    """Accuracies of whole sets on stdout."""
    lines = [
        [str(row[of]), row["set"], interval(row["accuracy"]), interval(row["matched"]), f"{row['tie_rate']:.3f}"]
        for row in rows
        if row["part"] == "all"
    ]
    print_table(title, (of, "set", "accuracy", "length-matched", "ties"), lines)


def interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
