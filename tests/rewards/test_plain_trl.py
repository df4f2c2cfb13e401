import pytest
import torch

from stablerank.rewards.outcome import MathVerifyReward
from stablerank.rewards.plain_trl import as_trl_reward
from stablerank.rewards.python import PythonReward


def test_our_rewards_train_a_plain_trl_trainer(grpo_trainer, tmp_path):
    (tmp_path / "own.py").write_text(
        "def digits(completions, **_):\n"
        "    return [sum(c.isdigit() for c in text) if len(text) != 1 else None for text in completions]\n"
    )
    digits = PythonReward(f"{tmp_path}/own.py:digits")
    trainer = grpo_trainer([as_trl_reward(MathVerifyReward()), as_trl_reward(digits)])
    before = torch.cat([weight.detach().flatten().clone() for weight in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    log = trainer.state.log_history[0]
    assert trainer.reward_func_names == ["math_verify", "digits"]
    assert log["rewards/digits/mean"] > 0 and not torch.equal(before, after)
    assert 0 <= log["math_verify/parse_failures"] <= 20


def test_unscorable_is_none():
    trl_reward = as_trl_reward(MathVerifyReward())
    assert trl_reward(["p"] * 3, ["\\boxed{2}"] * 3, [[1]] * 3, answer=["2", "3", None]) == [1.0, 0.0, None]
    assert trl_reward.__name__ == "math_verify"


def test_notes_reach_the_log():
    logged = {}
    as_trl_reward(MathVerifyReward())(["p"], ["?"], [[1]], answer=["2"], log_metric=logged.__setitem__)
    assert logged["math_verify/parse_failures"] == pytest.approx(1.0)
