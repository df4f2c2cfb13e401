"""From a run on disk to its causes: our run folder and TRL's files, read as what they are."""

import json
import math

import pytest

from stablerank.diagnosing import diagnose_run
from stablerank.errors import RunFolderError


def rows(steps=12, **columns):
    """A log in which nothing is amiss but what ``columns`` say, each a function of the step."""
    healthy = {
        "loss": lambda step: 0.01 * (-1) ** step,
        "reward": lambda step: 0.3 + 0.05 * step + 0.004 * (-1) ** step,
        "reward_std": lambda step: 0.4,
        "frac_reward_zero_std": lambda step: 0.1,
        "completions/mean_length": lambda step: 20 + 0.5 * (-1) ** step,
        "completions/clipped_ratio": lambda step: 0.0,
        "learning_rate": lambda step: 1e-5,
        "kl": lambda step: 0.001 * (step - 1),
        "grad_norm": lambda step: 0.2 + 0.02 * (-1) ** step,
    }
    return [
        {"step": step, **{key: value(step) for key, value in {**healthy, **columns}.items()}}
        for step in range(1, steps + 1)
    ]


def trl_folder(path, log):
    place = path / "out" / "checkpoint-12"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return path / "out"


def our_folder(path, log):
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(json.dumps({"recipe": {"trainer": {"max_completion_length": 24}}}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return path


def test_a_run_without_a_fault_gets_a_clean_bill_from_either_writer(tmp_path):
    for path in (trl_folder(tmp_path, rows()), our_folder(tmp_path / "ours", rows())):
        told = diagnose_run(path)
        assert told.found == ()
        assert told.clear
        assert not told.has_problem


@pytest.mark.parametrize("place", ["", "checkpoint-12", "checkpoint-12/trainer_state.json"])
def test_trl_files_wherever_one_points(tmp_path, place):
    folder = trl_folder(tmp_path, rows(kl=lambda step: 0.3))
    told = diagnose_run(str(folder / place))
    assert told.writer == "trl"
    assert [found.cause for found in told.found] == ["wrong_reference"]


def test_the_recipe_of_our_run_words_the_sentence(tmp_path):
    folder = our_folder(tmp_path, rows(**{"completions/clipped_ratio": lambda step: 0.5}))
    assert "the length limit of 24 tokens" in diagnose_run(folder).verdict


@pytest.mark.parametrize("written", [math.nan, "NaN", math.inf])
def test_a_loss_that_is_no_number_however_it_was_written(tmp_path, written):
    log = rows(loss=lambda step: written if step > 8 else 0.1)
    (found,) = diagnose_run(trl_folder(tmp_path, log)).found
    assert (found.cause, found.first_step) == ("not_finite", 9)


def test_a_folder_without_a_run_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(RunFolderError, match=r"neither a manifest.json nor a trainer_state.json; give the folder"):
        diagnose_run(tmp_path)
