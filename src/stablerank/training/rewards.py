"""The rewards of a recipe, built and checked before anything is written."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from stablerank.errors import RecipeError
from stablerank.training.recipe import SEQUENCE_LOSSES, Recipe
from stablerank.training.scoring import WeightedReward


def build_rewards(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[WeightedReward]:
    """One entry a component, in the recipe's order.

    Raises:
        StablerankError: a reward cannot be built, or contradicts the trainer section.
    """
    temperature = recipe.loss_settings["temperature"]
    for component in recipe.components:
        own = getattr(component.reward, "temperature", temperature)
        if own != temperature:
            raise RecipeError(
                f"The {component.reward.kind} reward compares log-probabilities at temperature {own}, but "
                f"trainer.temperature is {temperature}; set both to one value."
            )
    rewards = [
        WeightedReward(component.reward.build(tokenizer), component.weight, component.effective_credit)
        for component in recipe.components
    ]
    _refuse_sequence_losses(recipe, rewards)
    return rewards


def _refuse_sequence_losses(recipe: Recipe, rewards: Sequence[WeightedReward]) -> None:
    """Losses whose mathematics is a sequence's take an advantage a token without complaint, and mean nothing."""
    dense = [weighted.reward for weighted in rewards if not _gives_one_advantage(weighted)]
    settings = recipe.loss_settings
    chosen = {
        "loss_type": settings["loss_type"] if settings["loss_type"] in SEQUENCE_LOSSES else None,
        "off_policy_mask_threshold": settings["off_policy_mask_threshold"],
    }
    for name, value in chosen.items():
        if dense and value is not None:
            raise RecipeError(
                f"trainer.{name}={value} is defined for one advantage a completion, but the reward {dense[0].name} "
                f"credits each {dense[0].density}; use trainer.loss_type=dapo without an off-policy mask, or for step "
                "rewards credit.rule=trajectory_mean."
            )


def _gives_one_advantage(weighted: WeightedReward) -> bool:
    """Whether all tokens of a completion get the same advantage."""
    density, rule = weighted.reward.density, weighted.credit.rule
    return density == "trajectory" or (density == "step" and rule == "trajectory_mean")
