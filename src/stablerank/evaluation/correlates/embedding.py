"""Embeddings of sentences from any causal model: mean-pooled last hidden states, as unit vectors.

Legend: N texts, B texts of a batch, L tokens, D hidden size.

Our choice, since the source (arXiv 2512.02807, appendix F.3) uses a trained sentence encoder, all-MiniLM-L6-v2: every
text is read by itself, without a template, behind one start token (the tokenizer's, else its end token) whose state,
the attention sink, is left out; the states after the final norm of at most `CONTEXT` tokens are averaged and scaled to
length 1. Cosines of such vectors are all large and differ little; read their order and not their size.

Numerics: states in the model's dtype, the mean in fp64. What a text is batched with moves a cosine by rounding only.
A text without a token is embedded as the start token itself. Each different text is embedded once a call.

Left out on purpose: training an encoder; whitening, which would make a text's vector depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import ModelError
from stablerank.evaluation.correlates.reading import Vectors
from stablerank.evaluation.subjects import subject

CONTEXT = 256
"""Tokens of a text that are read."""
BATCH = 32


@dataclass(frozen=True)
class MeanPooled:
    """Texts to unit vectors ``(N, D)`` (module header)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embed texts, the longest first."""
        ids = {text: self._ids(text) for text in dict.fromkeys(texts)}
        order = sorted(ids, key=lambda text: -len(ids[text]))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        vectors = {text: row for batch in batches for text, row in self._embedded({t: ids[t] for t in batch}).items()}
        return np.array([vectors[text] for text in texts]).reshape(len(texts), self.model.config.hidden_size)

    def _ids(self, text: str) -> list[int]:
        content = self.tokenizer(text, add_special_tokens=False, truncation=True, max_length=CONTEXT)["input_ids"]
        return [self._start, *content]

    @property
    def _start(self) -> int:
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return next(token for token in known if token is not None)

    @torch.no_grad()
    def _embedded(self, ids: dict[str, list[int]]) -> dict[str, Vectors]:
        longest = max(map(len, ids.values()))
        rows_BL = torch.tensor([row + [self._start] * (longest - len(row)) for row in ids.values()])
        mask_BL = torch.arange(longest) < torch.tensor([[len(row)] for row in ids.values()])
        device = self.model.device
        states_BLD = self.model.base_model(
            input_ids=rows_BL.to(device), attention_mask=mask_BL.long().to(device), use_cache=False
        ).last_hidden_state
        return dict(zip(ids, _pooled(states_BLD, mask_BL.to(device)), strict=True))


def mean_pooled(model: str, dtype: str = "float32") -> MeanPooled:
    """The embedder of a model by name: ``zoo:NAME``, a folder or a hub id.

    Raises:
        StablerankError: it cannot be loaded, or its tokenizer has neither a start nor an end token.
    """
    found = subject(model, dtype=dtype)
    tokenizer = found.tokenizer
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {model} has neither a start nor an end token; embed with another model.")
    return MeanPooled(found.load().eval(), tokenizer)


def _pooled(states_BLD: Tensor, mask_BL: Tensor) -> Vectors:
    content_BL = mask_BL.clone()
    content_BL[:, 0] &= mask_BL.sum(1) == 1
    weights_BL = content_BL.double()
    means_BD = torch.einsum("bl,bld->bd", weights_BL, states_BLD.double().masked_fill(~mask_BL[..., None], 0.0))
    unit_BD = torch.nn.functional.normalize(means_BD, dim=1)  # the division by the count would cancel
    return np.asarray(unit_BD.cpu().numpy(), dtype=np.float64)
