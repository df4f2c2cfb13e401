"""Sampling with every draw fixed beforehand: a completion is the same in any batch, order or process.

Legend: B completions of a batch, T new tokens at most, V vocabulary.

Completion ``sample`` of problem ``problem`` owns a row of uniform numbers that follows from ``(seed, problem, sample)``
alone. Number t picks token t by inversion: the token whose stretch of the cumulative distribution holds the number. So
sampling is greedy decoding of scores that leave one token, and goes through the same code. Two models asked the same
problems see the same numbers (common random numbers), which keeps each unbiased and steadies their paired difference.

Numerics: temperature and top-p are transformers' own warpers on fp32 scores; softmax and cumulative sum are fp64, so
a frequency is off by less than 1e-12. In fp32 another batch moves a logit by rounding, which changes a token only where
its number lies that close to a boundary; the same batches give the same bits.

Source: inversion, Devroye 1986, Non-Uniform Random Variate Generation, III.2.

Left out on purpose: top-k, min-p, penalties. pass@k asks about the model's own distribution.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from stablerank.errors import ModelError, RecipeError


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Raises RecipeError for a number that no sampling can have.
    """

    samples: int
    """Completions of a problem."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecipeError(f"samples is {self.samples}, but a problem needs at least 1; give 1 or more.")
        if not 0 < self.temperature < math.inf:
            raise RecipeError(
                f"temperature is {self.temperature:g}, but sampling needs more than 0 (greedy is measured anyway); "
                "give 1 or the temperature of training."
            )
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p is {self.top_p:g}, but it lies in (0, 1]; 1 keeps every token.")
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}, but seeds count from 0; give 0 or more.")

    def uniforms(self, problem: int, length: int) -> NDArray[np.float64]:
        """``(samples, length)`` numbers in [0, 1): those of a sample do not depend on how many there are."""
        draws = (np.random.default_rng((self.seed, problem, sample)) for sample in range(self.samples))
        return np.stack([generator.random(length) for generator in draws])

    def processors(self, uniforms_BT: Iterable[NDArray[np.float64]], width: int) -> LogitsProcessorList:
        """What makes greedy decoding of one batch, whose padded prompts have ``width`` tokens, sample instead."""
        chain = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_p < 1:
            chain.append(TopPLogitsWarper(self.top_p))
        chain.append(Inversion(torch.from_numpy(np.stack(list(uniforms_BT))), width))
        return chain


class Inversion(LogitsProcessor):
    """Leave the one token that the number of this step picks: score 0, all others minus infinity."""

    def __init__(self, uniforms_BT: Tensor, width: int) -> None:
        self.uniforms_BT, self.width = uniforms_BT, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``(B, V)`` fp32 scores to scores of the same shape; ModelError where a score is NaN."""
        cumulative_BV = scores.double().softmax(-1).cumsum(-1)
        if not bool(cumulative_BV[:, -1].isfinite().all()):
            raise ModelError("The model gives scores that are not finite; load it in float32, or mend its weights.")
        number_B1 = self.uniforms_BT[:, input_ids.shape[1] - self.width, None].to(scores.device)
        # Right of a tie: a token of probability 0 has the sum of the one before it, and is never picked.
        token_B1 = torch.searchsorted(cumulative_BV, number_B1 * cumulative_BV[:, -1:], right=True)
        return torch.full_like(scores, -math.inf).scatter_(1, token_B1, 0.0)
