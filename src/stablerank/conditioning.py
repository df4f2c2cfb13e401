"""`stablerank condition`: the spectral condition of every block of a model on disk, on texts.

Legend: B texts of a micro-batch, T positions.

What crosses floors: `evaluation` finds the model, `tasks` reads texts, `probes` measure, `reports` print.

Contract: one next-token gradient over all the texts (of rows with prompt and completion, the completions alone carry
loss, all tokens count as activations), gathered in micro-batches, every token with the same weight; fp32, no dropout.
No weight is trained and none needs a gradient: what is held beside the model is one gradient a block. A verdict is
about full-weight steps from this point; an adapter, if there is one, is part of the model.

Source: probes/spectral_condition.py. Left out on purpose: the condition of an adapter's factors and of a preference or
policy loss, which a run measures on its own batch (`optimiser.route=condition`, `ConditionCallback`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from stablerank.errors import DataError
from stablerank.evaluation.subjects import Subject, subject
from stablerank.evaluation.text_loss import IGNORED
from stablerank.probes.spectral_condition import BlockCondition, record_condition
from stablerank.runs.strict_json import strict
from stablerank.tasks.named import named_rows

MICRO_BATCH = 8
Progress = Callable[[int, int, str], None]
"""``progress(texts done, texts in all, note)``."""


@dataclass(frozen=True)
class Condition:
    """A verdict a block, and what it was asked on."""

    model: str
    texts: int
    tokens: int
    loss: float
    """Mean over the tokens that carry it, nats."""
    blocks: tuple[BlockCondition, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not defined is null."""
        blocks = [{**asdict(block), "ratio": block.ratio, "is_strong": block.is_strong} for block in self.blocks]
        told = [{key: value for key, value in block.items() if key != "step"} for block in blocks]
        plain: dict[str, Any] = strict(
            {"model": self.model, "texts": self.texts, "tokens": self.tokens, "loss": self.loss, "blocks": told}
        )
        return plain


def condition(
    model: str,
    texts: str,
    *,
    columns: dict[str, str] | None = None,
    limit: int = 32,
    max_length: int = 512,
    head: bool = False,
    progress: Progress | None = None,
) -> Condition:
    """Measure a model.

    Args:
        model: ``zoo:NAME``, a model folder, a hub id, the folder of a PEFT adapter, or a finished run.
        texts: ``arithmetic``, or JSONL, JSON, CSV, Parquet, ``data:NAME`` or a hub id with a column ``text``.
        columns: our name to the file's: ``{"text": ...}``, or ``{"prompt": ..., "completion": ...}``.
        limit: the first rows only. The answer depends on the batch: ask with the size that you train with.
        max_length: tokens of a text that count, from its start.
        head: whether to ask of the output head too.
        progress: called as micro-batches finish.

    Raises:
        StablerankError: model or texts unusable.
    """
    if limit < 1 or max_length < 2:
        raise DataError(f"{limit} texts of {max_length} tokens leave nothing to predict: give 1 and 2 at least.")
    found = subject(model)
    rows = named_rows(texts, columns or {}, limit, "train")
    encoded = _encoded(found, rows, max_length)
    policy = found.load().eval().requires_grad_(False)
    counted = sum(int((labels[1:] != IGNORED).sum()) for _, labels in encoded)
    if not counted:
        raise DataError(f"No token of {texts} carries loss within {max_length} tokens: give longer texts or a limit.")
    loss = 0.0
    with record_condition(policy, head=head) as recorder:
        for start in range(0, len(encoded), MICRO_BATCH):
            ids_BT, mask_BT, labels_BT = _padded(encoded[start : start + MICRO_BATCH], policy.device)
            recorder.mask(mask_BT)
            share = (labels_BT[:, 1:] != IGNORED).sum() / counted
            part = policy(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss * share
            part.backward()
            loss += float(part.detach())
            if progress is not None:
                progress(min(start + MICRO_BATCH, len(encoded)), len(encoded), "")
        blocks = recorder.blocks(run=found.name, seed=0, step=0)
    return Condition(model, len(encoded), sum(len(ids) for ids, _ in encoded), loss, tuple(blocks))


def _encoded(found: Subject, rows: Sequence[dict[str, str]], max_length: int) -> list[tuple[Tensor, Tensor]]:
    """Ids and labels of each text, the end of the text included."""
    tokenizer = found.tokenizer
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def parts() -> Iterator[tuple[list[int], list[int]]]:
        for row in rows:
            prompt = tokenizer(row["prompt"]).input_ids if "prompt" in row else []
            rest = tokenizer(row.get("completion", row.get("text")), add_special_tokens="text" in row).input_ids
            yield prompt, rest + end

    longest = min(max_length, found.context or max_length)
    return [
        (torch.tensor((before + after)[:longest]), torch.tensor(([IGNORED] * len(before) + after)[:longest]))
        for before, after in parts()
    ]


def _padded(rows: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels, padded on the right."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids_BT = pad([ids for ids, _ in rows], batch_first=True)
    mask_BT = pad([torch.ones_like(ids) for ids, _ in rows], batch_first=True)
    labels_BT = pad([labels for _, labels in rows], batch_first=True, padding_value=IGNORED)
    return ids_BT.to(device), mask_BT.to(device), labels_BT.to(device)
