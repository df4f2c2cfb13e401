"""One GRPO step on recorded completions, in as many processes as it is launched in: `RECIPE ROLLOUTS OUT`.

Process 0 writes the advantages of all rows in order, the logged loss and the gradients, before any step is taken.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from stablerank.training.grpo import build_trainer, grpo_config
from stablerank.training.policy import load_policy
from stablerank.training.recipe import load_recipe
from stablerank.training.rewards import build_rewards


class KeepGradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        named = model.module.named_parameters() if hasattr(model, "module") else model.named_parameters()
        self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}


def main(recipe_path: str, rollouts_path: str, out: str) -> None:
    recipe = load_recipe(recipe_path)
    rows = json.loads(Path(rollouts_path).read_text())
    model, tokenizer = load_policy(recipe)
    config = grpo_config(recipe, f"{out}.checkpoints")
    gradients = KeepGradients()
    prompts = list({row["prompt"]: {"prompt": row["prompt"], "answer": row["answer"]} for row in rows}.values())
    torch.manual_seed(0)
    trainer = build_trainer(recipe, config, model, tokenizer, build_rewards(recipe, tokenizer), prompts, [gradients])
    # Factors that are not zero, so that every parameter has a gradient, the same in every process.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)

    def replay(asked: list[str], trainer: Any) -> dict[str, Any]:
        first = trainer.accelerator.process_index * len(asked)
        mine = rows[first : first + len(asked)]
        assert asked == [row["prompt"] for row in mine]
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in asked],
            "completion_ids": [row["completion_ids"] for row in mine],
            "logprobs": None,
        }

    trainer.rollout_func = replay
    kept: list[list[list[float]]] = []
    score = trainer._generate_and_score_completions

    def watched(inputs: Any) -> Any:
        batch = score(inputs)
        kept.append(batch["advantages"].tolist())
        return batch

    trainer._generate_and_score_completions = watched
    trainer.train()
    advantages = gather_object(kept[0])
    if trainer.accelerator.is_main_process:
        loss = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
        torch.save({"advantages": advantages, "loss": loss, "gradients": gradients.found}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
