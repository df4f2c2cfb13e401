"""A run reaches no network: nothing about it leaves the machine, and it works where there is none."""

import json
import os
import subprocess
import sys

import pytest

SILENCERS = ("CI", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")
SILENCERS += ("TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

# Every name look-up and connection of the interpreter passes these audit events, whoever asks for it.
GUARD = """
import json, os, sys, time

attempts = []


def guard(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "a local socket"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        host = arguments[0] if event != "socket.sendto" else arguments[1][0]
    else:
        return
    if host not in ("a local socket", "127.0.0.1", "::1", "localhost", None):
        attempts.append(str(host))
        raise OSError(f"no network here: {host}")


sys.addaudithook(guard)
folder = sys.argv[1]
"""

TRAIN = """
import stablerank

run = stablerank.train(
    {
        "model": {"path": "zoo:arith-student"},
        "data": {"kind": "file", "path": f"{folder}/rows.jsonl"},
        "reward": {"kind": "math_verify"},
        "trainer": {"max_steps": 1, "save_steps": 1, "max_completion_length": 8},
        "evaluation": {"problems": 2},
        "output": f"{folder}/run",
    }
)
assert run.is_complete()
time.sleep(2)  # telemetry is sent from a thread of its own
print(json.dumps(attempts))
"""

PLAIN_TRL = """
import stablerank

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "0"
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

from stablerank.zoo.resolve import resolve

GRPOTrainer(
    model=resolve("zoo:arith-student"),
    reward_funcs=lambda completions, **columns: [0.0 for _ in completions],
    args=GRPOConfig(output_dir=f"{folder}/plain", use_cpu=True, bf16=False, report_to="none"),
    train_dataset=load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train"),
)
deadline = time.monotonic() + 20
while len(set(attempts)) < 2 and time.monotonic() < deadline:
    time.sleep(0.1)
print(json.dumps(attempts))
"""


def attempts(code, folder):
    rows = [{"prompt": f"{n}+1=?\n", "answer": str(n + 1)} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {key: value for key, value in os.environ.items() if key not in SILENCERS}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub")}
    command = [sys.executable, "-c", GUARD + code, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_whole_run_asks_no_network_for_anything(tmp_path):
    assert attempts(TRAIN, tmp_path) == []


@pytest.mark.slow
def test_the_guard_sees_what_the_libraries_would_send_without_us(tmp_path):
    """The positive control: the same guard, `datasets` as people call it, and the switch that we set turned back."""
    assert {"huggingface.co", "s3.amazonaws.com"} <= set(attempts(PLAIN_TRL, tmp_path))
