"""`stablerank study` as typed: from the template to a verdict, exit codes, one sentence for each mistake."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import save_file

from stablerank.cli import main
from stablerank.studies.plan import load_plan


@pytest.fixture
def run(monkeypatch, capsys):
    """`stablerank ARGUMENTS` in this process: exit code, stdout, stderr."""

    def stablerank(*arguments):
        monkeypatch.setattr(sys, "argv", ["stablerank", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return stablerank


def write_study(folder, **sections):
    """One arm, measured with three seeds; its hypothesis is hopeless, which shows after two."""
    torch.manual_seed(0)
    folder.mkdir()
    save_file({f"matrix{i}": torch.randn(20, 20) for i in range(6)}, folder / "model.safetensors")
    rule = {"kind": "difference", "column": "stable_rank", "arm": "model"}
    plan = {
        "question": "Is the stable rank negative?",
        "mode": "exploratory",
        "seeds": [0, 1, 2],
        "arms": {"model": {"kind": "measure", "spec": "model.safetensors"}},
        "hypotheses": {
            "negative": {"claim": "It is.", "rule": {**rule, "direction": "less"}, "kill": rule},
        },
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump({**plan, **sections}))
    return folder


def test_new_writes_a_study_that_locks_as_it_stands(run, tmp_path):
    folder = tmp_path / "study"
    code, out, err = run("study", "new", folder)
    assert (code, err) == (0, "")
    assert "plan.yaml is written" in out
    plan = load_plan(folder / "plan.yaml")
    code, out, _ = run("study", "lock", folder)
    assert code == 0
    told = out.splitlines()
    assert [line.partition(":")[0] for line in told] == [*plan.hypotheses, "locked", "next"]
    assert "2 seeds" in told[0]
    sha256 = told[-2].split()[-1]
    assert json.loads((folder / "plan.lock").read_text())["sha256"] == sha256
    code, out, _ = run("study", "lock", folder)
    assert (code, out.splitlines()[-2]) == (0, f"already locked, nothing has changed: {sha256}")
    code, out, _ = run("study", "status", folder, "--json")
    assert code == 0
    cells = json.loads(out)
    assert [cell["cell"] for cell in cells] == [cell.id for cell in plan.cells()]
    assert {cell["state"] for cell in cells} == {"missing"}


def test_new_overwrites_nothing(run, tmp_path):
    (tmp_path / "plan.yaml").write_text("mine")
    code, _, err = run("study", "new", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "plan.yaml exists" in err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
    code, _, err = run("study", "new", tmp_path / "plan.yaml" / "below")
    assert (code, err.count("\n")) == (2, 1)


def test_from_lock_to_verdict(run, tmp_path):
    folder = write_study(tmp_path / "study")
    assert run("study", "lock", folder)[0] == 0
    code, out, err = run("study", "run", folder)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "3 cells: 2 done, 1 not needed"
    code, out, _ = run("study", "status", folder)
    assert code == 0
    header, row = (line.replace("┃", "│").split("│") for line in out.splitlines() if "arm" in line or "model" in line)
    shown = dict(zip(map(str.strip, header), map(str.strip, row), strict=True))
    assert {name: shown[name] for name in ("arm", "done", "missing", "not needed", "cells")} == {
        "arm": "model",
        "done": "2",
        "missing": "",
        "not needed": "1",
        "cells": "3",
    }
    code, out, err = run("study", "verdict", folder)
    assert (code, err) == (0, "")
    assert "killed" in out
    assert (folder / "verdict.json").exists()


def test_a_failed_cell_is_named_with_its_log(run, tmp_path):
    folder = write_study(tmp_path / "study", seeds=[0])
    save_file({"broken": torch.full((3, 3), torch.nan)}, folder / "model.safetensors")
    assert run("study", "lock", folder)[0] == 0
    code, out, err = run("study", "run", folder)
    assert (code, out) == (1, "1 cell: 1 failed\n")
    assert err.startswith("stablerank: model--0: ")
    assert err.count("\n") == 1
    assert str(folder / "logs" / "model--0.log") in err
    assert "Traceback" in (folder / "logs" / "model--0.log").read_text()
    code, out, _ = run("study", "status", folder)
    assert code == 0
    assert "not finite" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("study", "run"), "is not locked"),
        (("study", "run", "--jobs", "0"), "jobs is 0"),
        (("study", "verdict"), "is not locked"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, arguments, said):
    folder = write_study(tmp_path / "study", mode="confirmatory")
    code, out, err = run(*arguments, folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize("verb", ["lock", "run", "status", "verdict"])
def test_a_folder_without_a_plan(run, tmp_path, verb):
    code, out, err = run("study", verb, tmp_path / "nowhere")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "plan.yaml" in err
    assert not (tmp_path / "nowhere").exists()


def test_cell_is_not_for_typing(run, tmp_path):
    code, out, _ = run("--help")
    assert code == 0
    assert "study" in out
    assert " cell " not in out
    code, _, err = run("cell", tmp_path / "cells" / "a--0.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "is not a cell of a study" in err


def test_help_loads_nothing_heavy():
    code = "import sys; from stablerank.cli.app import app; print({'torch', 'scipy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def write_matrix(folder):
    """Two checkpoints by one axis, one seed each."""
    axes = {"shape": {"wide": None, "tall": {"spec": "tall.safetensors"}}}
    rule = {"kind": "difference", "column": "stable_rank", "arm": "wide", "against": "tall"}
    write_study(
        folder,
        seeds=[0],
        arms={},
        matrix={"kind": "measure", "spec": "model.safetensors", "axes": axes},
        hypotheses={"wider": {"claim": "It is.", "rule": rule}},
    )
    save_file({f"matrix{i}": torch.randn(20, 3) for i in range(6)}, folder / "tall.safetensors")
    return folder


def test_a_matrix_from_run_to_report_and_diff(run, tmp_path):
    folder = write_matrix(tmp_path / "study")
    assert run("study", "run", folder, "--where", "shape=tall")[1].startswith("1 cell: 1 done\n")
    code, out, _ = run("study", "status", folder, "--where", "shape=wide", "--json")
    assert (code, [cell["state"] for cell in json.loads(out)]) == (0, ["missing"])
    assert run("study", "run", folder)[:2] == (0, f"2 cells: 2 done\nnext: `stablerank study verdict {folder}`\n")
    code, out, _ = run("study", "report", folder, "--column", "matrices")
    assert (code, out.splitlines()[-3:]) == (0, ["| shape tall | shape wide |", "| --- | --- |", "| 6 | 6 |"])
    found = json.loads(run("study", "report", folder, "--json")[1])
    assert found["axes"] == {"shape": ["tall", "wide"]}

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert run("study", "diff", folder, other) == (0, "no difference\n", "")
    (other / "results" / "tall--0.json").unlink()
    assert run("study", "diff", folder, other)[:2] == (1, "tall--0: done | no result\n")
    assert json.loads(run("study", "diff", folder, other, "--json")[1])[0]["cell"] == "tall--0"


def test_a_detached_run_goes_on_alone(run, tmp_path):
    folder = write_matrix(tmp_path / "study")
    code, out, _ = run("study", "run", folder, "--detach")
    assert code == 0 and out.startswith("running in the background")
    deadline = time.monotonic() + 60
    while len(list((folder / "results").glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    log = folder / "logs" / "run.log"
    while "next:" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "2 cells: 2 done" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--where", "shape=round"), "no cell has shape=round"),
        (("run", "--detach", "--cell", "round--0"), "none of the plan's 2"),
        (("status", "--where", "colour=red"), "no 'colour'"),
        (("report", "--column", "beauty"), "no result has column 'beauty'"),
    ],
)
def test_a_mistake_about_the_matrix_is_one_sentence(run, tmp_path, arguments, said):
    verb, *others = arguments
    code, out, err = run("study", verb, write_matrix(tmp_path / "study"), *others)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
