"""`stablerank train --dry-run`."""

from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from stablerank.training.recipe import AnyRecipe, Recipe


def print_plan(path: str, overrides: list[str]) -> None:
    """Check recipe, model, data and reward; print the resolved recipe and what it would cost. Writes nothing."""
    from stablerank.cli.quiet import quiet_libraries
    from stablerank.training.estimate import estimate
    from stablerank.training.recipe import Recipe, load_recipe

    quiet_libraries()
    recipe = load_recipe(path, overrides)
    notes = _check_grpo(recipe) if isinstance(recipe, Recipe) else _check_losses(recipe)
    cost = estimate(recipe)
    print(yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True))
    share = cost.trainable / cost.total
    print(f"trainable parameters  {cost.trainable:,} ({share:.1%} of the model's {cost.total:,})")
    print("\n".join([*notes, *_route(recipe)]))
    print(f"memory, at least      {_gigabytes(cost.floor_bytes)}, plus activations and about 0.9 GB of libraries:")
    for name in ("weights", "gradients_and_optimiser", "reference", "logits"):
        print(f"  {name.replace('_', ' '):<24}{_gigabytes(getattr(cost, name + '_bytes'))}")


def _check_grpo(recipe: "Recipe") -> list[str]:
    from stablerank.training.grpo import grpo_config
    from stablerank.training.policy import check_rows, load_policy
    from stablerank.training.rewards import build_rewards

    grpo_config(recipe, recipe.output)
    policy = load_policy(recipe)
    rewards = build_rewards(recipe, policy[1])
    rows = recipe.data.train_rows()
    held_out = recipe.data.held_out_rows(recipe.evaluation.split, recipe.evaluation.problems)
    check_rows(recipe, *policy, rows, held_out)
    forwards = [weighted for weighted in rewards if weighted.reward.own_forward]
    return [
        _rows_note(len(rows), recipe.evaluation.split, len(held_out)),
        *(f"reward {weighted.reward.name:<15}{weighted.reward.own_forward}" for weighted in forwards),
    ]


def _check_losses(recipe: "AnyRecipe") -> list[str]:
    from stablerank.training.policy import load_policy
    from stablerank.training.recipe import Recipe
    from stablerank.training.sections import trl_arguments

    assert not isinstance(recipe, Recipe)
    trl_arguments(recipe, recipe.output)
    load_policy(recipe)
    held_out = recipe.data.held_out_rows(recipe.evaluation.split, recipe.evaluation.examples)
    return [_rows_note(len(recipe.data.train_rows()), recipe.evaluation.split, len(held_out))]


def _route(recipe: "AnyRecipe") -> list[str]:
    from transformers import AutoConfig

    from stablerank.training.routing import planned
    from stablerank.zoo.resolve import resolve

    return planned(recipe, AutoConfig.from_pretrained(resolve(recipe.model.path)))


def _rows_note(rows: int, split: str, held_out: int) -> str:
    return f"training rows         {rows:,}; held-out {split} rows {held_out:,}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
