"""Log-probabilities of chosen tokens from hidden states, without the logits of a whole vocabulary.

Numerics: logits and their log-sum-exp in fp32 whatever the model's dtype (bf16 logits of size 16 are 1/8 apart, which
is as much as distillation has to say on an easy token). The vocabulary is walked in tiles, whose log-sum-exps are
merged, so memory is `TILE` numbers and a tile's rows of the head in fp32. The result depends on tiles by rounding
alone, about 1e-6.

Models that scale or cap their logits (Cohere, Granite, Gemma 2 and kin) say so in their configuration, which is read;
`check_head` compares with the model's own forward, so that one with a way of its own is refused.

Legend: M tokens, V vocabulary, D hidden size, W columns of a tile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stablerank.errors import ModelError

TILE = 2**24
"""Logits that exist at a time: 64 MB."""
AGREEMENT = 0.02
"""Largest difference from the model's own logits, relative to the largest: bf16 rounds by 0.004."""
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass(frozen=True)
class Head:
    """The output layer of a causal language model."""

    weight_VD: Tensor
    bias_V: Tensor | None
    finish: Callable[[Tensor], Tensor]
    """From the layer's product to the model's logits."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        """The head of ``model``; its tensors are shared with it."""
        layer = model.get_output_embeddings()
        return cls(layer.weight, getattr(layer, "bias", None), _finish(model.config.get_text_config()))

    def logits(self, hidden_MD: Tensor, columns: slice) -> Tensor:
        """``(M, W)`` fp32 logits of the tokens in ``columns``."""
        logits_MW = hidden_MD.float() @ self.weight_VD[columns].float().T
        if self.bias_V is not None:
            logits_MW += self.bias_V[columns].float()
        return self.finish(logits_MW)

    def logprobs(self, hidden_MD: Tensor, tokens_M: Tensor, temperature: float) -> Tensor:
        """``(M,)`` fp32: log-probability of each token after its hidden state, logits divided by ``temperature``."""
        chosen_M = torch.zeros(tokens_M.shape, device=hidden_MD.device)
        log_totals: list[Tensor] = []
        width = max(1, TILE // max(1, len(tokens_M)))
        for start in range(0, len(self.weight_VD), width):
            logits_MW = self.logits(hidden_MD, slice(start, start + width)) / temperature
            log_totals.append(logits_MW.logsumexp(1))
            column_M = tokens_M - start
            here_M = (column_M >= 0) & (column_M < logits_MW.shape[1])
            chosen_M[here_M] = logits_MW[here_M, column_M[here_M]]
        # Merged at once: one after the other, rounding errors would add up over tiles.
        return chosen_M - torch.stack(log_totals).logsumexp(0)


def check_head(model: PreTrainedModel, head: Head, name: str) -> None:
    """Compare on a few tokens with the model's own forward.

    Raises:
        ModelError: the model does something else with its logits.
    """
    ids_1L = torch.arange(min(8, len(head.weight_VD)), device=model.device)[None]
    with torch.no_grad():
        own_LV = model(input_ids=ids_1L, use_cache=False).logits[0].float()
        hidden_LD = model.base_model(input_ids=ids_1L, use_cache=False).last_hidden_state[0]
        difference = (head.logits(hidden_LD, slice(None)) - own_LV).abs().max() / own_LV.abs().max()
    if not difference <= AGREEMENT:
        raise ModelError(
            f"{name} ({type(model).__name__}) changes its logits in a way that its configuration does not tell "
            f"(difference {difference:.2g}, limit {AGREEMENT}); serve it with vLLM and use `server`."
        )


def _finish(config: Any) -> Callable[[Tensor], Tensor]:
    """What a model of this configuration does to the product of its head."""
    factors = [getattr(config, name) for name in _FACTORS if getattr(config, name, None) is not None]
    factor = factors[0] if factors else 1.0
    if getattr(config, "logits_scaling", None) is not None:
        factor = 1 / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)

    def finish(logits: Tensor) -> Tensor:
        scaled = logits * factor if factor != 1.0 else logits
        return scaled if cap is None else torch.tanh(scaled / cap) * cap

    return finish
