import math

import pytest

from stablerank.errors import DataError
from stablerank.evaluation.generate import greedy_completions
from stablerank.evaluation.held_out import evaluate_policy
from stablerank.evaluation.statistics import mean_interval
from stablerank.rewards.python import PythonReward

ROWS = [{"prompt": f"{value}+1=?", "answer": str(value), "unused": None} for value in range(12)]


@pytest.fixture
def reward(tmp_path):
    """A reward that reads texts, ids and columns: the mean id, plus a thousandth a character; row 3 is unscorable."""
    (tmp_path / "own.py").write_text(
        "def f(prompts, completions, completion_ids, answer, **columns):\n"
        "    assert list(columns) == ['unused'] and all(p.startswith(a) for p, a in zip(prompts, answer))\n"
        "    scores = [sum(ids) / len(ids) + len(text) / 1000 for text, ids in zip(completions, completion_ids)]\n"
        "    return [None if a == '3' else score for a, score in zip(answer, scores)]\n"
    )
    return PythonReward(f"{tmp_path}/own.py:f")


def test_problems_are_scored_in_their_order(model, tokenizer, reward):
    completions = greedy_completions(model, tokenizer, [row["prompt"] for row in ROWS], max_new_tokens=5)
    scores = [sum(c.ids) / c.tokens + len(c.text) / 1000 for c in completions]
    bar = sorted(scores)[6] - 1e-4
    result = evaluate_policy(model, tokenizer, ROWS, reward, max_new_tokens=5, batch_size=4, pass_reward=bar)
    assert list(result.completions) == completions
    scored = [row for row in range(12) if row != 3]
    assert [result.rewards[row] for row in scored] == pytest.approx([scores[row] for row in scored])
    assert [result.passes[row] for row in scored] == [float(scores[row] >= bar) for row in scored]
    assert math.isnan(result.rewards[3]) and math.isnan(result.passes[3])
    assert result.interval == mean_interval(result.passes) and result.interval.problems == 11
    assert 0 < result.interval.value < 1
    assert result.mean_length == 5 and result.truncated_share == 1


def test_no_problem_is_refused(model, tokenizer, reward):
    with pytest.raises(DataError, match="0 problems; at least 1"):
        evaluate_policy(model, tokenizer, [], reward, max_new_tokens=5)
