import math

import numpy as np
import pytest
from datasets import Dataset
from pydantic import TypeAdapter, ValidationError
from trl import GRPOConfig, GRPOTrainer

from stablerank.errors import RewardError
from stablerank.rewards.rollout import Rollout, length_mask
from stablerank.rewards.scorers.reward import ScorerReward
from stablerank.rewards.scorers.specs import build_scorers
from stablerank.rewards.scorers.trl import StableRankReward
from stablerank.rewards.specs import RewardSpec
from stablerank.zoo.resolve import resolve

STUDENT = "zoo:arith-student"
SPEC = TypeAdapter(RewardSpec)


def test_a_plain_trl_trainer_takes_it_as_a_reward(tmp_path):
    reward = StableRankReward(STUDENT, scope="response", template="bare")
    seen = []

    def noting(**arguments):
        seen.append((arguments["completions"], reward(**arguments)))
        return seen[-1][1]

    config = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=24,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
    )
    rows = Dataset.from_list([{"prompt": "3+4-5=?\n", "answer": "2"}] * 2)
    trainer = GRPOTrainer(resolve(STUDENT), [reward, noting], args=config, train_dataset=rows)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/stable_rank/mean"] == pytest.approx(np.mean(seen[0][1]), rel=1e-5)
    assert logged["rewards/stable_rank/mean"] > 1 and math.isfinite(logged["loss"])


def test_prompts_are_texts_or_messages_and_completions_too():
    reward = StableRankReward(STUDENT, template="bare")
    text = reward(["1+2=?\n"], ["3"], completion_ids=[[1]], answer=["x"])
    talk = reward([[{"role": "user", "content": "1+2=?\n"}]], [[{"role": "assistant", "content": "3"}]])
    assert text == talk and text[0] > 1
    assert reward.__name__ == "stable_rank"


def test_what_has_no_score_is_none():
    reward = StableRankReward(STUDENT, template="bare", window=8)
    assert reward(["1+2=?\n", "1+2=?\n", "1+2+3+4+5=?\n"], ["3", "", "15"])[1:] == [None, None]


def rollout(completions):
    return Rollout(["1+2=?\n"] * len(completions), completions, [], length_mask([len(text) for text in completions]))


def test_the_same_scorer_is_a_deposit():
    (scorer,) = build_scorers(["stable_rank:template=bare"], STUDENT)
    deposit = ScorerReward(scorer)(rollout(["1+2=3\n", "", "3"]))
    expected = StableRankReward(STUDENT, template="bare")(["1+2=?\n"] * 3, ["1+2=3\n", "", "3"])
    assert deposit.trajectory_rewards_N[[0, 2]].tolist() == pytest.approx([expected[0], expected[2]])
    assert deposit.trajectory_rewards_N[1].isnan()
    assert deposit.deposit_mask_NT.sum(1).tolist() == [1, 0, 1]
    assert deposit.notes == {"empty": 1, "empty_completions": 1}


def test_a_recipe_names_it(tokenizer):
    reward = SPEC.validate_python({"kind": "scorer", "name": "shorter"}).build(tokenizer)
    assert (reward.name, reward.own_forward) == ("shorter", "")
    assert reward(rollout(["1+2", "3"])).trajectory_rewards_N.tolist() == [-3, -1]
    reward = SPEC.validate_python({"kind": "scorer", "name": "rankme:template=bare", "model": STUDENT}).build(tokenizer)
    assert reward.own_forward == f"one pass of {STUDENT} over every completion"


@pytest.mark.parametrize("bad", [{"name": "best"}, {"name": "shorter", "modle": "x"}, {}, {"name": "random:sed=1"}])
def test_a_recipe_that_names_nothing_is_refused_at_load(bad):
    with pytest.raises(ValidationError):
        SPEC.validate_python({"kind": "scorer", **bad})


def test_a_reward_is_one_score():
    (scorer,) = build_scorers(["stable_rank", "rankme"], STUDENT, template="bare")
    with pytest.raises(
        RewardError, match="a reward is one score, and the scorer gives stable_rank, rankme; build it wi"
    ):
        ScorerReward(scorer)
