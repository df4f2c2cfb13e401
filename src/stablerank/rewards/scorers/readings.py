"""What a pass reads of an answer: the spectrum of its states, and how likely or sure the model is of it.

Legend: B rows of a batch, L positions, D hidden size, K singular values, M predicted tokens, V vocabulary.

Spectral scores of one row's states H, a row a token (``scope``: of prompt and response, or of the response), ``layer``
of the model, ``center`` subtracting the mean state first; sigma their singular values:

- ``stable_rank``: ``sum sigma^2 / sigma_1^2`` (arXiv 2512.02807, equation 1, uncentred).
- ``effective_rank``: ``exp H(p)``, ``p = sigma / sum sigma`` (Roy & Vetterli 2007).
- ``rankme``: the same with ``p = sigma / sum sigma + 1e-7`` (arXiv 2210.02885, equation 1): the two differ only where
  values are all but zero.
- ``participation_ratio``: ``(sum sigma^2)^2 / sum sigma^4``.
- ``pca95``: the number of leading components that hold 95 % of ``sum sigma^2``. Principal components are of centred
  states, so this one's ``center`` is true by default; the paper does not say which it took.
- ``condition_number``: ``sigma_1 / sigma_K``. Centring fewer tokens than D makes one value zero, which is left out.

Higher is "prefer this one" for each, as the paper took them; it found several far below chance, which is a sign and
not an absence of signal. Except for the first, all grow with the number of tokens on real text: hold length beside
them. One token gives exactly 1 (condition number too), centred nothing that exists (NaN).

Token scores, means over the tokens of the response that have a token before them: ``mean_logprob`` (minus the log of
the perplexity), ``self_certainty`` and ``token_entropy`` as in intrinsic.py, the last with its natural sign: higher
means less sure.

Numerics: spectra in fp64 from the matrix, once for all scores of the same scope, layer and centring; where stable
rank is alone, from ``trace(G) / lambda_1(G)`` of the fp64 Gram matrix, which agrees to 1e-12 and costs half (bound
in spectral/batched.py). Token scores in fp32, their mean in fp64.

Left out on purpose: gradients, other means than the arithmetic one, parts of a response.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablerank.rewards.intrinsic import entropy, self_certainty
from stablerank.rewards.scorers.model_pass import Chunk, Layer
from stablerank.spectral.batched import spectra_batched, stable_rank_batched
from stablerank.spectral.functionals import condition_number, effective_rank, participation_ratio, stable_rank

Scope = Literal["all", "response"]
Spectral = Literal["stable_rank", "effective_rank", "participation_ratio", "pca95", "condition_number", "rankme"]
Likelihood = Literal["mean_logprob", "self_certainty", "token_entropy"]

RANKME_EPSILON = 1e-7
"""Of arXiv 2210.02885, which computes in fp32."""
_ZERO = 1e-12
"""Of sigma_1: what centring leaves of its zero."""


def rankme(values_K: Tensor) -> Tensor:
    """``exp(-sum p ln p)`` with ``p = sigma / sum sigma + 1e-7``, not normalised again (arXiv 2210.02885)."""
    return torch.special.entr(values_K / values_K.sum() + RANKME_EPSILON).sum().exp()


def pca95(values_K: Tensor) -> Tensor:
    """How many of the values, descending, hold 95 % of their squares' sum; NaN where that is zero or not finite."""
    share_K = values_K.square().cumsum(0) / values_K.square().sum()
    # Rounding must not ask for one more component than an exact 95 % does.
    return (share_K < 0.95 - 1e-12).sum().add(1).double() + 0 * share_K[-1]


_FUNCTIONALS: Mapping[Spectral, Callable[[Tensor], Tensor]] = {
    "stable_rank": stable_rank,
    "effective_rank": effective_rank,
    "participation_ratio": participation_ratio,
    "pca95": pca95,
    "condition_number": condition_number,
    "rankme": rankme,
}


@dataclass(frozen=True)
class View:
    """Whose spectrum is read."""

    scope: Scope = "all"
    layer: Layer = -1
    center: bool = False


@dataclass(frozen=True)
class SpectralReading:
    """Scores of one view's spectrum, by name."""

    view: View
    measures: Mapping[str, Spectral]

    predicts = False

    @property
    def names(self) -> tuple[str, ...]:
        """See `Reading.names`."""
        return tuple(self.measures)

    @property
    def layers(self) -> frozenset[Layer]:
        """See `Reading.layers`."""
        return frozenset({self.view.layer})

    def __call__(self, chunk: Chunk) -> NDArray[np.float64]:
        """See `Reading.__call__`."""
        states_BLD = chunk.states[self.view.layer]
        mask_BL = chunk.text_BL if self.view.scope == "all" else chunk.response_BL
        if set(self.measures.values()) == {"stable_rank"}:
            rank_B = stable_rank_batched(states_BLD, mask_BL, center=self.view.center)
            return np.repeat(rank_B.cpu().numpy()[:, None], len(self.measures), axis=1)
        spectra = spectra_batched(states_BLD, mask_BL, center=self.view.center)
        rows = [self._scores(values_K) for values_K in spectra]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.measures))

    def _scores(self, values_K: Tensor) -> list[float]:
        # Where no more tokens than D are centred, one value is rounding; of one token nothing is left.
        if self.view.center and len(values_K) and bool(values_K[-1] <= _ZERO * values_K[0]):
            values_K = values_K[:-1]
        if not len(values_K) or not bool(values_K.isfinite().all()) or not bool(values_K[0] > 0):
            return [float("nan")] * len(self.measures)
        return [float(_FUNCTIONALS[measure](values_K)) for measure in self.measures.values()]


def _logprob(logits_KV: Tensor, ids_K: Tensor) -> Tensor:
    return logits_KV.log_softmax(-1).gather(-1, ids_K[:, None])[:, 0]


_PER_TOKEN: Mapping[Likelihood, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_logprob": _logprob,
    "self_certainty": lambda logits_KV, ids_K: self_certainty(logits_KV),
    "token_entropy": lambda logits_KV, ids_K: entropy(logits_KV),
}


@dataclass(frozen=True)
class TokenReading:
    """Means over the response's tokens of what the model says where it predicts them, by name."""

    measures: Mapping[str, Likelihood]

    predicts = True
    layers: frozenset[Layer] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """See `Reading.names`."""
        return tuple(self.measures)

    def __call__(self, chunk: Chunk) -> NDArray[np.float64]:
        """See `Reading.__call__`; NaN for a row without a predicted token."""
        predicted = chunk.predicted
        assert predicted is not None, "the pass keeps what a reading predicts"
        values_MS = predicted.over_logits(self._all).double()
        sums_BS = values_MS.new_zeros(len(chunk.text_BL), len(self.measures))
        sums_BS.index_add_(0, predicted.rows_M, values_MS)
        counts_B = torch.bincount(predicted.rows_M, minlength=len(chunk.text_BL))
        return (sums_BS / counts_B[:, None]).cpu().numpy()

    def _all(self, logits_KV: Tensor, ids_K: Tensor) -> Tensor:
        """Every measure of the same logits, which are made once."""
        return torch.stack([_PER_TOKEN[measure](logits_KV, ids_K) for measure in self.measures.values()], -1)


def grouped(spectral: Mapping[str, tuple[Spectral, View]]) -> Sequence[SpectralReading]:
    """One reading a view, so that a spectrum is taken once."""
    views = dict.fromkeys(view for _, view in spectral.values())
    return [
        SpectralReading(view, {name: measure for name, (measure, of) in spectral.items() if of == view})
        for view in views
    ]
