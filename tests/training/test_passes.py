"""The passes that rewards share: how often a model runs over prompts and completions, and what rewards read of it."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import GRPOConfig

from stablerank.errors import ModelError
from stablerank.rewards.deposits import Deposit
from stablerank.rewards.divergence import KLReward
from stablerank.rewards.geometric import SpectrumReward, View
from stablerank.rewards.intrinsic import IntrinsicReward
from stablerank.rewards.length import LengthReward
from stablerank.training.grpo import CreditGRPOTrainer
from stablerank.training.passes import is_reference_active
from stablerank.training.scoring import WeightedReward
from stablerank.zoo.resolve import resolve

COMPLETIONS, GENERATIONS = 8, 4
TEMPERATURE = 0.8
FROZEN, POLICY = "frozen", "policy"


class Run:
    """One step of a trainer at learning rate 0, and every no-gradient run of the backbone over whole texts in it."""

    def __init__(self, trainer: CreditGRPOTrainer) -> None:
        self.trainer = trainer
        calls: list[tuple[bool, bool, torch.Size]] = []

        def listen(model: torch.nn.Module) -> Any:
            def hook(module: Any, arguments: Any, output: Any) -> None:
                is_frozen = model is trainer.ref_model or is_reference_active(model)
                calls.append((is_frozen, torch.is_grad_enabled(), output.last_hidden_state.shape))

            causal = model.get_base_model() if isinstance(model, PeftModel) else model
            return causal.base_model.register_forward_hook(hook)

        hooks = [listen(model) for model in (trainer.model, trainer.ref_model) if model is not None]
        trainer.train()
        for hook in hooks:
            hook.remove()
        rollout = trainer._scoring.rollout
        assert rollout is not None
        assert rollout.prompt_ids is not None
        self.rollout = rollout
        self.texts = list(zip(rollout.prompt_ids, rollout.completion_ids, strict=True))
        # While it samples, the model sees prompts, and then one token at a time.
        whole = max(len(prompt) for prompt, _ in self.texts) + max(len(completion) for _, completion in self.texts)
        self.rows = [
            (FROZEN if is_frozen else POLICY, shape[0])
            for is_frozen, has_gradient, shape in calls
            if not has_gradient and shape[1] >= whole
        ]

    def deposit(self, name: str) -> Deposit:
        return self.trainer._scoring.deposits[name]

    def outputs(self, which: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of every text alone, without padding: last hidden states, and log-probabilities of the completion."""
        found = []
        model = self.trainer.model.eval()
        with torch.no_grad():
            for prompt, completion in self.texts:
                ids = torch.tensor([[*prompt, *completion]])
                is_adapted = isinstance(model, PeftModel)
                with model.disable_adapter() if which == FROZEN and is_adapted else nullcontext():
                    output = model(ids, output_hidden_states=True)
                logprobs = (output.logits[0, len(prompt) - 1 : -1] / TEMPERATURE).log_softmax(-1)
                sampled = logprobs[range(len(completion)), list(completion)]
                found.append((output.hidden_states[-1][0].double().numpy(), sampled.double().numpy()))
        return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """``run(rewards, **settings)``: one step of the embedded student under an adapter that is not zero."""

    def step(*rewards: Any, adapter: bool = True, **settings: Any) -> Run:
        set_seed(0)
        place = resolve("zoo:arith-student")
        config = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            max_steps=1,
            learning_rate=0.0,
            temperature=TEMPERATURE,
            num_generations=GENERATIONS,
            max_completion_length=12,
            **{"beta": 0.0, "per_device_train_batch_size": COMPLETIONS, **settings},
        )
        trainer = CreditGRPOTrainer(
            rewards=[WeightedReward(reward) for reward in rewards],
            model=AutoModelForCausalLM.from_pretrained(place),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "3+4=?\n"}, {"prompt": "(12-5)*3-4=?\n"}] * 4),
            processing_class=AutoTokenizer.from_pretrained(place),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None,
        )
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        return Run(trainer)

    return step


def stable_ranks(run: Run) -> list[float]:
    squares = [np.linalg.svd(states, compute_uv=False) ** 2 for states, _ in run.outputs(FROZEN)]
    return [values.sum() / values[0] for values in squares]


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_a_stable_rank_reward_costs_one_frozen_pass_with_or_without_a_kl_term(run, beta) -> None:
    """The reward is that of an explicit forward with the adapter off."""
    done = run(SpectrumReward(), beta=beta)
    assert done.rows == [(FROZEN, COMPLETIONS)]
    assert done.deposit("stable_rank").trajectory_rewards_N.tolist() == pytest.approx(stable_ranks(done), rel=1e-5)


def test_without_a_reader_no_pass_is_made(run) -> None:
    assert run(LengthReward(12, 12)).rows == []


def test_a_pass_in_chunks_sees_every_row_once(run) -> None:
    done = run(SpectrumReward(), per_device_train_batch_size=3, gradient_accumulation_steps=4, beta=0.04)
    assert done.rows == [(FROZEN, 3)] * 4
    assert done.deposit("stable_rank").trajectory_rewards_N.tolist() == pytest.approx(stable_ranks(done), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"beta": 0.04, "pad_to_multiple_of": 16}, {"num_iterations": 2}])
def test_all_rewards_share_two_passes_and_read_what_explicit_forwards_say(run, settings) -> None:
    """Whoever made the passes: we, TRL for its KL term (padding further than we do), TRL for its off-policy ratio."""
    rewards = (
        KLReward(),
        IntrinsicReward("likelihood"),
        SpectrumReward(),
        SpectrumReward(view=View("response", 16)),
    )
    done = run(*rewards, IntrinsicReward("self_certainty"), IntrinsicReward("entropy", "frozen"), **settings)
    assert sorted(done.rows) == [(FROZEN, COMPLETIONS), (POLICY, COMPLETIONS)]
    assert done.deposit("stable_rank_2").trajectory_rewards_N.tolist() == pytest.approx(stable_ranks(done), rel=1e-5)
    kl, likelihood = done.deposit("kl"), done.deposit("likelihood")
    distances: list[float] = []
    for row, ((_, policy), (_, frozen)) in enumerate(zip(done.outputs(POLICY), done.outputs(FROZEN), strict=True)):
        deposited = kl.token_rewards_NT[row][kl.deposit_mask_NT[row]].tolist()
        assert deposited == pytest.approx(frozen - policy, abs=1e-5)
        assert kl.trajectory_rewards_N[row].item() == pytest.approx((frozen - policy).sum(), abs=1e-4)
        assert likelihood.trajectory_rewards_N[row].item() == pytest.approx(policy.mean(), abs=1e-5)
        distances.extend(policy - frozen)
    assert np.abs(distances).max() > 0.1


def test_a_policy_that_trains_in_place_is_held_against_the_reference_model(run) -> None:
    done = run(SpectrumReward(), adapter=False, beta=0.04)
    assert done.rows == [(FROZEN, COMPLETIONS)]
    assert done.deposit("stable_rank").trajectory_rewards_N.tolist() == pytest.approx(stable_ranks(done), rel=1e-5)


def test_a_policy_that_trains_in_place_alone_has_no_reference(run) -> None:
    with pytest.raises(ModelError, match=r"set trainer\.beta above 0, or train an adapter"):
        run(SpectrumReward(), adapter=False)
