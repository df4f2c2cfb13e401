"""`stablerank.measure` as a library user calls it: the table, the findings, the folder that outlives a kill."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import stablerank
from stablerank.errors import ModelError, RunFolderError, StablerankError
from stablerank.peft import SpectralLoraConfig
from stablerank.probes.evaluate import METRICS, SPECTRUM, TOP
from stablerank.zoo.resolve import resolve

STUDENT, TEACHER = "zoo:arith-student", "zoo:arith-teacher"
SCAN = [*TOP, *SPECTRUM]
TABLES = ("rows.csv", "rows.parquet")


def in_python(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def cells(found):
    return {(row["name"], row["metric"]): row for row in found.table().to_pylist()}


def contents(path):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def six_layers(folder):
    torch.manual_seed(0)
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(48, 32) for layer in range(6)}
    save_file({**tensors, "norm.weight": torch.ones(8)}, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture
def model(tmp_path):
    return six_layers(tmp_path)


def test_a_checkpoint(model):
    seen = []
    found = stablerank.measure(model, progress=lambda *news: seen.append(news))
    assert len(found.rows) == 6 * len(TOP)
    assert {row.metric for row in found.rows} == set(TOP)
    assert {row.run for row in found.rows} == {"model.safetensors"}
    assert (found.meta["kind"], found.meta["matrices"], found.meta["skipped"]) == ("weight", 6, {"vector": 1})
    assert (found.problems, found.folder) == ([], None)
    assert [done for done, *_ in seen] == [48 * 32 * 4 * count for count in range(1, 7)]
    assert {total for _, total, _ in seen} == {found.meta["bytes"]}
    assert any("look untrained" in finding.sentence for finding in found.findings())


def test_the_run_is_called_as_the_path(model, monkeypatch):
    (model.parent / "linked").mkdir()
    (model.parent / "linked" / "tuned.safetensors").symlink_to(model)
    monkeypatch.chdir(model.parent / "linked")
    for path, name in ((".", "linked"), ("tuned.safetensors", "tuned.safetensors"), (STUDENT, STUDENT)):
        assert {row.run for row in stablerank.measure(path).rows} == {name}


def test_the_default_metrics_of_a_pair_and_of_an_adapter(tmp_path):
    pair = stablerank.measure(STUDENT, against=TEACHER)
    assert pair.meta["metrics"] == [*TOP, "relative_norm", "sparsity", "representable_fraction"]
    assert pair.meta["kind"] == "update"
    everything = stablerank.measure(STUDENT, against=TEACHER, metrics=METRICS)
    assert {row.metric for row in everything.rows} == set(METRICS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 8)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    wrapped.merge_and_unload().save_pretrained(folder / "merged")
    return folder


def test_an_adapter_is_the_difference_of_the_merged_checkpoint(adapter):
    """The merged weights are fp32, so the two agree as far as their rounding lets them."""
    metrics = ["stable_rank", "relative_norm", "head_energy_two_sided", "principal_angle"]
    factored = stablerank.measure(adapter, against=STUDENT, metrics=metrics)
    merged = cells(stablerank.measure(adapter / "merged", against=STUDENT, metrics=metrics))
    assert factored.meta["adapter"] and len(factored.rows) == 8 * len(metrics)
    for key, row in cells(factored).items():
        if key[1] not in ("head_energy_two_sided", "principal_angle"):  # taken for as many directions as the rank
            assert row["value"] == pytest.approx(merged[key]["value"], rel=1e-3)
        assert math.isfinite(row["value"])
        if key[1] == "stable_rank":
            assert row["null_kind"] == "gaussian_factors"
            assert merged[key]["null_kind"] == "gaussian_matrix"


@pytest.mark.parametrize("spectral", [{"method": "pissa", "svd": "exact"}, {"method": "sinelora", "omega": 50.0}])
def test_an_adapter_of_ours_is_the_difference_of_the_merged_checkpoint(tmp_path, spectral):
    base = AutoModelForCausalLM.from_pretrained(resolve(STUDENT), dtype=torch.float32)
    model = get_peft_model(base, SpectralLoraConfig(r=2, target_modules=["q_proj"], spectral=spectral))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 8)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    metrics = ["stable_rank", "relative_norm", "nss"]
    read = stablerank.measure(tmp_path / "adapter", against=STUDENT, metrics=metrics)
    merged = cells(stablerank.measure(tmp_path / "merged", against=STUDENT, metrics=metrics))
    assert (read.problems, read.meta["notes"], len(read.rows)) == ([], [], 4 * len(metrics))
    for key, row in cells(read).items():
        assert row["value"] == pytest.approx(merged[key]["value"], rel=1e-3)


def test_an_adapter_alone_has_no_relative_norm(adapter):
    assert stablerank.measure(adapter).meta["metrics"] == list(TOP)


def test_a_merged_bf16_checkpoint_is_mostly_rounding_and_a_finding_says_so(tmp_path):
    torch.manual_seed(0)
    base = torch.randn(512, 768).to(torch.bfloat16)
    update = torch.randn(512, 1) @ torch.randn(1, 768)
    update *= 1e-4 * base.float().norm() / update.norm()
    after = (base.float() + update).to(torch.bfloat16)
    stored = after.double() - base.double()
    for name, tensor in (("after", after), ("before", base)):
        save_file({"model.layers.0.self_attn.q_proj.weight": tensor}, tmp_path / f"{name}.safetensors")
    found = stablerank.measure(tmp_path / "after.safetensors", against=tmp_path / "before.safetensors")
    row = cells(found)["model.layers.0.self_attn.q_proj", "representable_fraction"]
    truth = torch.nn.functional.cosine_similarity(stored.flatten(), update.double().flatten(), dim=0).item() ** 2
    assert row["value"] == pytest.approx(truth, rel=0.15)
    assert row["status"] == "estimated"
    (warning,) = [finding for finding in found.findings() if finding.severity == "warning"]
    assert "Storage rounding dominates" in warning.sentence
    assert "q_proj" in warning.sentence


def test_the_same_checkpoint_twice_did_not_change():
    found = stablerank.measure(STUDENT, against=STUDENT)
    assert {row.status for row in found.rows if row.metric == "stable_rank"} == {"zero"}
    assert any("Did not change at all" in finding.sentence for finding in found.findings())
    assert found.problems == []


JOBS = """
import sys
from stablerank.measuring import measure

one, three = (measure("zoo:arith-student", metrics=sys.argv[1].split(","), jobs=jobs).rows for jobs in (1, 3))
assert repr(one) == repr(three)
print(len(one))
"""


def test_jobs_change_no_bit_where_torch_has_several_threads():
    done = in_python(JOBS, ",".join(SCAN), OMP_NUM_THREADS="4", MKL_NUM_THREADS="4")
    assert done.stdout == f"{29 * len(SCAN)}\n", done.stderr


def test_a_finished_folder_answers_from_disk(model, tmp_path):
    out = tmp_path / "out"
    first = stablerank.measure(model, metrics=SCAN, out=out)
    assert {file.name for file in out.iterdir()} == {"measure.json", "tensors.jsonl", "report.html", *TABLES}
    before, seen = contents(out), []
    second = stablerank.measure(model, metrics=SCAN, out=out, progress=lambda *news: seen.append(news))
    assert seen == []
    assert contents(out) == before
    assert repr(second.rows) == repr(first.rows)
    assert second.meta == first.meta
    assert repr(pq.read_table(out / "rows.parquet").to_pylist()) == repr(first.table().to_pylist())


def test_a_report_that_a_kill_prevented_is_drawn_by_the_next_start(model, tmp_path):
    out = tmp_path / "out"
    stablerank.measure(model, out=out)
    drawn = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    stablerank.measure(model, out=out)
    assert (out / "report.html").read_bytes() == drawn


@pytest.mark.parametrize("asked", [{"metrics": ["frobenius"]}, {"rtol": 1e-2}, {"delta": 1e-3}])
def test_another_question_is_refused(model, tmp_path, asked):
    out = tmp_path / "out"
    stablerank.measure(model, out=out)
    before = contents(out)
    with pytest.raises(RunFolderError, match=f"differs in {next(iter(asked))}"):
        stablerank.measure(model, out=out, **asked)
    assert contents(out) == before


@pytest.mark.parametrize("changed", ["after", "before"])
def test_a_checkpoint_written_again_is_another_question(model, tmp_path, changed):
    other = model.with_name("before.safetensors")
    other.write_bytes(model.read_bytes())
    stablerank.measure(model, against=other, out=tmp_path / "out")
    file = model if changed == "after" else other
    os.utime(file, ns=(0, 0))
    with pytest.raises(RunFolderError, match="differs in files"):
        stablerank.measure(model, against=other, out=tmp_path / "out")


def test_an_adapter_written_again_is_another_question(adapter, tmp_path):
    stablerank.measure(adapter, out=tmp_path / "out")
    os.utime(adapter / "adapter_model.safetensors", ns=(0, 0))
    with pytest.raises(RunFolderError, match="differs in files"):
        stablerank.measure(adapter, out=tmp_path / "out")


KILLED = """
import os, signal, sys
from stablerank.measuring import measure

def progress(done, total, tensor):
    if done >= total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

measure(sys.argv[1], out=sys.argv[2], metrics=sys.argv[3].split(","), jobs=2, progress=progress)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A measurement that a real SIGKILL ended after three of six tensors."""
    folder = tmp_path_factory.mktemp("killed")
    done = in_python(KILLED, six_layers(folder), folder / "out", ",".join(SCAN))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {file.name for file in (folder / "out").iterdir()} == {"measure.json", "tensors.jsonl"}
    return folder


@pytest.mark.parametrize(("torn", "earlier"), [(0, 3), (30, 2)])
def test_killed_half_way_and_started_again(killed, tmp_path, torn, earlier):
    """Between two tensors, and inside the last line."""
    out, whole, seen = tmp_path / "out", tmp_path / "whole", []
    shutil.copytree(killed / "out", out)
    parts = out / "tensors.jsonl"
    parts.write_bytes(parts.read_bytes()[: -torn or None])
    model = killed / "model.safetensors"
    found = stablerank.measure(model, out=out, metrics=SCAN, progress=lambda *news: seen.append(news))
    assert len(seen) == 6 - earlier
    assert found.meta["notes"][-1].startswith(f"Resumed: {earlier} of 6 tensors")
    stablerank.measure(model, out=whole, metrics=SCAN)
    for table in TABLES:
        assert (out / table).read_bytes() == (whole / table).read_bytes()
    assert (out / "report.html").exists()


FULL = """
import resource, sys
from stablerank.errors import RunFolderError
from stablerank.measuring import measure

resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    measure(sys.argv[1], out=sys.argv[2])
except RunFolderError as error:
    print(error)
"""


def test_a_full_disk_is_one_sentence_and_the_next_start_goes_on(model, tmp_path):
    out = tmp_path / "out"
    done = in_python(FULL, model, out)
    assert f"{out} cannot be written" in done.stdout, done.stderr
    assert len(stablerank.measure(model, out=out).rows) == 6 * len(TOP)
    assert json.loads((out / "measure.json").read_text())["complete"] is True


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"jobs": 0}, "jobs is 0"),
        ({"rtol": 2.0}, "rtol is 2.0"),
        ({"rtol": math.nan}, "rtol is nan"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"initial": "somewhere"}, "initial adapter"),
        ({"metrics": []}, "No metric is named"),
        ({"metrics": ["nss"]}, "--against"),
    ],
)
def test_a_request_that_makes_no_sense(model, tmp_path, asked, words):
    with pytest.raises(StablerankError, match=words) as error:
        stablerank.measure(model, out=tmp_path / "out", **asked)
    assert str(error.value).endswith(".")
    assert not (tmp_path / "out").exists()


def test_nothing_to_measure(tmp_path, model):
    save_file({"norm.weight": torch.ones(4), "ids": torch.ones(4, 4, dtype=torch.int64)}, tmp_path / "v.safetensors")
    with pytest.raises(ModelError, match=r"no matrix \(1 integer, 1 vector\)"):
        stablerank.measure(tmp_path / "v.safetensors")
    save_file({"other.weight": torch.ones(4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="name of one in"):
        stablerank.measure(tmp_path / "other.safetensors", against=model)


MEMORY = """
import sys
from stablerank.measuring import measure

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

measure(sys.argv[1])
before = peak()
found = measure(sys.argv[2])
assert len(found.rows) == 45, len(found.rows)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux shows it")
def test_memory_is_bounded_by_the_largest_tensor(model, tmp_path):
    torch.manual_seed(0)
    matrix = (torch.randn(2560, 1) @ torch.randn(1, 4096) + 0.1 * torch.randn(2560, 4096)).to(torch.bfloat16)
    big = tmp_path / "big.safetensors"
    save_file({f"model.layers.{layer}.weight": matrix.clone() for layer in range(15)}, big)
    assert big.stat().st_size > 300e6
    done = in_python(MEMORY, model, big)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * matrix.nbytes + 32e6
    big.unlink()
