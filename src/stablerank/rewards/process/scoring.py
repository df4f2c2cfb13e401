"""What every process reward model shares: marked inputs in, one probability a step out.

Legend: B rows of a batch, L tokens of its longest row, U positions at which any row of the batch has a mark.

Contract: an input is cut after the last step that fits ``max_tokens`` as a whole; the steps behind it get None. Rows
are batched by length and padded on the right under a mask, so the batch size changes scores by rounding only.

Numerics: softmax in fp32, whatever the model's dtype; no ambient autocast.

Left out on purpose: a cache of scores, and windows that move over an input that is too long.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import RewardError

Score = float | None
"""P(step right), or None where the input was too long for the model."""

Read = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Ids ``(B, L)``, mask ``(B, L)`` and positions ``(U,)`` to P(right) ``(B, U)``, fp32."""


class StepScorer(Protocol):
    """A process reward model, or what does its work."""

    cost: str
    """The forward passes that a batch of scores takes, in words; empty for none."""

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[list[Score]]:
        """P(step right) of every step of every solution, in order; each list as long as that of its steps."""


@dataclass(frozen=True)
class Marked:
    """One input of a model: its ids, and for each step the position at which the model judges it."""

    ids: list[int]
    marks: list[int]


@dataclass(frozen=True)
class Limits:
    """Rows a batch, and tokens an input."""

    batch_size: int
    max_tokens: float


def limits(model: PreTrainedModel, batch_size: int, max_tokens: int | None) -> Limits:
    """Limits of the model. Raises RewardError if ``max_tokens`` is beyond its context."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    if max_tokens is not None and max_tokens > context:
        raise RewardError(
            f"reward.max_tokens is {max_tokens}, but the process reward model reads {context} tokens; leave it out, or "
            "set it to that at most"
        )
    return Limits(batch_size, max_tokens or context)


class MarkScorer(ABC):
    """A `StepScorer` that judges steps at marked positions of one input a solution."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
        self._model, self._tokenizer, self._limits = model, tokenizer, limits
        self.cost = f"one more forward a batch, of {model.num_parameters():,} parameters over question and steps"

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[list[Score]]:
        """See `StepScorer.score`."""
        inputs = [self.layout(question, parts) for question, parts in zip(questions, steps, strict=True)]
        return score_marked(inputs, self._read, self._limits, self._model.device)

    @abstractmethod
    def layout(self, question: str, steps: Sequence[str]) -> Marked:
        """The input of one solution, a mark for each step."""

    @abstractmethod
    def _read(self, ids_BL: Tensor, mask_BL: Tensor, columns_U: Tensor) -> Tensor:
        """P(right) ``(B, U)``, fp32, at the positions ``columns_U``."""


def score_marked(inputs: Sequence[Marked], read: Read, limits: Limits, device: torch.device) -> list[list[Score]]:
    """One score a mark, in the order of ``inputs``."""
    scores: list[list[Score]] = [[None] * len(row.marks) for row in inputs]
    fitting = [_fitting(row, limits.max_tokens) for row in inputs]
    for batch in _batches(fitting, limits.batch_size):
        rows = [fitting[at] for at in batch]
        ids_BL, mask_BL = (padded.to(device) for padded in _padded([row.ids for row in rows]))
        columns_U = torch.tensor(sorted({mark for row in rows for mark in row.marks}), device=device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            right_BU = read(ids_BL, mask_BL, columns_U).cpu()
        column_of = {column: at for at, column in enumerate(columns_U.tolist())}
        for at, row, right_U in zip(batch, rows, right_BU.tolist(), strict=True):
            scores[at][: len(row.marks)] = [right_U[column_of[mark]] for mark in row.marks]
    return scores


def _fitting(row: Marked, max_tokens: float) -> Marked:
    """The input up to the last mark within the limit."""
    marks = [mark for mark in row.marks if mark < max_tokens]
    return Marked(row.ids[: marks[-1] + 1] if marks else [], marks)


def _batches(rows: Sequence[Marked], size: int) -> Iterator[list[int]]:
    """Indices of rows with marks, the longest first, so that a batch that does not fit in memory fails at once."""
    order = sorted((at for at, row in enumerate(rows) if row.marks), key=lambda at: -len(rows[at].ids))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask ``(B, L)``, padded on the right with id 0, which the mask hides."""
    width = max(map(len, rows))
    ids_BL = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids_BL, mask_BL
