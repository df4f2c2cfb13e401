"""What training did to a model's answers: the change of every layer's output on fixed texts, and its stable rank.

Legend: B texts, T tokens of each, N = B T, D hidden size, k layers.

Contract: ``Delta H_k = H_k(policy) - H_k(untouched)`` over all N tokens of B texts of exactly T tokens, so that neither
padding nor length enters (METHODS.md 8.8). It exists for every way of training: BitFit, whose update is vectors and has
no spectrum, full fine-tuning and adapters are read by the same number on the same texts. ``H_k`` is the output of block
k as transformers gives it in ``hidden_states``, the last one after the final norm. Rows of kind ``effect``, named by
block: ``stable_rank`` of Delta H_k, with the interval of probes/activations.py and a Gaussian (N, D) as null, and
``relative_norm = ||Delta H_k||_F / ||H_k||_F``. Uncentred: a shift that all tokens share has rank one and is seen.

Before the first update Delta H is zero, or for adapters that split the weight (PiSSA and kin) rounding; a change no
larger than rounding of the states, ``FLOOR`` of their norm, is ``zero`` and has no rank.

The model is put into evaluation mode and back; gradients and random states are untouched.

Cost: one forward pass of N tokens, 2 N D^2 operations and one ``eigvalsh`` of D a layer; kept between measurements:
``k N D`` numbers in the model's dtype.

Left out on purpose: texts of unequal length; position by position changes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stablerank.errors import DataError
from stablerank.probes.activations import gram_stable_rank
from stablerank.probes.evaluate import estimated
from stablerank.probes.rows import Moment, geometry_row
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.exact import Estimate, undefined
from stablerank.spectral.nulls import NO_NULL, dense_null

FLOOR = 1e-5
"""Relative change of fp32 states that is still rounding; in half precision states move by steps far above it."""
TEXTS, LONGEST = 32, 128


class EffectPanel:
    """The untouched model's states on fixed texts. Make it before training begins."""

    def __init__(self, model: nn.Module, texts: Sequence[Sequence[int]]) -> None:
        """``texts`` are token ids, cut to what the `TEXTS`th longest of them has, `LONGEST` at most.

        Raises:
            DataError: there is no text with a token.
        """
        self.ids_BT = equal_length(texts).to(next(model.parameters()).device)
        self._before = output_states(model, self.ids_BT)

    def rows(self, model: nn.Module, *, run: str, seed: int, step: int) -> list[GeometryRow]:
        """Two rows a layer."""
        moment, found = Moment(run, seed, step), list[GeometryRow]()
        for block, (old_ND, new_ND) in enumerate(zip(self._before, output_states(model, self.ids_BT), strict=True)):
            found += _layer_rows(block, old_ND, new_ND, moment)
        return found


def equal_length(texts: Sequence[Sequence[int]]) -> Tensor:
    """Token ids ``(B, T)``: the longest texts, the first `TEXTS` of equals, in their own order."""
    longest = sorted((len(text) for text in texts), reverse=True)[:TEXTS]
    length = min(longest[-1], LONGEST) if longest else 0
    if not length:
        raise DataError(f"none of {len(texts)} texts has a token to measure effects on; give texts that are not empty.")
    return torch.tensor([list(text[:length]) for text in texts if len(text) >= length][:TEXTS])


@torch.no_grad()
def output_states(model: nn.Module, ids_BT: Tensor) -> list[Tensor]:
    """``(N, D)`` of every block's output, in evaluation mode; the last one is what the head reads."""
    was_training = model.training
    model.eval()
    try:
        found = model(input_ids=ids_BT, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        model.train(was_training)
    return [states_BTD.flatten(0, 1) for states_BTD in found[1:]]


def _layer_rows(block: int, old_ND: Tensor, new_ND: Tensor, moment: Moment) -> list[GeometryRow]:
    name, tokens = f"layers.{block}.output", len(old_ND)
    change_ND = new_ND.double() - old_ND.double()
    share = (torch.linalg.vector_norm(change_ND) / torch.linalg.vector_norm(old_ND.double())).item()
    rank = _stable_rank(change_ND, share)
    null = dense_null(*change_ND.shape) if rank.status == "exact" else NO_NULL
    return [
        geometry_row(name, "effect", "stable_rank", rank, null, moment, tokens=tokens),
        geometry_row(name, "effect", "relative_norm", estimated(share), NO_NULL, moment, tokens=tokens),
    ]


def _stable_rank(change_ND: Tensor, share: float) -> Estimate:
    if share <= FLOOR:
        return undefined("zero")
    return gram_stable_rank(change_ND.mT @ change_ND, len(change_ND))
