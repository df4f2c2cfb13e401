"""Our credit in TRL's trainer: the same numbers as TRL alone where TRL can do it."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOTrainer

from stablerank.rewards.plain_trl import as_trl_reward
from stablerank.training.grpo import CreditGRPOTrainer, grpo_config
from stablerank.training.recipe import parse_recipe
from stablerank.training.rewards import build_rewards
from stablerank.zoo.resolve import resolve


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_outcome_reward_trains_as_trl_alone_does(small_recipe, tmp_path: Path, loss_type: str) -> None:
    """Same seed, same rollouts: losses, gradient norms and final weights of plain TRL."""
    recipe = parse_recipe(small_recipe(tmp_path, trainer={"max_steps": 3, "loss_type": loss_type, "save_steps": 3}))
    rows = Dataset.from_list(recipe.data.train_rows())
    place = resolve(recipe.model.path)
    rewards = build_rewards(recipe, AutoTokenizer.from_pretrained(place))

    def trained(make) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
        set_seed(0)
        trainer = make(
            model=AutoModelForCausalLM.from_pretrained(place),
            args=grpo_config(recipe, str(tmp_path)),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(place),
            peft_config=recipe.adapter.peft_config(),
        )
        trainer.train()
        logs = [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]
        return logs, {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}

    ours, our_weights = trained(lambda **k: CreditGRPOTrainer(rewards=rewards, **k))
    theirs, their_weights = trained(lambda **k: GRPOTrainer(reward_funcs=[as_trl_reward(rewards[0].reward)], **k))
    assert any(abs(loss) > 0 for loss, _ in theirs)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-6)
    for name, weight in our_weights.items():
        torch.testing.assert_close(weight, their_weights[name], rtol=1e-4, atol=1e-5)
