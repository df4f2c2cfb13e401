"""Answers that become one row each, rows of tokens that become batches for a model, and numbers back in a table.

Legend: N rows, S scores of a row, B rows of a batch, L tokens of its longest row.

Contract: each different row is read once, so that equal texts have equal scores to the last bit and a tie is a tie;
which rows meet in a batch depends on the set of rows alone, not on their order.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.scorers.answers import Answer, Scores, unscored
from stablerank.rewards.scorers.templates import readable

Row = tuple[int, ...]
"""The tokens of one input."""
Input = TypeVar("Input")


def distinct_batches(rows: Iterable[Row], batch_tokens: int, room: int = 0) -> Iterator[list[Row]]:
    """As many rows a batch as ``batch_tokens`` allows, padding and ``room`` tokens a row included; one at least."""
    batch: list[Row] = []
    # The longest first: memory shows early.
    for row in sorted(set(rows), key=lambda row: (-len(row), row)):
        if batch and (len(batch) + 1) * (len(batch[0]) + room) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(batch: Sequence[Row], pad: int, side: Literal["left", "right"] = "right") -> tuple[Tensor, Tensor]:
    """Ids and mask ``(B, L)``, int64."""
    ids = [torch.tensor(row) for row in batch]
    ids_BL = pad_sequence(ids, batch_first=True, padding_value=pad, padding_side=side)
    mask_BL = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)
    return ids_BL, mask_BL


def table_of(
    names: tuple[str, ...],
    answers: Sequence[Answer],
    tokenizer: PreTrainedTokenizerBase,
    row_of: Callable[[int], Input | None],
    read: Callable[[Sequence[Input]], NDArray[np.float64]],
) -> Scores:
    """Scores of answers by rows.

    Args:
        names: of S scores.
        answers: those that can be read are asked for.
        tokenizer: counts the tokens of a response.
        row_of: the row of the answer at an index, None where the model cannot hold it (``outside_window``).
        read: ``(N, S)`` scores of N rows; a row with a number that is not finite is ``undefined``.
    """
    table = unscored(answers, names)
    statuses = [readable(answer) for answer in answers]
    rows: dict[int, Input] = {}
    for at in (at for at, status in enumerate(statuses) if status == "scored"):
        if (row := row_of(at)) is None:
            statuses[at] = "outside_window"
        else:
            rows[at], table.tokens_N[at] = row, len(text_ids(tokenizer, answers[at].response))
    if rows:
        for at, values in zip(rows, read(list(rows.values())).tolist(), strict=True):
            table.values_NS[at] = values
            statuses[at] = "scored" if all(map(math.isfinite, values)) else "undefined"
    return replace(table, statuses=tuple(statuses))


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text by itself, without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
