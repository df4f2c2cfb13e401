"""Stable rank as an entry of TRL's ``reward_funcs``, from a frozen model of its own.

    from stablerank import StableRankReward
    reward = StableRankReward("zoo:smollm2-135m-instruct", scope="response")
    trainer = GRPOTrainer(model, reward_funcs=reward, ...)

Contract: prompts are texts or messages, completions what TRL gives for them; one float a completion, None where there
is none to give (an empty completion, or one behind the window), which TRL leaves out. Completions are read as text:
each is closed by an end token, also one that the length limit cut.

Cost: one pass of the model over prompts and completions, which our own trainer shares with its KL term.
"""

from collections.abc import Sequence
from math import isnan
from typing import Any

from stablerank.rewards.rollout import Message, Prompt, completion_text
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.frozen_model import Precision, load_frozen
from stablerank.rewards.scorers.model_pass import Layer, ModelPass
from stablerank.rewards.scorers.readings import Scope, SpectralReading, View
from stablerank.rewards.scorers.templates import Layout, Template


class StableRankReward:
    """The stable rank of a frozen model's states over prompt and completion (SR-GRPO, arXiv 2512.02807).

    Args:
        model: ``zoo:NAME``, a model folder or a hub id.
        scope: tokens that count, of ``all`` or of the ``response``.
        layer: as in ``hidden_states``: -1 is after the final norm; or ``before_norm``.
        window: tokens of prompt and completion together that are read.
        template: the text around them, see `templates.Layout`; ``bare`` for plain prompts that TRL continues as text.
        center: subtract the mean state first.
        dtype: of the model's weights.
        batch_tokens: tokens of a batch, padding included.

    Raises:
        ModelError: the model is missing, or has no chat template where ``chat`` is asked for.
        RecipeError: the model has no such layer.
    """

    __name__ = "stable_rank"

    def __init__(
        self,
        model: str,
        scope: Scope = "all",
        layer: Layer = -1,
        window: int = 512,
        template: Template = "chat",
        *,
        center: bool = False,
        dtype: Precision = "float32",
        batch_tokens: int = 4096,
    ) -> None:
        reading = SpectralReading(View(scope, layer, center), {self.__name__: "stable_rank"})
        layout = Layout(template, window)
        self.scorer = ModelPass(load_frozen(model, dtype), [reading], layout, batch_tokens)

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str | Sequence[Message]], **columns: Any
    ) -> list[float | None]:
        """One score a completion; whatever else TRL hands over is not read."""
        pairs = zip(prompts, completions, strict=True)
        table = self.scorer.score([Answer(prompt, completion_text(completion)) for prompt, completion in pairs])
        return [None if isnan(value) else value for value in table.values_NS[:, 0].tolist()]
