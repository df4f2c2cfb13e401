"""Measuring every matrix of a worklist: values against numpy, several at a time, and past what is broken."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as numpy_file
from safetensors.torch import save_file

from stablerank.probes.checkpoints import Task, differences, weights
from stablerank.probes.evaluate import DEFAULT_PAIR, SPECTRUM, TOP, Subject
from stablerank.probes.measure import Settings, measure_all, measure_tensor
from stablerank.spectral.operators import Dense
from stablerank.zoo.resolve import resolve

SETTINGS = Settings("run", TOP, 1e-3, 1e-6)
RELATIVES = replace(SETTINGS, metrics=(*TOP, *SPECTRUM))
UPDATE = replace(SETTINGS, metrics=(*TOP, *DEFAULT_PAIR))


def measured(work, settings=SETTINGS, **options):
    kept = []
    measure_all(work, settings, keep=kept.append, **options)
    return {tensor.tensor: tensor for tensor in kept}


def rows(found):
    return {(m.name, row.metric): row for tensor in found.values() for m in tensor.matrices for row in m.rows}


def stored(folder, name="model", **tensors):
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize("name", ["zoo:arith-student", "zoo:arith-teacher", "zoo:arith-prm"])
def test_every_matrix_of_a_zoo_model_against_numpy(name):
    found = rows(measured(weights(name)))
    oracle = numpy_file(f"{resolve(name)}/model.safetensors")
    names = {key.removesuffix(".weight") for key, tensor in oracle.items() if tensor.ndim == 2}
    assert {key for key, _ in found} == names
    for key in names:
        sigma = np.linalg.svd(oracle[f"{key}.weight"].astype(np.float64), compute_uv=False)
        row = found[key, "stable_rank"]
        truth = (sigma**2).sum() / sigma[0] ** 2
        assert row.value == pytest.approx(truth, rel=1e-3)
        assert row.lower <= truth <= row.upper
        assert found[key, "spectral_norm"].value == pytest.approx(sigma[0], rel=1e-3)
        assert row.kind == "weight"
        if row.layer is None:
            assert row.module == key
        else:
            assert key == f"model.layers.{row.layer}.{row.module}"


def test_the_order_and_the_number_of_jobs_change_no_bit():
    one, three = (rows(measured(weights("zoo:arith-student"), RELATIVES, jobs=jobs)) for jobs in (1, 3))
    assert one.keys() == three.keys()
    assert all(repr(one[key]) == repr(three[key]) for key in one)


def threads_of_a_new_thread():
    """A thread takes its number from a setting that is global, unlike that of a thread that already ran."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_every_job_has_one_torch_thread_and_the_caller_gets_its_own_back(tmp_path):
    seen, former = [], torch.get_num_threads()

    def subjects():
        seen.append((threading.current_thread(), torch.get_num_threads()))
        yield "a", Subject(Dense(torch.eye(3)))

    work = weights(stored(tmp_path, a=torch.eye(3)))
    tasks = tuple(replace(work.tasks[0], tensor=str(number), subjects=subjects) for number in range(8))
    torch.set_num_threads(2)
    try:
        measured(replace(work, tasks=tasks), jobs=3)
        assert torch.get_num_threads() == threads_of_a_new_thread() == 2
    finally:
        torch.set_num_threads(former)
    assert {threads for _, threads in seen} == {1}
    assert threading.main_thread() not in [thread for thread, _ in seen]


def test_what_is_done_is_not_read_again(tmp_path):
    work = weights(stored(tmp_path, a=torch.randn(4, 4), b=torch.randn(4, 4), c=torch.randn(4, 4)))
    assert set(measured(work, done={"a", "c"})) == {"b"}


def test_a_tensor_that_is_gone_is_a_problem_and_the_rest_is_measured(tmp_path):
    tensors = {name: torch.randn(6, 6) for name in "abc"}
    file = stored(tmp_path, **tensors)
    work = weights(file)
    file.write_bytes(file.read_bytes()[:-144])
    found = measured(work, jobs=2)
    (problem,) = found["c"].problems
    assert (problem.file, problem.tensor, found["c"].matrices) == (str(file), "c", ())
    assert problem.reason.endswith(".")
    assert [len(found[name].matrices) for name in "ab"] == [1, 1]


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(tmp_path, spoilt):
    broken = torch.randn(6, 6)
    broken[2, 3] = spoilt
    file = stored(tmp_path, a=torch.randn(6, 6), b=broken)
    found = measured(weights(file), RELATIVES)
    assert [(p.file, p.tensor) for p in found["b"].problems] == [(str(file), "b")]
    assert {row.status for row in found["b"].matrices[0].rows} == {"non_finite"}
    assert all(math.isnan(row.value) for row in found["b"].matrices[0].rows)
    assert found["a"].problems == ()


@pytest.mark.parametrize("broken", ["after", "before", "both"])
def test_the_file_to_blame_is_named(tmp_path, broken):
    whole, spoilt = torch.randn(6, 6), torch.full((6, 6), math.nan)
    files = {
        name: stored(tmp_path, name, a=spoilt if broken in (name, "both") else whole) for name in ("after", "before")
    }
    found = measured(differences(files["after"], files["before"]), UPDATE)
    blamed = files.values() if broken == "both" else [files[broken]]
    assert {problem.file for problem in found["a"].problems} == {str(file) for file in blamed}
    assert {row.status for row in found["a"].matrices[0].rows} == {"non_finite"}


def test_one_broken_expert_is_named_and_the_others_are_whole(tmp_path):
    stack = torch.randn(3, 6, 6)
    stack[1] = math.inf
    found = measured(weights(stored(tmp_path, **{"model.layers.0.mlp.experts.down_proj": stack})))
    (tensor,) = found.values()
    assert len(tensor.matrices) == 3
    (problem,) = tensor.problems
    assert "experts.1.down_proj" in problem.reason


def test_the_same_checkpoint_twice(tmp_path):
    file = stored(tmp_path, a=torch.randn(6, 6), b=torch.zeros(6, 6))
    found = rows(measured(differences(file, file), UPDATE))
    assert found["a", "stable_rank"].status == "zero"
    assert (found["a", "frobenius"].value, found["a", "relative_norm"].value) == (0.0, 0.0)
    assert found["a", "sparsity"].status == found["a", "representable_fraction"].status == "zero"
    assert found["b", "relative_norm"].status == "refused"
    assert {row.kind for row in found.values()} == {"update"}


def test_an_interruption_leaves_at_once_with_what_was_kept(tmp_path):
    work = weights(stored(tmp_path, **{f"t{number}": torch.randn(4, 4) for number in range(50)}))
    kept = []

    def keep(tensor):
        kept.append(tensor)
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_all(work, SETTINGS, jobs=2, keep=keep)
    assert len(kept) == 3


def test_a_bug_is_not_taken_for_a_problem():
    def subjects():
        raise RuntimeError("a bug")
        yield

    with pytest.raises(RuntimeError, match="a bug"):
        measure_tensor(Task("a", "file", "F32", 0, subjects), "weight", SETTINGS)
