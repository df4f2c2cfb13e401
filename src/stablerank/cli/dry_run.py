"""`stablerank train --dry-run`."""

import yaml


def print_plan(path: str, overrides: list[str]) -> None:
    """Check recipe, model, data and reward; print the resolved recipe and what it would cost. Writes nothing."""
    from stablerank.cli.quiet import quiet_libraries
    from stablerank.training.estimate import estimate
    from stablerank.training.grpo import grpo_config
    from stablerank.training.policy import check_rows, load_policy
    from stablerank.training.recipe import load_recipe
    from stablerank.training.rewards import build_rewards

    quiet_libraries()
    recipe = load_recipe(path, overrides)
    grpo_config(recipe, recipe.output)
    policy = load_policy(recipe)
    rewards = build_rewards(recipe, policy[1])
    rows = recipe.data.train_rows()
    held_out = recipe.data.held_out_rows(recipe.evaluation.split, recipe.evaluation.problems)
    check_rows(recipe, *policy, [*rows, *held_out])
    cost = estimate(recipe)
    print(yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True))
    share = cost.trainable / cost.total
    print(f"trainable parameters  {cost.trainable:,} ({share:.1%} of the model's {cost.total:,})")
    print(f"training rows         {len(rows):,}; held-out {recipe.evaluation.split} rows {len(held_out):,}")
    for weighted in rewards:
        if weighted.reward.own_forward:
            print(f"reward {weighted.reward.name:<15}{weighted.reward.own_forward}")
    print(f"memory, at least      {_gigabytes(cost.floor_bytes)}, plus activations and about 0.9 GB of libraries:")
    for name in ("weights", "gradients_and_optimiser", "reference", "logits"):
        print(f"  {name.replace('_', ' '):<24}{_gigabytes(getattr(cost, name + '_bytes'))}")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
