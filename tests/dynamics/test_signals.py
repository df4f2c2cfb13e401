"""Signals of a log row, of a batch and of a record; a real run is in tests/training/test_batch_signals.py."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from stablerank.dynamics.signals import SIGNALS, signals_of_batch, signals_of_log, signals_of_record
from stablerank.runs.record import RunRecord, TrainingCompletion

TEXTS = ["\\boxed{1}", "so then \\boxed{2}", "three", "x" * 90]
REWARDS = [1.0, 0.5, 0.0, 2.0]


def completions(step=1, tokens=(0, 0, 0, 0)):
    rows = zip(TEXTS, REWARDS, tokens, strict=True)
    return tuple(TrainingCompletion(step, 0, text, reward, 0.0, count, False) for text, reward, count in rows)


def record(steps, completions=()):
    return RunRecord(Path("run"), "trl", {}, tuple(steps), (), tuple(completions))


def test_a_log_row_gives_what_it_has():
    row = {"step": 3, "reward": 1, "kl": None, "completions/mean_length": 12.5, "entropy": math.nan, "loss": "lost"}
    found = signals_of_log(row)
    assert found.keys() == {"reward", "length", "entropy"}
    assert (found["reward"], found["length"]) == (1.0, 12.5)
    assert math.isnan(found["entropy"])


def test_lengths_are_tokens_and_characters_only_where_tokens_were_not_kept():
    tokens = [40, 30, 20, 10]
    counted = signals_of_batch(completions(tokens=tokens))
    assert counted["reward_length"] == pytest.approx(pearsonr(REWARDS, tokens).statistic)
    texts_only = signals_of_batch(completions())
    assert texts_only["reward_length"] == pytest.approx(pearsonr(REWARDS, list(map(len, TEXTS))).statistic)
    some_empty = signals_of_batch(completions(tokens=[0, 0, 0, 5]))
    assert some_empty["reward_length"] == pytest.approx(pearsonr(REWARDS, [0, 0, 0, 5]).statistic)


def test_the_answer_pattern_is_the_callers():
    assert signals_of_batch(completions())["answered"] == 0.5
    assert signals_of_batch(completions(), "three")["answered"] == 0.25
    assert signals_of_record(record([{"step": 1}], completions()), "three")["answered"].tolist() == [0.25]


def test_every_signal_has_a_column_and_nan_is_not_recorded():
    found = signals_of_record(record([{"step": 2, "reward": 0.5}, {"step": 5, "kl": 0.1, "reward": None}]))
    assert found.step_S.tolist() == [2, 5] and found.step_S.dtype == np.int64
    assert found.columns.keys() == SIGNALS.keys()
    assert all(column.shape == (2,) and column.dtype == np.float64 for column in found.columns.values())
    np.testing.assert_array_equal(found["reward"], [0.5, math.nan])
    np.testing.assert_array_equal(found["kl"], [math.nan, 0.1])
    assert [name for name in SIGNALS if found.has(name)] == ["reward", "kl"]


def test_completions_fill_what_the_log_lacks():
    steps = [{"step": 1}, {"step": 2, "answered": 0.125}, {"step": 3}]
    batches = completions(1) + completions(2) + completions(4)
    found = signals_of_record(record(steps, batches))
    np.testing.assert_array_equal(found["answered"], [0.5, 0.125, math.nan])
    np.testing.assert_array_equal(np.isfinite(found["reward_length"]), [True, True, False])


def test_a_record_without_steps_has_empty_columns():
    found = signals_of_record(record([], completions()))
    assert found.step_S.size == 0 and not any(found.has(name) for name in SIGNALS)
