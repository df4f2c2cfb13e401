"""How far the policy has moved from what it was: KL(untouched || policy) on fixed task texts, in nats a token.

Legend: B texts, T tokens of each, V vocabulary, D hidden size.

Contract: the mean over all positions of the exact divergence of the two next-token distributions, over the whole
vocabulary, in the forward direction that predicts forgetting (arXiv 2509.04259; METHODS.md 9.11). The texts are those
of the task, not samples of either model; they are cut to one length (`equal_length`), so that no padding enters.
Logits in fp32, sums in fp64. It is never negative but for rounding, some 1e-7 a token.

The untouched model is kept as its last states and a copy of its head, ``B T D + V D`` numbers, not as a model.

Left out on purpose: the reverse direction, which GRPO logs as its KL term.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from stablerank.evaluation.statistics import Interval, ratio_interval
from stablerank.probes.effects import equal_length, output_states
from stablerank.rewards.distillation.head import Head


class Drift:
    """The distance from the model it is made with. Make it before training begins."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> None:
        """``texts`` are token ids. Raises DataError where none has a token."""
        self.ids_BT = equal_length(texts).to(model.device)
        head = Head.of(model)
        bias_V = None if head.bias_V is None else head.bias_V.detach().clone()
        self._head = replace(head, weight_VD=head.weight_VD.detach().clone(), bias_V=bias_V)
        self._before_BTD = output_states(model, self.ids_BT)[-1].reshape(*self.ids_BT.shape, -1)

    @torch.no_grad()
    def kl(self, model: nn.Module) -> Interval:
        """With its 95 % interval by text."""
        was_training = model.training
        model.eval()
        try:
            sums = [self._of_text(model, row) for row in range(len(self.ids_BT))]
        finally:
            model.train(was_training)
        return ratio_interval(sums, [self.ids_BT.shape[1]] * len(sums))

    def _of_text(self, model: nn.Module, row: int) -> float:
        """Sum over the positions of one text, so that two ``T x V`` tables exist at a time."""
        new_TV = model(input_ids=self.ids_BT[row : row + 1], use_cache=False).logits[0].float().log_softmax(-1)
        old_TV = self._head.logits(self._before_BTD[row], slice(None)).log_softmax(-1)
        return float((old_TV.exp() * (old_TV - new_TV)).sum(-1).double().sum())
