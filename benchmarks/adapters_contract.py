"""The contract of every member on SmolLM2's real weights: `python benchmarks/adapters_contract.py [MEMBER ...]`.

Runs tests/adapters/test_contract.py with SmolLM2 in place of the tiny models, a member at a time, and keeps every
cell's error or refusal beside what the table declares. Errors are relative to the largest entry. Members that are not
named keep the rows that they have.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import RESULTS, ROOT, print_table, write_results

MODEL = "zoo:smollm2-135m-instruct"
MEMBERS = (
    *("lora", "rslora", "dora", "eva", "pissa", "milora", "geora", "olora", "corda", "polar", "polar-diagonal"),
    *("polar-identity", "sinelora", "bitfit", "bitfit-added", "sparse", "full"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("members", nargs="*", default=list(MEMBERS))
    rows, failed = recorded()
    for member in parser.parse_args().members:
        found, passed = tested(member)
        rows = [row for row in rows if row["member"] != member] + found
        rows.sort(key=lambda row: MEMBERS.index(row["member"]))
        failed = sorted({*failed, member} if not passed else {*failed} - {member})
        print_table("SmolLM2", ("cell", "property", "found"), [shown(row) for row in found])
        write_results("adapters_contract", {"model": MODEL}, {"rows": rows, "failed": failed})
    if failed:
        raise SystemExit(f"a cell does not hold what the table declares: {', '.join(failed)}")


def recorded() -> tuple[list[dict[str, Any]], list[str]]:
    place = RESULTS / "adapters_contract.json"
    found = json.loads(place.read_text())["results"] if place.exists() else {"rows": [], "failed": []}
    return found["rows"], found["failed"]


def tested(member: str) -> tuple[list[dict[str, Any]], bool]:
    """The rows of one member, and whether its tests pass."""
    with TemporaryDirectory() as work:
        out = Path(work) / "found.json"
        chosen = {
            "STABLERANK_CONTRACT": MODEL,
            "STABLERANK_CONTRACT_MEMBERS": member,
            "STABLERANK_CONTRACT_OUT": str(out),
        }
        test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={work}/pytest"]
        done = subprocess.run(
            [*test, "tests/adapters/test_contract.py"], cwd=ROOT, env=os.environ | chosen, check=False
        )
        cases = json.loads(out.read_text()) if out.exists() else []
    rows = [
        {"member": case["member"], "dtype": case["dtype"], "property": title, "found": found}
        for case in cases
        for title, found in case["found"].items()
    ]
    return rows, done.returncode == 0


def shown(row: dict[str, object]) -> tuple[str, str, str]:
    found = row["found"]
    text = f"{found:.1e}" if isinstance(found, float) else f"refused: {str(found)[:60]}"
    return f"{row['member']} {row['dtype']}", str(row["property"]), text


if __name__ == "__main__":
    main()
