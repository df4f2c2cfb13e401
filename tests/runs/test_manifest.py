"""What a manifest records, against git, pip and hashlib."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from stablerank.runs import manifest

NOTHING = {"hash": None, "dirty": False, "diff": ""}


@pytest.fixture
def checkout(tmp_path):
    """A repository of its own with a copy of the module where the library has it; returns (git, package, module)."""
    package = tmp_path / "src" / "stablerank"
    (package / "runs").mkdir(parents=True)
    copy = shutil.copy(manifest.__file__, package / "runs" / "manifest.py")
    (package / "errors.py").write_text("first = 1\n")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    spec = importlib.util.spec_from_file_location("manifest_of_a_checkout", copy)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return git, package, module


def test_a_clean_checkout_is_its_commit(checkout):
    git, _, module = checkout
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert module.code_state() == {"hash": git("rev-parse", "HEAD").strip(), "dirty": False, "diff": ""}


def test_a_change_anywhere_in_the_library_is_recorded(checkout):
    git, package, module = checkout
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (package / "errors.py").write_text("second = 2\n")
    state = module.code_state()
    assert state["dirty"]
    assert "-first = 1" in state["diff"]
    assert "+second = 2" in state["diff"]


def test_a_new_file_makes_the_checkout_dirty(checkout):
    git, package, module = checkout
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (package / "new.py").write_text("")
    assert module.code_state()["dirty"]


def test_an_installed_copy_inside_somebody_elses_repository_has_no_commit(checkout):
    git, package, module = checkout
    (package.parents[1] / ".gitignore").write_text("src/\n")
    git("add", ".")
    git("commit", "-q", "-m", "theirs")
    assert module.code_state() == NOTHING


def test_without_git_or_a_repository(checkout, monkeypatch, tmp_path):
    _, _, module = checkout
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "absent"))
    assert module.code_state() == NOTHING
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.code_state() == NOTHING


def test_versions_are_those_installed():
    versions = manifest.package_versions()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert versions["trl"] == importlib.metadata.version("trl")
    assert {"stablerank", "transformers", "peft"} <= versions.keys()


def test_the_device_is_plain_data_and_counts_threads_and_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    state = json.loads(json.dumps(manifest.device_state()))
    assert state["threads"] == torch.get_num_threads()
    assert state["processes"] == 3
    assert state["cpu_capability"]
    assert len(state["gpus"]) == torch.cuda.device_count()


def test_hashes_cover_the_files_of_a_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.bin", "b.json", "sub/c"):
        (tmp_path / name).write_bytes(os.urandom(100))
    expected = {name: hashlib.sha256(Path(tmp_path, name).read_bytes()).hexdigest() for name in ("a.bin", "b.json")}
    assert manifest.file_hashes(tmp_path) == expected
    assert manifest.file_hashes(tmp_path / "absent") == {}
