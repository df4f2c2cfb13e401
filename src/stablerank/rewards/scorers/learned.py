"""A learned reward model: a sequence classifier with one output, whose output is the score.

The text is the model's own: prompt and response through its tokenizer's chat template, whole, as such models are
trained; without a template prompt, response and end token, as TRL's ``RewardTrainer`` puts them together.

Traps that are met here:

- Decoder models read their score at the last token that is not the *configuration's* pad token. Padding with another
  one (the tokenizer's, or an end token put in its place) moves that position (allenai/reward-bench#115). We pad with
  the configuration's own, on the right; a model that names none, or one outside its vocabulary, is run one row at a
  time, which is slower and exact.
- Scores that change with the batch (allenai/reward-bench#137): a score is that of the text alone, within `BOUND` of the
  scale of the scores in fp32. In bf16 the states themselves move by 1e-2.
- Head weights that are missing would be drawn at random; such a folder is refused.

A text longer than the model's context is not cut, which would cut the place of the score: NaN, ``outside_window``.

Left out on purpose: several outputs, models that read prompt and response as two segments, adapters (merge them),
``trust_remote_code``.
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray
from pydantic import Field
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stablerank.errors import DataError, ModelError
from stablerank.rewards.scorers.answers import Answer, Scores
from stablerank.rewards.scorers.base_spec import ScorerSpec, Setting
from stablerank.rewards.scorers.frozen_model import Precision
from stablerank.rewards.scorers.rows import Row, distinct_batches, padded, table_of
from stablerank.rewards.scorers.templates import Encoder, Layout
from stablerank.zoo.resolve import resolve

BOUND = 1e-5
"""Largest change of a score by its batch in fp32, relative to the largest score or 1; tested."""


class LearnedReward:
    """A scorer: the output of a sequence classifier, frozen here (module header).

    Raises:
        ModelError: the model has another number of outputs than one.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, batch_tokens: int = 4096
    ) -> None:
        self.names: tuple[str, ...] = (name,)
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        config = model.config.get_text_config()
        if model.config.num_labels != 1:
            raise ModelError(
                f"{name} has {model.config.num_labels} outputs, where a reward model has 1; give a sequence classifier "
                "that was trained with num_labels=1."
            )
        self._context = getattr(config, "max_position_embeddings", None) or sys.maxsize
        pad = config.pad_token_id
        self._pad = pad if pad is not None and 0 <= pad < model.get_input_embeddings().num_embeddings else None
        self._batch_tokens = 0 if self._pad is None else batch_tokens
        self._encoder = None if tokenizer.chat_template else Encoder(tokenizer, _PLAIN, name)

    def score(self, answers: Sequence[Answer]) -> Scores:
        """See `Scorer.score`. Raises DataError for turns that the chat template refuses."""
        return table_of(self.names, answers, self._tokenizer, lambda at: self._row(answers[at]), self._rewards)

    def _row(self, answer: Answer) -> Row | None:
        ids = self._chat_ids(answer) if self._encoder is None else self._encoder(answer).ids
        return tuple(ids) if len(ids) <= self._context else None

    def _chat_ids(self, answer: Answer) -> list[int]:
        prompt = [{"role": "user", "content": answer.prompt}] if isinstance(answer.prompt, str) else answer.prompt
        turns = [*prompt, {"role": "assistant", "content": answer.response}]
        try:
            return list(self._tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])
        except TemplateError as error:
            roles = ", ".join(str(turn["role"]) for turn in turns)
            raise DataError(
                f"the chat template of {self.names[0]} refuses the turns {roles} ({' '.join(str(error).split())}); "
                "drop such rows, or choose another reward model."
            ) from error

    @torch.no_grad()
    def _rewards(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        found: dict[Row, float] = {}
        for batch in distinct_batches(rows, self._batch_tokens):
            ids_BL, mask_BL = (tensor.to(self._model.device) for tensor in padded(batch, self._pad or 0))
            rewards_B = self._model(input_ids=ids_BL, attention_mask=mask_BL).logits[:, 0]
            found |= dict(zip(batch, rewards_B.tolist(), strict=True))
        return np.array([[found[row]] for row in rows])


_PLAIN = Layout(template="bare", window=sys.maxsize)


def load_reward_model(path: str, name: str, dtype: Precision = "float32", batch_tokens: int = 4096) -> LearnedReward:
    """The reward model ``zoo:NAME``, of a folder or of a hub id, on the GPU if there is one.

    Raises:
        ModelError: nothing is there, it cannot be loaded, or it lacks head, tokenizer or the one output.
    """
    place = resolve(path)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            place, dtype=getattr(torch, dtype), output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # transformers raises many unrelated types for one bad folder
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the reward model {path!r} cannot be loaded ({type(error).__name__}: {reason}); give a folder that "
            "save_pretrained wrote of a sequence classifier."
        ) from error
    _refuse_partial(report, tokenizer, path)
    return LearnedReward(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, name, batch_tokens)


def _refuse_partial(report: dict[str, Any], tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the reward model {path!r} lacks {len(missing)} weights of a sequence classifier ({missing[0]}), which "
            "would be random; give the folder of a trained reward model."
        )
    # Without its files, transformers makes one that knows special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"the reward model {path!r} holds no tokenizer; write it there with save_pretrained.")


class RewardModelSpec(ScorerSpec):
    """The output of a learned reward model."""

    kind: Literal["reward_model"]
    path: str = Field(min_length=1, description="the reward model: `zoo:NAME`, a folder or a hub id")

    def build(self, setting: Setting, name: str) -> LearnedReward:
        """The scorer; loads the reward model, whatever the shared model is."""
        return load_reward_model(self.path, name, setting.dtype, setting.batch_tokens)
