"""The doctor on the machine that runs the tests, and on broken ones."""

import json
import os
import subprocess
import sys

import pytest
import torch

from stablerank.cli import doctor
from stablerank.zoo.cache import folder_of, write_provenance
from stablerank.zoo.catalogue import ENTRIES

CODE = "from stablerank.cli.doctor import run_doctor; raise SystemExit(run_doctor(json=True))"


def run(prelude="", **environment):
    """The doctor in an interpreter of its own: exit code and rows by name. Its output must be JSON and nothing else."""
    settings = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run([sys.executable, "-c", prelude + CODE], capture_output=True, text=True, env=settings)
    return done.returncode, {row["name"]: row for row in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def healthy():
    return run()


def test_this_machine_is_well(healthy):
    code, rows = healthy
    assert [row for row in rows.values() if not row["ok"]] == []
    assert code == 0


def test_every_part_is_looked_at(healthy):
    _, rows = healthy
    assert {"python", "torch", "transformers", "trl", "peft", "device", "threads", "bfloat16", "cache", "data"} <= set(
        rows
    )
    assert {f"zoo:{name}" for name in ENTRIES} <= set(rows)
    assert rows["torch"]["found"] == torch.__version__
    assert list(rows)[-1] == "train step"
    assert "the speed of float32" in rows["bfloat16"]["found"]


def test_absent_packages_are_rows_and_not_a_traceback():
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    code, rows = run("import sys; sys.modules.update(torch=None, safetensors=None);")
    assert code == 1
    for name in ("device", "bfloat16", "zoo:arith-student", "train step"):
        assert not rows[name]["ok"]
        assert rows[name]["remedy"]
    assert rows["cache"]["ok"], "the other checks go on"


def test_without_our_own_metadata_the_doctor_says_so(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGE", "stablerank-that-nobody-installed")
    (row,) = doctor._installation()
    assert not row.ok
    assert "pip install -e ." in row.remedy


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path / "file" / "cache"))
    (row,) = doctor._cache()
    assert not row.ok
    assert "STABLERANK_CACHE" in row.remedy


def test_looking_at_the_cache_does_not_create_it(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path / "a" / "b"))
    (row,) = doctor._cache()
    assert row.ok
    assert list(tmp_path.iterdir()) == []


def test_damaged_copy_of_a_fetched_model(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path))
    smollm = ENTRIES["smollm2-135m-instruct"]
    absent = doctor._fetched(smollm)
    assert absent.ok
    assert "zoo fetch" in absent.remedy
    folder = folder_of(smollm)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_provenance(folder, {})
    assert doctor._fetched(smollm).ok
    (folder / "config.json").write_text("[]")
    damaged = doctor._fetched(smollm)
    assert not damaged.ok
    assert "SHA-256" in damaged.found


def test_more_threads_than_cores():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4 * (os.cpu_count() or 1))
        rows = {row.name: row for row in doctor._device()}
    finally:
        torch.set_num_threads(before)
    assert not rows["threads"].ok
    assert "OMP_NUM_THREADS" in rows["threads"].remedy


def test_the_table_keeps_brackets_and_names_the_remedy(monkeypatch, capsys):
    row = doctor.Check("extra wandb", False, "absent: wandb", "optional", "Run `pip install 'stablerank[wandb]'`.")
    monkeypatch.setattr(doctor, "_GROUPS", {"extras": lambda: [row]})
    assert doctor.run_doctor() == 1
    assert "stablerank[wandb]" in capsys.readouterr().out
