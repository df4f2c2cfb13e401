"""The loss of the same texts under several models, such as those that a run does not train on: `TextProbe`.

Contract: texts are those of a language-modelling ``data`` section, whatever the run's own objective; of a prompt with a
completion the completion counts, of a text all but its first token. The loss is in nats a token over all counted
tokens, of fp32 logits, with its interval by text. Texts are cut at ``longest`` tokens and padded on the right.

Left out on purpose: the texts' training rows; what is asked are held-out ones, so that a probe may use the data of
another run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from stablerank.errors import DataError
from stablerank.evaluation.losses import text_loss
from stablerank.evaluation.statistics import Interval
from stablerank.evaluation.text_loss import IGNORED, example_logprobs

Example = tuple[list[int], int]
"""Token ids, and how many of them are only read."""


class TextProbe:
    """Reads the same texts every time it is asked."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Mapping[str, Any]],
        longest: int,
        batch_size: int,
        *,
        named: str = "evaluation.forgetting",
        remedy: str = "trainer.max_length",
    ) -> None:
        """``rows`` have ``text``, or ``prompt`` and ``completion``, as text or as messages.

        ``named`` and ``remedy`` are what the texts and the window are called where they were asked for.

        Raises:
            DataError: no text has a token left to predict.
        """
        self._examples = [_encoded(tokenizer, row, longest) for row in rows]
        self._batch_size = batch_size
        if not any(len(ids) > max(read, 1) for ids, read in self._examples):
            raise DataError(
                f"none of {len(rows)} texts of {named} has a token to predict within {longest}; give longer texts, or "
                f"raise {remedy}."
            )

    def loss(self, model: nn.Module) -> Interval:
        """In nats a token."""
        return text_loss(self.rows(model))["loss"]

    def rows(self, model: nn.Module) -> list[dict[str, float]]:
        """``nll`` and ``tokens`` of each text, as `stablerank.evaluation.losses` reads them."""
        found = example_logprobs(model, self._batches())
        return [{"nll": -one.logprob, "tokens": one.tokens} for one in found]

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self._examples), self._batch_size):
            yield _padded(self._examples[start : start + self._batch_size])


def _encoded(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], longest: int) -> Example:
    if "text" in row:
        return tokenizer(row["text"]).input_ids[:longest], 0
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        asked = tokenizer(prompt).input_ids
        answer = tokenizer(completion + (tokenizer.eos_token or ""), add_special_tokens=False).input_ids
        return [*asked, *answer][:longest], len(asked)
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*prompt, *completion], return_dict=True)["input_ids"]
    return whole[:longest], len(asked)


def _padded(examples: Sequence[Example]) -> dict[str, Tensor]:
    width = max(len(ids) for ids, _ in examples)
    ids_NL = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in examples])
    mask_NL = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in examples])
    labels_NL = ids_NL.masked_fill(mask_NL == 0, IGNORED)
    for labels_L, (_, read) in zip(labels_NL, examples, strict=True):
        labels_L[:read] = IGNORED
    return {"input_ids": ids_NL, "attention_mask": mask_NL, "labels": labels_NL}
