"""The credit shown is the credit trained with: against a real run, against TRL's scoring, against loops over tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import DataError, RunFolderError
from stablerank.facade import train
from stablerank.inspecting import inspect_reward
from stablerank.reports.credit import CreditGroup
from stablerank.reports.credit_html import page
from stablerank.reports.credit_text import text
from stablerank.training.recipe import parse_recipe
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
LENGTH = "def score(completions, **columns):\n    return [-0.1 * len(text) for text in completions]\n"
ROLLOUTS = [
    {"prompt": "3+4=?\n", "completion": "3+4=7\n\\boxed{7}", "answer": "7"},
    {"prompt": "3+4=?\n", "completion": "3+4=8\n\\boxed{8}", "answer": "7"},
    {"prompt": "9+1=?\n", "completion": "\\boxed{10}", "answer": "10"},
    {"prompt": "3+4=?\n", "completion": "3+4=7\n7", "answer": "7", "truncated": True},
    {"prompt": "9+1=?\n", "completion": "\\boxed{11}", "answer": "10"},
]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A recipe on the embedded student; keywords replace its sections."""
    base = {
        "model": {"path": STUDENT},
        "data": {"kind": "arithmetic", "level": "easy", "problems": 8},
        "reward": {"kind": "math_verify"},
        "trainer": {"max_steps": 1, "save_steps": 1, "max_completion_length": 24, "num_generations": 4},
        "geometry": {"every": 0},
        "evaluation": {"problems": 8},
        "output": str(tmp_path / "never"),
    }
    return lambda **sections: parse_recipe({**base, **sections})


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROLLOUTS))
    return path


def mixture(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "length.py").write_text(LENGTH)
    return {
        "kind": "mixture",
        "components": [
            {"reward": {"kind": "math_verify"}, "weight": 2.0},
            {"reward": {"kind": "python", "ref": f"{tmp_path}/length.py:score"}, "credit": {"scale": "none"}},
        ],
    }


def test_a_runs_own_rollouts_get_the_advantages_that_it_trained_with(recipe, tmp_path: Path) -> None:
    own = recipe(output=str(tmp_path / "run"))
    folder = train(own)
    rows = [row for row in folder.rollouts.rows() if row["phase"] == "train"]
    sizes = [abs(row["advantage"]) for row in rows]
    place = int(np.argmax(sizes)) // 4
    trained = rows[4 * place : 4 * place + 4]
    found = inspect_reward(own, rollouts=folder.path, group=place)
    assert found.completions == [row["completion"] for row in trained]
    assert [len(ids) for ids in found.token_ids] == [row["tokens"] for row in trained]
    assert found.parts[0].rewards == [row["reward"] for row in trained]
    np.testing.assert_allclose(
        [rows[-1] for rows in found.advantages], [row["advantage"] for row in trained], rtol=1e-6
    )
    assert max(map(abs, found.advantages[0])) > 0.1
    assert found.columns["operations"], "columns that the run did not keep come from its data"


def test_a_mixture_against_loops_over_completions(recipe, rollouts: Path, tmp_path: Path) -> None:
    found = inspect_reward(recipe(reward=mixture(tmp_path)), rollouts=rollouts)
    outcome, length = found.parts
    assert (outcome.name, length.name, outcome.weight) == ("math_verify", "score", 2.0)
    right = [1.0, 0.0, 1.0]
    cost = [-0.1 * len(row["completion"]) for row in ROLLOUTS if row["answer"] == "7"]
    assert outcome.rewards == right and length.rewards == pytest.approx(cost)
    for i, tokens in enumerate(found.tokens):
        first = (right[i] - np.mean(right)) / (np.std(right, ddof=1) + 1e-4)
        second = cost[i] - np.mean(cost)
        for t in range(len(tokens)):
            is_last = t == len(tokens) - 1
            assert outcome.deposits[i][t] == (right[i] if is_last else None)
            assert length.normalised[i][t] == (pytest.approx(second, rel=1e-5) if is_last else None)
            assert outcome.advantages[i][t] == pytest.approx(first, rel=1e-5)
            assert found.advantages[i][t] == pytest.approx(2 * first + second, rel=1e-5)
    assert found.steps == [[None] * len(tokens) for tokens in found.tokens]
    assert not (tmp_path / "never").exists(), "nothing is written"


def every_reward(tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "length.py").write_text(LENGTH)
    return [
        {"reward": {"kind": "math_verify"}},
        {"reward": {"kind": "python", "ref": f"{tmp_path}/length.py:score"}, "weight": 0.5},
        {"reward": {"kind": "process", "model": "zoo:arith-prm"}, "credit": {"rule": "return_to_go"}, "weight": 0.7},
        {"reward": {"kind": "distillation", "teacher": {"path": "zoo:arith-teacher"}}, "weight": 0.1},
        {"reward": {"kind": "intrinsic", "measure": "entropy"}, "weight": -0.2},
        {"reward": {"kind": "kl"}, "weight": 0.05},
        {"reward": {"kind": "length", "limit": 24, "buffer": 24}},
        {"reward": {"kind": "stable_rank"}, "weight": 0.3},
    ]


def test_every_reward_of_a_mixture_against_loops_over_tokens(recipe, rollouts: Path, tmp_path: Path) -> None:
    components = every_reward(tmp_path)
    found = inspect_reward(recipe(reward={"kind": "mixture", "components": components}), rollouts=rollouts)
    assert len(found.parts) == len(components)
    assert {part.density for part in found.parts} == {"trajectory", "step", "token"}
    process = found.parts[2]
    for i, tokens in enumerate(found.tokens):
        closing = [t for t, token in enumerate(tokens) if "\n" in token or token == "<eos>"]
        assert [t for t, value in enumerate(process.deposits[i]) if value is not None] == closing
        deposits = [value for row in process.deposits for value in row if value is not None]
        centre, spread = np.mean(deposits), np.std(deposits, ddof=1) + 1e-4
        for t in range(len(tokens)):
            to_go = sum((process.deposits[i][at] - centre) / spread for at in closing if at >= t)
            assert process.advantages[i][t] == pytest.approx(to_go, abs=1e-5)
            steps_before = sum(at < t for at in closing)
            assert found.steps[i][t] == (steps_before + 1 if steps_before < len(closing) else None)
            whole = sum(part.weight * part.advantages[i][t] for part in found.parts)
            assert found.advantages[i][t] == pytest.approx(whole, abs=1e-6)
    everything = range(min(map(len, found.tokens)))
    assert all(part.name in text(found, 0, everything) and part.name in page(found) for part in found.parts)


def test_texts_end_unless_they_were_truncated(recipe, rollouts: Path) -> None:
    found = inspect_reward(recipe(), rollouts=rollouts)
    eos = AutoTokenizer.from_pretrained(resolve(STUDENT)).eos_token
    assert found.completions == [row["completion"] for row in ROLLOUTS if row["answer"] == "7"]
    assert [tokens[-1] == eos for tokens in found.tokens] == [True, True, False]
    assert ["".join(tokens).removesuffix(eos) for tokens in found.tokens] == found.completions
    second = inspect_reward(recipe(), rollouts=rollouts, group=1)
    assert second.columns == {"answer": "10"} and len(second) == 2 and second.prompt == "9+1=?\n"


def test_recorded_token_ids_are_kept(recipe, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(STUDENT))
    ids = [[*tokenizer("7", add_special_tokens=False)["input_ids"]] * count for count in (1, 3)]
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "3+4=?\n", "completion_ids": row, "answer": "7"} for row in ids]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect_reward(recipe(), rollouts=path)
    assert found.token_ids == ids and found.completions == ["7", "777"] and found.notes == []


def test_a_row_is_sampled_by_the_recipe_and_its_seed(recipe) -> None:
    first, again = (inspect_reward(recipe(), row=3) for _ in range(2))
    other = inspect_reward(recipe(seed=1), row=3)
    assert first == again and first.completions != other.completions
    row = recipe().data.train_rows()[3]
    assert (first.prompt, first.columns["answer"], len(first)) == (row["prompt"], row["answer"], 4)
    assert max(map(len, first.tokens)) <= 24


def test_a_prompt_takes_its_columns_from_the_caller(recipe) -> None:
    found = inspect_reward(recipe(), prompt="3+4=?\n", columns={"answer": "7"})
    verdicts = [float("\\boxed{7}" in said) for said in found.completions]
    assert found.prompt == "3+4=?\n" and found.parts[0].rewards == verdicts


def test_kl_terms_are_those_of_a_policy_and_its_reference(recipe, rollouts: Path, tmp_path: Path) -> None:
    """Zero at the start; at a checkpoint, what separately loaded models say."""
    assert inspect_reward(recipe(), rollouts=rollouts).kl is None
    fresh = inspect_reward(recipe(), rollouts=rollouts, kl=True).kl
    assert fresh is not None and fresh.beta == 0
    assert all(value == 0 for rows in fresh.terms.values() for row in rows for value in row)
    run = train(recipe(output=str(tmp_path / "run"), optimiser={"learning_rate": 0.01, "warmup_steps": 0}))
    ((_, checkpoint),) = run.complete_checkpoints()
    moved = inspect_reward(recipe(), rollouts=rollouts, kl=True, checkpoint=checkpoint)
    assert moved.kl is not None
    from peft import AutoPeftModelForCausalLM

    models = (
        AutoPeftModelForCausalLM.from_pretrained(checkpoint),
        AutoModelForCausalLM.from_pretrained(resolve(STUDENT)),
    )
    for model, shown in zip(models, (moved.kl.policy, moved.kl.reference), strict=True):
        for ids, row in zip(moved.token_ids, shown, strict=True):
            np.testing.assert_allclose(row, log_probabilities(model, moved.prompt, ids), atol=1e-5)
    policy, reference = np.array(moved.kl.policy[0]), np.array(moved.kl.reference[0])
    assert np.abs(policy - reference).max() > 1e-3
    np.testing.assert_allclose(
        moved.kl.terms["k3"][0], np.exp(reference - policy) - (reference - policy) - 1, atol=1e-9
    )
    np.testing.assert_allclose(
        moved.kl.terms["s4"][0], np.maximum(np.exp(policy) * (policy - reference), 0), atol=1e-12
    )
    with pytest.raises(RunFolderError, match="no checkpoint of this recipe's policy"):
        inspect_reward(recipe(), rollouts=rollouts, checkpoint=tmp_path)


def log_probabilities(model: Any, prompt: str, ids: list[int]) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(resolve(STUDENT))
    whole = torch.tensor([[*tokenizer(prompt)["input_ids"], *ids]])
    with torch.no_grad():
        logits = model(whole).logits[0, -len(ids) - 1 : -1].double()
    return [torch.distributions.Categorical(logits=row).log_prob(torch.tensor(token)).item()
            for row, token in zip(logits, ids, strict=True)]  # fmt: skip


def test_the_loss_mask_is_the_trainers(recipe, rollouts: Path) -> None:
    settings = {**recipe().trainer, "mask_truncated_completions": True}
    found = inspect_reward(recipe(trainer=settings), rollouts=rollouts)
    assert [all(row) for row in found.in_loss] == [True, True, False]
    assert set(found.advantages[2]) == {0.0}


def test_a_batch_scale_says_what_the_batch_is(recipe, rollouts: Path) -> None:
    (note, *_) = inspect_reward(recipe(credit={"scale": "batch"}), rollouts=rollouts).notes
    assert "divides by the deviation of this group" in note


def refused(found: Callable[[], CreditGroup]) -> str:
    with pytest.raises(DataError) as error:
        found()
    return str(error.value)


def test_what_cannot_be_scored_is_refused(recipe, rollouts: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"

    def record(*rows: dict[str, Any]) -> None:
        one.write_text("".join(json.dumps({"prompt": "1+1=?\n", **row}) + "\n" for row in rows))

    assert "Give one thing" in refused(lambda: inspect_reward(recipe()))
    assert "Give one thing" in refused(lambda: inspect_reward(recipe(), row=0, prompt="1"))
    assert "no row 8; give one from 0 to 7" in refused(lambda: inspect_reward(recipe(), row=8))
    assert "no group 2; give one from 0 to 1" in refused(lambda: inspect_reward(recipe(), rollouts=rollouts, group=2))
    assert "--column answer=12" in refused(lambda: inspect_reward(recipe(), prompt="1+1=?\n"))
    record({"completion": "2"}, {"completion": "3"})
    assert "--column answer=12" in refused(lambda: inspect_reward(recipe(), rollouts=one))
    record({"completion": "2", "answer": "2"})
    assert "one completion" in refused(lambda: inspect_reward(recipe(), rollouts=one))
    record({"completion": "2", "answer": "2"}, {"completion": "3"})
    assert "Completion 1" in refused(lambda: inspect_reward(recipe(), rollouts=one))
    record({"completion": "2", "answer": "2"}, {"completion": "", "answer": "2", "truncated": True})
    assert "has no token" in refused(lambda: inspect_reward(recipe(), rollouts=one))
    record({"completion_ids": [1], "answer": "2"}, {"completion_ids": [10**9], "answer": "2"})
    assert "a token outside 0 to" in refused(lambda: inspect_reward(recipe(), rollouts=one))
    record(*[{"completion": "1" * 5000, "answer": "2"}] * 2)
    assert "context of" in refused(lambda: inspect_reward(recipe(), rollouts=one))
