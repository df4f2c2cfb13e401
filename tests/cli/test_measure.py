"""`stablerank measure` as typed: the table, strict JSON, exit codes, nothing loaded that it does not need."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stablerank.cli import main
from stablerank.probes.evaluate import METRICS, SPECTRUM, TOP
from stablerank.zoo.resolve import resolve

STUDENT, TEACHER = "zoo:arith-student", "zoo:arith-teacher"
HEAVY = ("transformers", "trl", "peft", "datasets", "accelerate", "matplotlib")


@pytest.fixture
def run(monkeypatch, capsys):
    """`stablerank measure ARGUMENTS` in this process: exit code, stdout, stderr."""

    def measure(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", "measure", *map(str, arguments)])
        capsys.readouterr()  # what making the input said
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return measure


def strict(text):
    def refused(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refused)


def test_the_table_of_a_model(run):
    code, out, err = run(STUDENT)
    assert (code, err) == (0, "")
    assert "matrices 29" in out
    for name in ("mlp.down_proj", "self_attn.q_proj", "model.embed_tokens", "Stable rank by module type"):
        assert name in out
    assert max(map(len, out.splitlines())) <= 100
    assert "\x1b" not in out


def test_every_matrix_on_its_own_line(run):
    code, out, _ = run(STUDENT, "--all", "--metrics", "stable_rank")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert len([line for line in lines if len(line) > 1 and line[1] == "self_attn.q_proj"]) == 4
    assert len([line for line in lines if "certified" in line or "exact" in line]) == 29


def test_json_is_strict_and_holds_every_row(run):
    code, out, err = run(STUDENT, "--against", TEACHER, "--json", "--metrics", ",".join(METRICS))
    found = strict(out)
    assert (code, err) == (0, "")
    assert (found["matrices"], found["kind"], found["metrics"]) == (29, "update", list(METRICS))
    assert len(found["rows"]) == 29 * len(METRICS)
    student, teacher = (load_file(f"{resolve(name)}/model.safetensors") for name in (STUDENT, TEACHER))
    for row in found["rows"]:
        if row["metric"] == "spectral_norm":
            update = student[f"{row['name']}.weight"].double() - teacher[f"{row['name']}.weight"].double()
            assert row["value"] == pytest.approx(np.linalg.norm(update, 2), rel=1e-3)
    assert any("concentrated" in sentence for sentence in found["findings"])


def test_json_of_what_is_not_defined_or_not_bounded(run, tmp_path):
    singular = torch.ones(4, 4)
    save_file({"zero": torch.zeros(4, 4), "one": singular}, tmp_path / "model.safetensors")
    code, out, _ = run(tmp_path, "--json", "--metrics", "stable_rank,condition_number,tail_exponent")
    assert code == 0
    rows = {(row["name"], row["metric"]): row for row in strict(out)["rows"]}
    assert (rows["zero", "stable_rank"]["value"], rows["zero", "stable_rank"]["status"]) == (None, "zero")
    assert (rows["one", "tail_exponent"]["value"], rows["one", "tail_exponent"]["status"]) == (None, "refused")
    assert (rows["one", "condition_number"]["upper"], rows["one", "condition_number"]["status"]) == (None, "exact")


def test_metrics_are_a_comma_separated_list(run):
    code, out, _ = run(STUDENT, "--json", "--metrics", " stable_rank, effective_rank,stable_rank,")
    assert code == 0
    assert strict(out)["metrics"] == ["stable_rank", "effective_rank"]


def test_the_same_model_twice(run):
    code, out, err = run(STUDENT, "--against", STUDENT)
    assert (code, err) == (0, "")
    assert "unchanged" in out or "Did not change at all" in out


def test_an_adapter_beside_its_base(run, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["o_proj"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    code, out, _ = run(tmp_path, "--against", STUDENT, "--json", "--metrics", "stable_rank,head_energy,nss")
    assert code == 0
    found = strict(out)
    assert (found["adapter"], found["matrices"]) == (True, 4)
    assert all(row["value"] is not None for row in found["rows"])
    code, out, _ = run(tmp_path)
    assert code == 0
    assert "o_proj" in out


def test_the_folder(run, tmp_path):
    out = tmp_path / "out"
    code, shown, _ = run(STUDENT, "--out", out)
    assert code == 0
    assert shown.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert {"measure.json", "rows.csv", "rows.parquet", "report.html"} <= {file.name for file in out.iterdir()}
    again = run(STUDENT, "--out", out)
    assert again == (0, shown, "")


def test_a_problem_ends_with_1_and_the_rest_is_measured(run, tmp_path):
    save_file({"good": torch.eye(4), "bad": torch.full((4, 4), torch.nan)}, tmp_path / "model.safetensors")
    code, out, _ = run(tmp_path)
    assert code == 1
    assert "model.safetensors: bad: bad holds values that are not finite" in " ".join(out.split())
    assert "Median stable rank of 1 weights: 4." in out


def in_process_of_its_own(*arguments, code=None):
    start = ["-c", code] if code else ["-m", "stablerank"]
    command = [sys.executable, *start, "measure", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


GUARDED = f"""
import sys

def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"the network was asked for {{arguments}}")

sys.addaudithook(guard)
from stablerank.cli import main
try:
    main()
finally:
    print("loaded:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def test_a_plain_measurement_loads_torch_alone_and_asks_no_network():
    done = in_process_of_its_own(STUDENT, "--json", code=GUARDED)
    assert done.returncode == 0, done.stderr
    assert len(strict(done.stdout)["rows"]) == 29 * len(TOP)
    assert done.stderr == "loaded:\n"


def test_help_is_light():
    code = GUARDED.replace(str(HEAVY), str((*HEAVY, "torch")))
    done = in_process_of_its_own("--help", code=code)
    assert done.returncode == 0
    assert done.stderr == "loaded:\n"
    for option in ("--against", "--adapter", "--metrics", "--rtol", "--out", "--jobs", "--all", "--json"):
        assert option in done.stdout


def test_ctrl_c_says_how_to_go_on(tmp_path):
    torch.manual_seed(0)
    save_file({f"t{number}": torch.randn(300, 300) for number in range(100)}, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    asked = [tmp_path, "--out", out, "--jobs", "1", "--metrics", ",".join((*TOP, *SPECTRUM))]
    command = [sys.executable, "-m", "stablerank", "measure", *map(str, asked)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 60
        while not (out / "tensors.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        shown, error = running.communicate(timeout=60)
    assert (running.returncode, shown) == (130, "")
    assert error == f"stablerank: interrupted; the same command goes on in {out}.\n"
    assert 1 <= (out / "tensors.jsonl").read_bytes().count(b"\n") < 100
