"""A snapshot stands in for the policy in one pass, is renewed when due, and survives a checkpoint."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stablerank.errors import RunFolderError
from stablerank.facade import continue_training, train
from stablerank.runs.folder import COMPLETE, RunFolder
from stablerank.training.policy import load_policy
from stablerank.training.recipe import parse_recipe
from stablerank.training.replay import score_group
from stablerank.training.rewards import build_rewards
from stablerank.training.snapshot import FILE, Snapshot
from stablerank.zoo.resolve import resolve

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(params=["lora", "full"])
def policy(request) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))
    if request.param == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
    return model.train()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def moved(policy: torch.nn.Module) -> None:
    for _, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)


def state(policy: torch.nn.Module) -> dict[str, tuple[int, torch.Tensor]]:
    return {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in policy.state_dict(keep_vars=True).items()}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return all(place == after[name][0] and torch.equal(kept, after[name][1]) for name, (place, kept) in before.items())


def test_inside_it_answers_as_it_did_and_outside_it_is_untouched(policy) -> None:
    then = logits(copy.deepcopy(policy).eval())
    snapshot = Snapshot()
    snapshot.take(policy)
    moved(policy)
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad])
    before, modes = state(policy), [module.training for module in policy.modules()]
    for _ in range(2):
        with snapshot.swapped(policy):
            assert snapshot.is_in
            assert torch.equal(logits(policy), then)
    assert not snapshot.is_in
    assert same(before, state(policy))
    assert modes == [module.training for module in policy.modules()]
    assert not torch.equal(logits(copy.deepcopy(policy).eval()), then)
    assert {id(p) for group in optimiser.param_groups for p in group["params"]} <= {id(p) for p in policy.parameters()}


def test_a_pass_that_raises_leaves_the_policy_as_it_was(policy) -> None:
    snapshot = Snapshot()
    snapshot.take(policy)
    moved(policy)
    before = state(policy)
    with pytest.raises(RuntimeError, match="in the pass"), snapshot.swapped(policy):
        raise RuntimeError("in the pass")
    assert same(before, state(policy))
    assert not snapshot.is_in


def test_it_holds_what_trains_and_nothing_else(policy, tmp_path: Path) -> None:
    snapshot = Snapshot()
    snapshot.take(policy)
    snapshot.save(tmp_path)
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert set(load_file(tmp_path / FILE)) == set(trained)
    again = Snapshot()
    then = logits(copy.deepcopy(policy).eval())
    moved(policy)
    again.load(tmp_path, policy)
    with again.swapped(policy):
        assert torch.equal(logits(policy), then)


def test_half_precision_copies_of_autocast_are_not_mixed_up(policy) -> None:
    snapshot = Snapshot()
    snapshot.take(policy)
    with torch.autocast("cpu", torch.bfloat16):
        policy.eval()
        then = policy(IDS).logits
        moved(policy)
        torch.clear_autocast_cache()
        now = policy(IDS).logits
        with snapshot.swapped(policy):
            assert torch.equal(policy(IDS).logits, then)
        assert torch.equal(policy(IDS).logits, now)
    assert not torch.equal(now, then)


def test_another_policys_is_refused(policy, tmp_path: Path) -> None:
    snapshot = Snapshot()
    snapshot.take(torch.nn.Linear(2, 3))
    snapshot.save(tmp_path)
    with pytest.raises(ValueError, match="other parameters than this policy trains"):
        Snapshot().load(tmp_path, policy)


def by_snapshot(small_recipe, place: Path, **changes: Any) -> dict[str, Any]:
    reward = {"kind": "stable_rank", "of": "snapshot", "refresh": 2}
    sections = {"reward": reward, "geometry": {"every": 0}, "adapter": {"kind": "lora", "r": 4, "dropout": 0.1}}
    evaluation = {"problems": 4, "every": 0, "reward": {"kind": "math_verify"}}
    trainer = {"max_steps": 6, "save_steps": 3, "save_total_limit": 4, "per_device_train_batch_size": 8}
    return small_recipe(place, evaluation=evaluation, **{**sections, "trainer": trainer, **changes})


@pytest.fixture(scope="module")
def unbroken(small_recipe, tmp_path_factory) -> Any:
    """Six steps, a snapshot every two, a checkpoint every three: that of step 3 holds the policy of step 2."""
    return train(by_snapshot(small_recipe, tmp_path_factory.mktemp("runs") / "unbroken"))


def weights(checkpoint: Path) -> list[torch.Tensor]:
    found = load_file(checkpoint / "adapter_model.safetensors")
    return [tensor for _, tensor in sorted(found.items())]


def kept(checkpoint: Path) -> list[torch.Tensor]:
    found = load_file(checkpoint / FILE)
    return [tensor for _, tensor in sorted((name.replace(".default", ""), tensor) for name, tensor in found.items())]


def equal(these: list[torch.Tensor], those: list[torch.Tensor]) -> bool:
    return all(torch.equal(this, that) for this, that in zip(these, those, strict=True))


def test_a_checkpoint_holds_the_snapshot_that_is_read_at_its_step(unbroken) -> None:
    third, sixth = (unbroken.checkpoints_path / f"checkpoint-{step}" for step in (3, 6))
    assert not equal(kept(third), weights(third))
    assert equal(kept(sixth), weights(sixth))


def test_a_run_resumed_between_two_snapshots_equals_the_unbroken_one(unbroken, tmp_path: Path) -> None:
    shutil.copytree(unbroken.path, tmp_path / "run")
    resumed = RunFolder(tmp_path / "run")
    resumed.summary_path.unlink()
    (resumed.checkpoints_path / "checkpoint-6" / COMPLETE).unlink()
    resumed = continue_training(resumed.path)
    assert resumed.metrics.rows() == unbroken.metrics.rows()
    assert equal(weights(resumed.model_path), weights(unbroken.model_path))


def test_it_is_the_policy_of_the_last_even_step_that_is_read(unbroken, small_recipe, tmp_path: Path) -> None:
    """Steps 1 and 2 read the untouched policy, so their rewards are the reference's; from step 3 on they are not."""
    frozen = by_snapshot(small_recipe, tmp_path / "run", reward={"kind": "stable_rank"})
    frozen["trainer"] |= {"max_steps": 3}
    rewards = [[row["reward"] for row in run.metrics.rows()] for run in (unbroken, train(frozen))]
    assert rewards[0][:2] == pytest.approx(rewards[1][:2], rel=1e-5)
    assert rewards[0][2] != pytest.approx(rewards[1][2], rel=1e-5)


def test_a_checkpoint_without_a_snapshot_is_no_checkpoint_of_this_policy(
    unbroken, small_recipe, tmp_path: Path
) -> None:
    shutil.copytree(unbroken.checkpoints_path / "checkpoint-3", tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / FILE).unlink()
    recipe = parse_recipe(by_snapshot(small_recipe, tmp_path / "run"))
    model, tokenizer = load_policy(recipe)
    rewards, rows = build_rewards(recipe, tokenizer), recipe.data.train_rows()[:1] * 2
    group = (recipe, model, tokenizer, rewards, rows)
    with pytest.raises(RunFolderError, match="is no checkpoint of this recipe's policy"):
        score_group(*group, checkpoint=tmp_path / "checkpoint-3")


def test_one_group_is_scored_by_the_snapshot_of_its_checkpoint(unbroken, small_recipe, tmp_path: Path) -> None:
    """`stablerank inspect-reward` reads the policy of step 2 in the checkpoint of step 3."""
    found = {}
    for of in ("snapshot", "policy", "frozen"):
        reward = {"kind": "stable_rank", "of": of, "refresh": 2 if of == "snapshot" else None}
        # Without dropout, which the policy's pass has and a snapshot's has not: weights alone tell them apart.
        adapter = {"kind": "lora", "r": 4}
        recipe = parse_recipe(by_snapshot(small_recipe, tmp_path / "run", reward=reward, adapter=adapter))
        model, tokenizer = load_policy(recipe)
        rows, rewards = recipe.data.train_rows()[:1] * 2, build_rewards(recipe, tokenizer)
        ids = [tokenizer("3+4=7\n").input_ids, tokenizer("3+4=8\n\\boxed{8}").input_ids]
        checkpoint = unbroken.checkpoints_path / "checkpoint-3"
        scored = score_group(recipe, model, tokenizer, rewards, rows, ids, checkpoint=checkpoint)
        found[of] = scored.deposits[0].trajectory_rewards_N.tolist()
    assert len({tuple(values) for values in found.values()}) == 3
