"""Our credit inside the installed TRL's loss: equal where TRL can do it, equal to nested loops where it cannot.

Three ways, as a claim of equality needs: our advantages against those that TRL computes from the same rewards; loss and
every gradient on identical advantages, TRL's (N,) against our (N,T); and mutations, which must break both.

Legend: N completions, T tokens, G completions a group.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from stablerank.rewards.credit.advantages import Component, advantages
from stablerank.rewards.credit.specs import CreditSpec
from stablerank.rewards.deposits import Deposit, Reward, trajectory_deposit
from stablerank.rewards.rollout import Rollout, length_mask
from stablerank.training.grpo import CreditGRPOTrainer
from stablerank.training.scoring import WeightedReward
from stablerank.zoo.resolve import resolve

GROUPS, G, T = 3, 4, 7
LENGTHS = [7, 5, 1, 0, 3, 6, 7, 7, 2, 2, 4, 1]
"""Truncated ones at 7, an empty one, ragged ones between."""
REWARDS = [1.0, 0.0, 0.25, 0.0, 0.1, 0.1, 0.1, 0.1, None, -3.0, 5.0, 1e-3]
TOKEN_LEVEL = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
SEQUENCE_LEVEL: dict[str, dict[str, Any]] = {
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "dapo, sequence": {"loss_type": "dapo", "importance_sampling_level": "sequence"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "off-policy mask": {"loss_type": "dapo", "off_policy_mask_threshold": 0.05},
}


class Replayed(Reward):
    """Rewards that were recorded."""

    name = "replayed"

    def __call__(self, rollout: Rollout) -> Deposit:
        return trajectory_deposit(REWARDS, rollout.completion_mask_NT)


def model(dtype: torch.dtype) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).to(dtype)


@pytest.fixture
def trainer(tmp_path: Path):
    """``trainer(ours, dtype, **settings)``: ours, or plain TRL, on a random model."""

    def build(ours: bool = False, dtype: torch.dtype = torch.float32, beta: float = 0.0, **settings: Any) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"), padding_side="left")
        config = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=GROUPS * G,
            num_generations=G,
            max_completion_length=T,
            **{"max_steps": 1, **settings},
        )
        arguments: dict[str, Any] = {
            "model": model(dtype),
            "args": config,
            "train_dataset": Dataset.from_list([{"prompt": f"{first}+1=?\n"} for first in range(GROUPS)]),
            "processing_class": tokenizer,
        }
        if ours:
            return CreditGRPOTrainer(rewards=[WeightedReward(Replayed())], **arguments)
        built = GRPOTrainer(reward_funcs=[lambda prompts, **_: REWARDS], **arguments)
        built.beta = beta  # set later: TRL would load a reference from a folder, and the batch brings its own
        return built

    return build


def batch(trainer: Any, off_policy: bool) -> dict[str, Any]:
    """A scored batch with ragged, truncated and empty completions; off-policy old log-probabilities make clips bite."""
    generator = torch.Generator().manual_seed(1)
    ids_NT = torch.randint(3, 13, (GROUPS * G, T), generator=generator)
    mask_NT = length_mask(LENGTHS).long()
    prompt_NT = torch.randint(3, 13, (GROUPS * G, 5), generator=generator)
    prompt_mask_NT = torch.ones_like(prompt_NT)
    prompt_mask_NT[::2, :2] = 0
    inputs: dict[str, Any] = {
        "prompt_ids": prompt_NT,
        "prompt_mask": prompt_mask_NT,
        "completion_ids": ids_NT,
        "completion_mask": mask_NT,
        "num_items_in_batch": mask_NT.sum(),
    }
    ids, attention = torch.cat([prompt_NT, ids_NT], 1), torch.cat([prompt_mask_NT, mask_NT], 1)
    with torch.no_grad():
        logprobs_NT = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, T)[0]
    noise_NT = torch.randn(2, *logprobs_NT.shape, generator=generator).to(logprobs_NT)
    inputs["ref_per_token_logps"] = logprobs_NT + 0.5 * noise_NT[0]
    if off_policy:
        inputs["old_per_token_logps"] = logprobs_NT + 0.4 * noise_NT[1]
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.train()
    return inputs


def loss_and_gradients(trainer: Any, inputs: dict[str, Any], advantage: Tensor) -> list[Tensor]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, {**inputs, "advantages": advantage})
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in trainer.model.parameters() if p.grad is not None)]


def relative_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(((a - b).norm() / b.norm().clamp(min=1e-30)).item() for a, b in zip(ours, theirs, strict=True))


def our_advantages(mask_NT: Tensor, credit: CreditSpec | None = None, group_N: Tensor | None = None) -> Tensor:
    deposit = trajectory_deposit(REWARDS, mask_NT.bool())
    groups = torch.arange(GROUPS * G) // G if group_N is None else group_N
    return advantages([Component(deposit, 1.0, credit or CreditSpec())], groups, mask_NT).advantages_NT


def test_advantages_are_those_of_trl_on_one_rollout(trainer) -> None:
    """Through `_generate_and_score_completions` of both, the same model, seed and rewards."""
    found = []
    for ours in (False, True):
        built = trainer(ours)
        built.model.train()
        torch.manual_seed(3)
        rows = [row for row in built.train_dataset for _ in range(G)]
        found.append(built._generate_and_score_completions(rows))
    theirs, mine = found
    assert torch.equal(theirs["completion_ids"], mine["completion_ids"])
    expected_NT = theirs["advantages"][:, None] * theirs["completion_mask"]
    assert (mine["advantages"] - expected_NT).abs().max() <= 1e-6
    assert mine["advantages"].abs().max() > 0.5


@pytest.mark.parametrize("off_policy", [False, True], ids=["first epoch", "later epoch"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", TOKEN_LEVEL)
def test_token_level_losses_are_bitwise_those_of_trl(trainer, loss_type: str, beta: float, off_policy: bool) -> None:
    built = trainer(loss_type=loss_type, beta=beta, num_iterations=1 + off_policy)
    inputs = batch(built, off_policy)
    ours_NT = our_advantages(inputs["completion_mask"])
    theirs_N = ours_NT[:, 0]
    ours, theirs = (loss_and_gradients(built, inputs, advantage) for advantage in (ours_NT, theirs_N))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(tensor.isfinite().all() for tensor in theirs) and len(theirs) > 5


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", SEQUENCE_LEVEL)
def test_sequence_level_losses_are_those_of_trl_in_fp64(trainer, name: str, beta: float) -> None:
    built = trainer(dtype=torch.float64, beta=beta, **SEQUENCE_LEVEL[name])
    inputs = batch(built, off_policy=True)
    ours_NT = our_advantages(inputs["completion_mask"]).double()
    ours, theirs = (loss_and_gradients(built, inputs, advantage) for advantage in (ours_NT, ours_NT[:, 0]))
    assert relative_difference(ours, theirs) <= 1e-12


def without_a_group(advantage_NT: Tensor, mask_NT: Tensor) -> Tensor:
    rows_N1 = (torch.arange(GROUPS * G) // G == 0)[:, None]
    return advantage_NT.masked_fill(rows_N1, 0.0)


def shifted_mask(advantage_NT: Tensor, mask_NT: Tensor) -> Tensor:
    return advantage_NT * mask_NT.roll(1, dims=1)


def population_deviation(advantage_NT: Tensor, mask_NT: Tensor) -> Tensor:
    return advantage_NT * math.sqrt(G / (G - 1))


def neighbours_group(advantage_NT: Tensor, mask_NT: Tensor) -> Tensor:
    return our_advantages(mask_NT, group_N=(torch.arange(GROUPS * G) + 1) // G)


@pytest.mark.parametrize("mutate", [without_a_group, shifted_mask, population_deviation, neighbours_group])
def test_mutated_advantages_are_found(trainer, mutate) -> None:
    built = trainer(loss_type="dapo", beta=0.04)
    inputs = batch(built, off_policy=True)
    mask_NT = inputs["completion_mask"]
    right_NT = our_advantages(mask_NT)
    wrong_NT = mutate(right_NT, mask_NT)
    assert (wrong_NT - right_NT).abs().max() > 1e-3
    ours, theirs = loss_and_gradients(built, inputs, wrong_NT), loss_and_gradients(built, inputs, right_NT[:, 0])
    assert relative_difference(ours, theirs) > 1e-3


def test_a_wrong_epsilon_is_found(trainer) -> None:
    mask_NT = length_mask(LENGTHS)
    difference = our_advantages(mask_NT, CreditSpec(epsilon=1e-2)) - our_advantages(mask_NT)
    assert difference.abs().max() > 1e-4


# Process and token densities: TRL's own loss on our advantages against loops over tokens in fp64.


def random_deposits(density: str, mask_NT: Tensor) -> Deposit:
    generator = torch.Generator().manual_seed(5)
    chosen_NT = mask_NT.clone()
    if density == "step":
        chosen_NT &= torch.rand(mask_NT.shape, generator=generator) < 0.5
    values_NT = torch.rand(mask_NT.shape, generator=generator)
    return Deposit(values_NT, chosen_NT, torch.zeros(len(mask_NT)), density)


def looped_advantages(deposit: Deposit, mask_NT: Tensor) -> list[list[float]]:
    """DeepSeekMath's rule for steps, the token's own deposit for tokens, by hand."""
    rows, chosen = deposit.token_rewards_NT.double().tolist(), deposit.deposit_mask_NT.tolist()
    found = [[0.0] * T for _ in rows]
    for group in range(GROUPS):
        members = range(group * G, (group + 1) * G)
        values = [rows[i][t] for i in members for t in range(T) if chosen[i][t]]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        for i in members:
            for t in range(T):
                if not mask_NT[i, t]:
                    continue
                sources = [t] if deposit.density == "token" else range(t, T)
                found[i][t] = sum((rows[i][s] - mean) / (deviation + 1e-4) for s in sources if chosen[i][s])
    return found


def looped_loss(
    loss_type: str, beta: float, new: Tensor, old: Tensor, ref: Tensor, advantage, mask_NT: Tensor
) -> Tensor:
    """TRL's documented losses, token by token, in fp64."""
    terms: list[list[Tensor]] = []
    for i, length in enumerate(LENGTHS):
        terms.append([])
        for t in range(length):
            ratio = torch.exp(new[i, t] - old[i, t])
            clipped = min(max(ratio.item(), 0.8), 1.2)
            a = advantage[i][t]
            gain = ratio * a if ratio.item() * a <= clipped * a else torch.tensor(clipped * a, dtype=torch.float64)
            gap = ref[i, t] - new[i, t]
            # TRL's default weighs its k3 term by the ratio (use_bias_correction_kl).
            terms[-1].append(-gain + beta * ratio * (torch.exp(gap) - gap - 1))
    total = sum((term for row in terms for term in row), torch.zeros((), dtype=torch.float64))
    tokens = sum(LENGTHS)
    if loss_type == "grpo":
        return sum(sum(row) / len(row) for row in terms if row) / len(terms) / 2
    if loss_type == "bnpo":
        return total / tokens / 2
    if loss_type == "dr_grpo":
        return total / (len(terms) * T) / 2
    return total / (tokens * 2 / 1)  # dapo: items of the generation batch, rescaled to the accumulation window


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("density", ["step", "token"])
def test_dense_credit_is_that_of_nested_loops(trainer, density: str, loss_type: str, beta: float) -> None:
    built = trainer(dtype=torch.float64, loss_type=loss_type, beta=beta)
    inputs = batch(built, off_policy=True)
    mask_NT = inputs["completion_mask"].bool()
    deposit = random_deposits(density, mask_NT)
    rule = CreditSpec(rule="return_to_go")
    ours_NT = advantages([Component(deposit, 1.0, rule)], torch.arange(GROUPS * G) // G, mask_NT).advantages_NT
    looped = looped_advantages(deposit, mask_NT)
    torch.testing.assert_close(ours_NT.double(), torch.tensor(looped, dtype=torch.float64), rtol=1e-6, atol=1e-6)

    # One leaf in place of the model, so that the whole loss is fp64 and its gradient is by token.
    inputs |= {name: inputs[name].double() for name in ("old_per_token_logps", "ref_per_token_logps")}
    noise_NT = torch.randn(mask_NT.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf_NT = (inputs["old_per_token_logps"] + 0.3 * noise_NT).requires_grad_()
    built._get_per_token_logps_and_entropies = lambda *_, **__: (leaf_NT, torch.zeros_like(leaf_NT), None)
    loss = built.compute_loss(built.model, {**inputs, "advantages": torch.tensor(looped, dtype=torch.float64)})
    (gradient_NT,) = torch.autograd.grad(loss, leaf_NT)
    old, ref = inputs["old_per_token_logps"], inputs["ref_per_token_logps"]
    expected = looped_loss(loss_type, beta, leaf_NT, old, ref, looped, mask_NT)
    (expected_NT,) = torch.autograd.grad(expected, leaf_NT)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient_NT, expected_NT, rtol=1e-12, atol=1e-14)
    assert gradient_NT.count_nonzero() > 10
