"""GRPO through TRL's own loop and loss, with our credit.

`CreditGRPOTrainer` overrides one method of TRL's `GRPOTrainer`, the one that scores a generation batch, and changes
one entry of what it returns: ``advantages``, from TRL's (N,) to our (N,T). TRL's loss accepts that shape by contract.
The reward runs inside TRL's own reward call, so TRL's logging, gathering and async machinery stay in place.

Left out on purpose: any copy of TRL's loss, sampling or optimisation; losses whose mathematics is per sequence
(luspo, vespo) receive the same (N,T) advantages and are only meaningful for trajectory rewards.

Legend: N completions of this process, T completion tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from stablerank.errors import RecipeError
from stablerank.rewards.credit import Component, Credit, Normalisation, advantages
from stablerank.rewards.deposits import Deposit, Reward
from stablerank.rewards.rollout import Rollout, rollout_from_trl
from stablerank.training.recipe import FIXED, Recipe

RolloutRow = dict[str, Any]
RolloutSink = Callable[[int, list[RolloutRow]], None]


@dataclass
class _Recorder:
    """The reward as TRL calls it; keeps the last rollout and deposit for credit."""

    reward: Reward
    rollout: Rollout | None = None
    deposit: Deposit | None = None

    @property
    def __name__(self) -> str:
        return self.reward.name

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        self.rollout = rollout_from_trl(prompts, completions, completion_ids, **columns)
        self.deposit = self.reward(self.rollout)
        rewards: list[float] = self.deposit.trajectory_rewards_N.tolist()
        return rewards


class CreditGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with deposits and credit in place of its scalar advantages."""

    def __init__(
        self,
        *,
        reward: Reward,
        normalisation: Normalisation,
        rollout_sink: RolloutSink | None = None,
        **trl_arguments: Any,
    ) -> None:
        """Take a reward in place of ``reward_funcs``; every other argument is TRL's own.

        ``rollout_sink(step, rows)`` is called on the main process once a generation batch.
        """
        self._recorder = _Recorder(reward)
        self._normalisation = normalisation
        self._rollout_sink = rollout_sink
        super().__init__(reward_funcs=[self._recorder], **trl_arguments)

    def log_scalar(self, name: str, value: float) -> None:
        """Add a scalar to this step's log row, and so to every tracker of ``report_to``."""
        # A user callback cannot: `Trainer.log` stores and reports before it calls one.
        self._metrics["train"][name].append(value)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        credit = self._credit(batch["completion_mask"].bool())
        batch["advantages"] = credit.advantages_NT.to(batch["advantages"])
        self.log_scalar("advantage_scale", credit.scale)
        assert self._recorder.deposit is not None
        for name, value in self._recorder.deposit.notes.items():
            self.log_scalar(name, value)
        self._record(batch)
        return batch

    def _credit(self, completion_mask_NT: torch.Tensor) -> Credit:
        assert self._recorder.deposit is not None
        deposit = _padded(self._recorder.deposit, completion_mask_NT.shape[1])
        count = completion_mask_NT.shape[0]
        first = self.accelerator.process_index * count
        group_ids_N = (first + torch.arange(count)) // self.num_generations
        components = [Component(deposit, 1.0, self._normalisation)]
        return advantages(components, group_ids_N, completion_mask_NT.cpu(), gather=self._gather)

    def _gather(self, stats: torch.Tensor) -> torch.Tensor:
        gathered: torch.Tensor = self.accelerator.gather(stats.to(self.accelerator.device)).cpu()
        return gathered

    def _record(self, batch: dict[str, Any]) -> None:
        rollout, deposit = self._recorder.rollout, self._recorder.deposit
        assert rollout is not None and deposit is not None
        mask_NT = batch["completion_mask"].bool()
        # The advantage of the last token: for a trajectory reward the advantage of every token.
        last_N = (mask_NT.sum(1) - 1).clamp(min=0)
        advantage_N = batch["advantages"].gather(1, last_N[:, None])[:, 0]
        rows = rollout_rows(
            rollout, deposit.trajectory_rewards_N.tolist(), advantage_N.tolist(), self.max_completion_length
        )
        rows = gather_object(rows)
        if self._rollout_sink is not None and self.accelerator.is_main_process:
            step = self.state.global_step + 1
            numbered = [
                {"step": step, **row, "row": i, "group": i // self.num_generations} for i, row in enumerate(rows)
            ]
            self._rollout_sink(step, numbered)


def _padded(deposit: Deposit, width: int) -> Deposit:
    """The same deposit over T = ``width`` tokens; TRL may pad completions to a multiple."""
    extra = width - deposit.token_rewards_NT.shape[1]
    return dataclasses.replace(
        deposit,
        token_rewards_NT=torch.nn.functional.pad(deposit.token_rewards_NT, (0, extra)),
        deposit_mask_NT=torch.nn.functional.pad(deposit.deposit_mask_NT, (0, extra)),
    )


def rollout_rows(
    rollout: Rollout, rewards: Sequence[float], advantage: Sequence[float], longest: int
) -> list[RolloutRow]:
    """One tidy row a training completion, without its place in the batch."""
    answers = rollout.columns.get("answer", [None] * len(rollout.completions))
    return [
        {
            "phase": "train",
            "prompt": str(prompt),
            "completion": completion,
            "answer": None if answer is None else str(answer),
            "reward": reward,
            "advantage": credit,
            "tokens": len(ids),
            "truncated": len(ids) >= longest,
        }
        for prompt, completion, answer, reward, credit, ids in zip(
            rollout.prompts, rollout.completions, answers, rewards, advantage, rollout.completion_ids, strict=True
        )
    ]


def grpo_config(recipe: Recipe, checkpoints: str) -> GRPOConfig:
    """TRL's configuration, every loss-shaping value explicit."""
    optimiser, settings = recipe.optimiser, {**recipe.loss_settings}
    settings.setdefault("save_total_limit", 2)
    settings.setdefault("report_to", "none")
    try:
        return GRPOConfig(
            output_dir=checkpoints,
            seed=recipe.seed,
            learning_rate=optimiser.learning_rate,
            lr_scheduler_type=optimiser.schedule,
            warmup_steps=optimiser.warmup_steps,
            adam_beta1=optimiser.betas[0],
            adam_beta2=optimiser.betas[1],
            adam_epsilon=optimiser.epsilon,
            weight_decay=optimiser.weight_decay,
            max_grad_norm=optimiser.max_grad_norm,
            optim="adamw_torch",
            scale_rewards=recipe.credit.scale,
            bf16=recipe.model.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            **{key: value for key, value in FIXED.items() if value is not None},
            **settings,
        )
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"TRL refuses the trainer section ({' '.join(str(error).split())}); mend the values it names."
        ) from error


def build_trainer(
    recipe: Recipe,
    config: GRPOConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    rows: Sequence[dict[str, Any]],
    callbacks: list[TrainerCallback],
    rollout_sink: RolloutSink | None = None,
) -> CreditGRPOTrainer:
    """The trainer of a recipe; TRL makes the adapter of a bare model, so that "adapter off" is the reference policy."""
    from datasets import Dataset

    return CreditGRPOTrainer(
        reward=reward,
        normalisation=recipe.credit,
        rollout_sink=rollout_sink,
        model=model,
        args=config,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=None if isinstance(model, PeftModel) else recipe.adapter.peft_config(),
        callbacks=callbacks,
    )
