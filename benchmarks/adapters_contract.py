"""The contract of every member on SmolLM2's real weights: `python benchmarks/adapters_contract.py`.

Runs tests/adapters/test_contract.py with SmolLM2 in place of the tiny models, and keeps every cell's error or refusal
beside what the table declares. Errors are relative to the largest entry.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common import ROOT, print_table, write_results

MODEL = "zoo:smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with TemporaryDirectory() as work:
        out = Path(work) / "found.json"
        environment = os.environ | {"STABLERANK_CONTRACT": MODEL, "STABLERANK_CONTRACT_OUT": str(out)}
        test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={work}/pytest"]
        done = subprocess.run([*test, "tests/adapters/test_contract.py"], cwd=ROOT, env=environment, check=False)
        cases = json.loads(out.read_text())
    rows = [
        {"member": case["member"], "dtype": case["dtype"], "property": title, "found": found}
        for case in cases
        for title, found in case["found"].items()
    ]
    print_table("SmolLM2", ("cell", "property", "found"), [shown(row) for row in rows])
    write_results("adapters_contract", {"model": MODEL}, {"rows": rows, "passed": done.returncode == 0})
    if done.returncode:
        raise SystemExit("a cell does not hold what the table declares")


def shown(row: dict[str, object]) -> tuple[str, str, str]:
    found = row["found"]
    text = f"{found:.1e}" if isinstance(found, float) else f"refused: {str(found)[:60]}"
    return f"{row['member']} {row['dtype']}", str(row["property"]), text


if __name__ == "__main__":
    main()
