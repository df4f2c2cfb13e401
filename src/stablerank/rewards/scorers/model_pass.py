"""One pass of a frozen model over many answers, and everything that readings ask of it.

Legend: N answers, S readings, B rows of a batch, L positions of a batch, D hidden size, M tokens that are predicted.

Contract: every text goes through the model once, whatever the number of readings and of answers that read alike, so
that equal texts have equal scores to the last bit and a tie is a tie. Rows are sorted by length, the longest first so
that a batch that does not fit in memory fails at once; a batch holds `batch_tokens` tokens, padding included, or one
row. What nobody reads is not kept: a layer below the last through a hook on its block, logits of the
predicted tokens alone and `TOKENS` at a time, never ``B x L x V``.

What padding, batch and dtype move: a reading is taken from each row's own tokens in fp64 (states) or fp32 (logits), so
a score depends on its neighbours only by what they move in the states, the rounding of the model's dtype. `BOUNDS` are
tested on the embedded student; on SmolLM2 we saw 1e-6 in fp32, and 1e-2 in bf16 by the batch and 2e-2 by the dtype.

Layers: ``k`` is ``hidden_states[k]`` of transformers, 0 the embeddings; -1, the default, is after the final norm, and
``before_norm`` the same states ahead of it.

Statuses: ``outside_window`` where no token of the response is read; ``undefined`` where a number of the row is not
finite, which leaves the other numbers of the row alone.

Left out on purpose: quantised models, devices beyond the model's own, caches of states.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from stablerank.errors import ModelError, RecipeError
from stablerank.rewards.distillation.head import Head, check_head
from stablerank.rewards.intrinsic import TOKENS
from stablerank.rewards.scorers.answers import Answer, Scores, unscored
from stablerank.rewards.scorers.frozen_model import FrozenModel, Precision
from stablerank.rewards.scorers.templates import DEFAULT_LAYOUT, Encoder, Layout, Side, Tokens, readable

Layer = int | Literal["before_norm"]

BOUNDS: Mapping[Precision, float] = {"float32": 1e-4, "bfloat16": 0.05}
"""Relative change of a score by padding side, batch and chunks, for a dtype of the model; in bfloat16 also by the dtype
itself. Without ``condition_number``, whose smallest value is noise in bfloat16, and ``pca95``, a count, which jumps."""


@dataclass(frozen=True)
class Chunk:
    """What one batch left, on the model's device."""

    states: Mapping[Layer, Tensor]
    """``(B, L, D)``, the layers that were asked for, in the model's dtype."""
    text_BL: Tensor
    response_BL: Tensor
    predicted: "Predicted | None"


@dataclass(frozen=True)
class Predicted:
    """The response's tokens that have a token before them, and what the model said there."""

    rows_M: Tensor
    """The row of each."""
    ids_M: Tensor
    hidden_MD: Tensor
    logits: Callable[[Tensor], Tensor]
    """fp32 ``(..., V)`` of states ``(..., D)``."""

    def over_logits(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``measure(logits_KV, ids_K)`` of all M tokens, `TOKENS` of them at a time: fp32 ``(M,)``."""
        parts = zip(torch.split(self.hidden_MD, TOKENS), torch.split(self.ids_M, TOKENS), strict=True)
        return torch.cat([measure(self.logits(hidden_KD), ids_K) for hidden_KD, ids_K in parts])


class Reading(Protocol):
    """Numbers that a pass takes of each batch."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its numbers, in order."""

    @property
    def layers(self) -> frozenset[Layer]:
        """Whose states it reads."""

    @property
    def predicts(self) -> bool:
        """Whether it reads what the model says of the response's tokens."""

    def __call__(self, chunk: Chunk) -> NDArray[np.float64]:
        """``(B, names)``; NaN where a number does not exist."""


class ModelPass:
    """A `Scorer`: readings of one frozen model over answers in one layout.

    Raises:
        ModelError: the model lacks a chat template, offsets or a head that readings can follow.
        RecipeError: a reading asks for a layer that the model lacks.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        readings: Sequence[Reading],
        layout: Layout = DEFAULT_LAYOUT,
        batch_tokens: int = 4096,
        padding: Side = "right",
    ) -> None:
        self.names = tuple(name for reading in readings for name in reading.names)
        self.encode = Encoder(frozen.tokenizer, layout, frozen.name, frozen.context)
        self.frozen, self._readings, self._batch_tokens, self._padding = frozen, readings, batch_tokens, padding
        self._layers = frozenset(layer for reading in readings for layer in reading.layers)
        self._predicts = any(reading.predicts for reading in readings)
        _refuse_unknown(self._layers, frozen.depth, frozen.name)

    def score(self, answers: Sequence[Answer]) -> Scores:
        """See `Scorer.score`."""
        table = unscored(answers, self.names)
        statuses = [readable(answer) for answer in answers]
        places = [at for at, status in enumerate(statuses) if status == "scored"]
        rows = dict(zip(places, self.encode.all([answers[at] for at in places]), strict=True))
        found = self.read({tokens for tokens in rows.values() if any(tokens.response)})
        for at, tokens in rows.items():
            table.tokens_N[at] = sum(tokens.response)
            if tokens not in found:
                statuses[at] = "outside_window"
                continue
            is_number_S = np.isfinite(found[tokens])
            table.values_NS[at] = np.where(is_number_S, found[tokens], np.nan)
            statuses[at] = "scored" if is_number_S.all() else "undefined"
        return replace(table, statuses=tuple(statuses))

    @torch.no_grad()
    def read(self, rows: Collection[Tokens]) -> dict[Tokens, NDArray[np.float64]]:
        """``(S,)`` numbers of each text; which texts meet in a batch depends on their set alone."""
        found: dict[Tokens, NDArray[np.float64]] = {}
        for batch in _batches(rows, self._batch_tokens):
            chunk = self.chunk(batch)
            values_BS = np.concatenate([reading(chunk) for reading in self._readings], axis=1)
            found |= dict(zip(batch, values_BS, strict=True))
        return found

    @torch.no_grad()
    def chunk(self, rows: Sequence[Tokens]) -> Chunk:
        """Run the model over a batch."""
        device = self.frozen.model.device
        ids_BL, text_BL, response_BL = (part.to(device) for part in _padded(rows, self._padding))
        # Padded on the left, a row's positions must still count from its first token.
        positions_BL = (text_BL.long().cumsum(1) - 1).clamp(min=0)
        positions = {"position_ids": positions_BL} if self._padding == "left" else {}
        with ExitStack() as hooks, torch.autocast(device.type, enabled=False):
            states = {layer: self._hooked(layer, hooks) for layer in self._layers if not self._is_last(layer)}
            last_BLD = self._backbone(
                input_ids=ids_BL, attention_mask=text_BL.long(), use_cache=False, **positions
            ).last_hidden_state
        # A block may be on a device of its own.
        found: dict[Layer, Tensor] = {layer: seen[0].to(device) for layer, seen in states.items()}
        found |= {layer: last_BLD for layer in self._layers if self._is_last(layer)}
        predicted = self._predicted(ids_BL, text_BL, response_BL, last_BLD) if self._predicts else None
        return Chunk(found, text_BL, response_BL, predicted)

    def _predicted(self, ids_BL: Tensor, text_BL: Tensor, response_BL: Tensor, last_BLD: Tensor) -> Predicted:
        """The state that predicts a token stands one place before it."""
        predicted_BL = response_BL[:, 1:] & text_BL[:, :-1]
        rows_M = predicted_BL.nonzero()[:, 0]
        head = self._head
        return Predicted(
            rows_M, ids_BL[:, 1:][predicted_BL], last_BLD[:, :-1][predicted_BL], lambda h: head.logits(h, slice(None))
        )

    @cached_property
    def _head(self) -> Head:
        """The output layer in fp32, checked against the model's own."""
        head = Head.of(self.frozen.model)
        check_head(self.frozen.model, head, self.frozen.name)
        return replace(head, weight_VD=head.weight_VD.float())

    @property
    def _backbone(self) -> nn.Module:
        backbone: nn.Module = self.frozen.model.base_model
        return backbone

    def _is_last(self, layer: Layer) -> bool:
        return layer in (-1, self.frozen.depth)

    def _hooked(self, layer: Layer, hooks: ExitStack) -> list[Tensor]:
        """A list that holds the states of a layer once the model has run."""
        depth, seen = self.frozen.depth, list[Tensor]()
        blocks = _blocks(self.frozen.model, depth)
        index = depth if layer == "before_norm" else layer % (depth + 1)
        if index == 0:
            handle = blocks[0].register_forward_pre_hook(lambda _, a, k: seen.append(_first(a, k)), with_kwargs=True)
        else:
            handle = blocks[index - 1].register_forward_hook(lambda _, a, output: seen.append(_first(output)))
        hooks.callback(handle.remove)
        return seen


def _first(values: Any, named: Mapping[str, Any] | None = None) -> Tensor:
    """The states among what a block takes or gives."""
    if isinstance(values, Tensor):
        return values
    return values[0] if values else (named or {})["hidden_states"]


def _blocks(model: PreTrainedModel, depth: int) -> nn.ModuleList:
    """The list of the model's blocks: the first that is as long as the model is deep."""
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise ModelError(f"{type(model).__name__} shows no list of its {depth} blocks; read layer -1 instead.")
    return lists[0]


def _refuse_unknown(layers: frozenset[Layer], depth: int, name: str) -> None:
    for layer in layers:
        if isinstance(layer, int) and not -depth - 1 <= layer <= depth:
            raise RecipeError(
                f"layer={layer} is not among the {depth + 1} layers of {name}; choose {-depth - 1} to {depth}, or "
                "before_norm."
            )


def _batches(rows: Collection[Tokens], batch_tokens: int) -> Iterator[list[Tokens]]:
    """Rows that go through the model together, the longest first."""
    batch: list[Tokens] = []
    for row in sorted(rows, key=lambda row: (-len(row.ids), row.ids, row.response)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(rows: Sequence[Tokens], side: Side) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask of the text and mask of the response, ``(B, L)``; padded with id 0, which the mask hides."""
    width = max(len(row.ids) for row in rows)
    ids_BL = np.zeros((len(rows), width), dtype=np.int64)
    text_BL, response_BL = np.zeros((2, len(rows), width), dtype=bool)
    for at, row in enumerate(rows):  # numpy writes short rows much faster than torch
        here = slice(len(row.ids)) if side == "right" else slice(width - len(row.ids), None)
        ids_BL[at, here], text_BL[at, here], response_BL[at, here] = row.ids, True, row.response
    return torch.from_numpy(ids_BL), torch.from_numpy(text_BL), torch.from_numpy(response_BL)
