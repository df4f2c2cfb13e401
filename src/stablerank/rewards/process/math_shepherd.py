r"""Process reward models of the Math-Shepherd convention: a tag after each step, answered by a sign.

Legend: B rows of a batch, L tokens of its longest row, U positions of tags, V vocabulary.

Input: ``question + " " + "\n".join(f"{step} ки" for step in steps)``. At each tag the model predicts a sign, ``+`` or
``-``, in place of the next token; P(right) is the softmax over the two. A tag is found by the character offsets of the
encoding, never by its id: a policy that writes ``ки`` into its own steps does not move any mark. Where a tokenizer
splits the tag, its last token counts. A sign is the token that stands for it where the tag would stand (``▁+``, ``Ġ+``
or ``+``).

Source: Wang et al., Math-Shepherd (arXiv 2312.08935), and the card of peiyi9979/math-shepherd-mistral-7b-prm.

Left out on purpose: other tags and signs, and chat templates around the solution.
"""

from bisect import bisect_left
from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import RewardError
from stablerank.rewards.process.scoring import Limits, Marked, MarkScorer

TAG, GOOD, BAD = "ки", "+", "-"
PROBE = ("1+1=?", "1+1=2")
LEAST_SIGN_MASS = 0.5
"""Of the probability at a tag, what a model trained on tags gives to the two signs: all but a few per cent."""


class MathShepherd(MarkScorer):
    """Scores steps with a causal model of the convention.

    Raises:
        RewardError: the tokenizer gives no character offsets, or cannot spell tag and signs; or the model does not
            answer the tag with a sign, so that it was never trained on tags.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
        super().__init__(model, tokenizer, limits)
        if not tokenizer.is_fast:
            raise RewardError(
                f"the tokenizer of the process reward model ({type(tokenizer).__name__}) gives no character offsets, "
                "by which tags are found; save it again as a fast tokenizer (tokenizer.json)"
            )
        self._signs = [self._sign(sign) for sign in (GOOD, BAD)]
        self._keeps_logits = "logits_to_keep" in signature(model.forward).parameters
        self._check()

    def layout(self, question: str, steps: Sequence[str]) -> Marked:
        """The input of one solution; a mark is the last token of a tag."""
        text, tag_ends = f"{question} ", []
        for index, step in enumerate(steps):
            text += f"{step} {TAG}" if index == 0 else f"\n{step} {TAG}"
            tag_ends.append(len(text))
        encoded = self._tokenizer(text, return_offsets_mapping=True, verbose=False)  # lengths are our business
        return Marked(list(encoded["input_ids"]), _tokens_at(tag_ends, encoded["offset_mapping"]))

    def _read(self, ids_BL: Tensor, mask_BL: Tensor, columns_U: Tensor) -> Tensor:
        return self._logits(ids_BL, mask_BL, columns_U)[..., self._signs].float().softmax(-1)[..., 0]

    def _logits(self, ids_BL: Tensor, mask_BL: Tensor, columns_U: Tensor) -> Tensor:
        """``(B, U, V)`` in the model's dtype."""
        kept = {"logits_to_keep": columns_U} if self._keeps_logits else {}
        logits: Tensor = self._model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, **kept).logits
        return logits if kept else logits[:, columns_U]

    def _sign(self, sign: str) -> int:
        """The token of a sign in the place of a tag."""
        question, step = PROBE
        text = f"{question} {step} {sign}"
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        (mark,) = _tokens_at([len(text)], encoded["offset_mapping"])
        token: int = encoded["input_ids"][mark]
        return token

    def _check(self) -> None:
        unknown = self._tokenizer.unk_token_id
        probe = self.layout(PROBE[0], [PROBE[1]])
        if self._signs[0] == self._signs[1] or unknown in (*self._signs, probe.ids[probe.marks[0]]):
            raise RewardError(
                f"the tokenizer of the process reward model has no token for the tag {TAG!r} or the signs {GOOD!r} and "
                f"{BAD!r} of the Math-Shepherd convention; choose a model trained on them, or another reward.convention"
            )
        ids_BL = torch.tensor([probe.ids], device=self._model.device)
        with torch.no_grad():
            logits_BUV = self._logits(ids_BL, torch.ones_like(ids_BL), ids_BL.new_tensor(probe.marks))
        mass = float(logits_BUV.float().softmax(-1)[..., self._signs].sum())
        if not mass >= LEAST_SIGN_MASS:
            raise RewardError(
                f"the process reward model gives {mass:.1%} of its probability to {GOOD!r} and {BAD!r} after the tag "
                f"{TAG!r}, where {LEAST_SIGN_MASS:.0%} is the least that one trained on tags gives; choose a model of "
                "the Math-Shepherd convention, or another reward.convention"
            )


def _tokens_at(ends: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each end of a stretch of text the last token that holds the character before it."""
    holders = [at for at, (start, stop) in enumerate(offsets) if start < stop]  # special tokens hold none
    starts = [offsets[at][0] for at in holders]
    return [holders[bisect_left(starts, end) - 1] for end in ends]
