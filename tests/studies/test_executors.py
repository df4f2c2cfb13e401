"""The same cells on a Ray cluster of two nodes and as jobs of submitit: whatever is lost, the results are the same."""

import json
import os
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import save_file

from stablerank.errors import MissingExtraError, RecipeError
from stablerank.studies.comparison import differences
from stablerank.studies.executors.ray_core import Ray
from stablerank.studies.executors.seam import parse_resources
from stablerank.studies.executors.slurm import Slurm
from stablerank.studies.layout import StudyFolder
from stablerank.studies.lock import lock
from stablerank.studies.runner import run
from stablerank.studies.verdict import verdict


@pytest.fixture(autouse=True)
def one_thread_everywhere(monkeypatch):
    """The last bits depend on it, and schedulers give a cell one core."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write_study(folder, seeds):
    """Two arms that measure a tiny checkpoint each; locked."""
    torch.manual_seed(0)
    folder.mkdir()
    for name, width in (("flat", 12), ("steep", 3)):
        save_file({f"matrix{i}": torch.randn(12, width) for i in range(4)}, folder / f"{name}.safetensors")
    rule = {"kind": "difference", "column": "stable_rank", "arm": "flat", "against": "steep"}
    plan = {
        "question": "Is the square matrix flatter?",
        "mode": "exploratory",
        "seeds": list(range(seeds)),
        "arms": {name: {"kind": "measure", "spec": f"{name}.safetensors"} for name in ("flat", "steep")},
        "hypotheses": {"flatter": {"claim": "It is.", "rule": rule}},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    lock(folder)
    return StudyFolder(folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A study that ran here without any accident."""
    study = write_study(tmp_path_factory.mktemp("unbroken") / "study", seeds=2)
    assert {cell.state for cell in run(study.path)} == {"done"}
    return study


def agree(study, unbroken):
    """The same results and the same verdict, for the cells that both have."""
    found = [unlike for unlike in differences(unbroken.path, study.path) if unlike.first != "no result"]
    return found == [] and verdict(study.path).hypotheses == verdict(unbroken.path).hypotheses


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core on this machine."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        found.second = found.add_node(**node)
        yield found
        found.shutdown()


@pytest.mark.slow
def test_a_node_that_is_lost_costs_its_cell_only(cluster, unbroken, tmp_path):
    import ray

    study = write_study(tmp_path / "study", seeds=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    steps = []

    def lose_the_second_node(cell, state):
        steps.append((cell, state))
        if [each for _, each in steps].count("running") == 2 and state == "running":
            wait_for_both(study)
            cluster.remove_node(cluster.second, allow_graceful=False)

    try:
        found = run(study.path, jobs=2, executor=Ray(address=cluster.address), progress=lose_the_second_node)
    finally:
        ray.shutdown()
    assert {cell.state for cell in found} == {"done"}
    assert [state for _, state in steps].count("missing") >= 1, "a cell was lost and started again"
    finished = [cell for cell, state in steps if state == "done"]
    assert len(finished) == len(set(finished)) == 4, "what had finished is not run again"
    assert agree(study, unbroken)


def wait_for_both(study):
    """Until two cells print, or one is done already."""
    deadline = time.monotonic() + 60
    while len(list((study.path / "cells").glob("*.lock"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_jobs_of_submitit_keep_the_limit_and_start_again(unbroken, tmp_path):
    pytest.importorskip("submitit")
    study = write_study(tmp_path / "study", seeds=2)
    under_way, most, killed = set(), 0, []

    def kill_the_first(cell, state):
        nonlocal most
        (under_way.add if state == "running" else under_way.discard)(cell)
        most = max(most, len(under_way))
        if state == "running" and not killed:
            killed.append(cell)
            number = int(json.loads(study.running_path.read_text())[cell].removeprefix("job "))
            os.kill(number, signal.SIGKILL)

    found = run(study.path, jobs=2, executor=Slurm(cluster="local"), progress=kill_the_first)
    assert {cell.state for cell in found} == {"done"}
    assert most == 2
    assert agree(study, unbroken)


@pytest.mark.slow
def test_a_job_that_keeps_dying_is_a_failure_with_the_jobs_state(tmp_path):
    pytest.importorskip("submitit")
    study = write_study(tmp_path / "study", seeds=1)

    def kill(cell, state):
        if state == "running":
            os.kill(int(json.loads(study.running_path.read_text())[cell].removeprefix("job ")), signal.SIGKILL)

    (found,) = run(study.path, cells=["flat--0"], executor=Slurm(cluster="local"), retries=0, progress=kill)
    assert found.state == "failed"
    assert found.error.startswith("its process was lost (job ")


def test_without_a_cluster_one_sentence_says_so(tmp_path, monkeypatch):
    study = write_study(tmp_path / "study", seeds=1)
    monkeypatch.setenv("PATH", "")
    with pytest.raises((RecipeError, MissingExtraError), match=r"no `sbatch` here|is not installed"):
        run(study.path, executor=Slurm())
    with pytest.raises(RecipeError, match="is no number"):
        run(study.path, executor=Ray({"num_gpus": "many"}))


def test_resources_are_numbers_where_they_can_be():
    given = ["num_gpus=1", "timeout_min=1.5", "slurm_partition=long"]
    assert parse_resources(given) == {"num_gpus": 1, "timeout_min": 1.5, "slurm_partition": "long"}
    with pytest.raises(RecipeError, match="is not KEY=VALUE"):
        parse_resources(["num_gpus"])
