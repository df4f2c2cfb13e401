"""The stable rank of recorded or sampled texts, and what it says of right and wrong; for `sr_grpo*.py`.

Legend: G groups (prompts), K completions of one prompt.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stablerank.rewards.forwards import States
from stablerank.rewards.geometric import SpectrumReading, View
from stablerank.training.passes import padded_batch

BATCH = 64
SCOPES = ("all", "response")
MATCHED = 2
"""Tokens by which the lengths of a right and a wrong completion may differ to count as the same."""

Text = tuple[list[int], list[int]]
"""The tokens of a prompt and of its completion, the end token included."""
Floats = NDArray[np.float64]


def stable_ranks(model: Any, texts: Sequence[Text]) -> dict[str, Floats]:
    """One value a text and scope, in the window of the recipe; NaN for an empty completion."""
    chunks = [_read(model, texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    return {scope: np.concatenate([chunk[scope] for chunk in chunks]) for scope in SCOPES}


@torch.no_grad()
def _read(model: Any, texts: Sequence[Text]) -> dict[str, Floats]:
    prompts, completions = map(list, zip(*texts, strict=True))
    ids, mask, width = padded_batch(prompts, completions, model.config.pad_token_id, torch.device("cpu"))
    hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    response = mask.bool().clone()
    response[:, : response.shape[1] - width] = False
    states = States(hidden, mask.bool(), response, width, lambda found: found, ids)
    return {scope: SpectrumReading(view=View(scope))(states).numpy() for scope in SCOPES}


def within_group_auc(score_GK: Floats, right_GK: Floats, tokens_GK: Floats, *, matched: bool = False) -> Floats:
    """How often a right completion scores above a wrong one of its prompt, ties as half: one value a prompt.

    NaN where a prompt has no such pair. ``matched``: only pairs of the same length (`MATCHED`).
    """
    return np.array([_auc(*group, matched) for group in zip(score_GK, right_GK, tokens_GK, strict=True)])


def _auc(score_K: Floats, right_K: Floats, tokens_K: Floats, matched: bool) -> float:
    wins = [
        (score_K[one] > score_K[other]) + 0.5 * (score_K[one] == score_K[other])
        for one, other in _pairs(score_K, right_K)
        if not matched or abs(tokens_K[one] - tokens_K[other]) <= MATCHED
    ]
    return float(np.mean(wins)) if wins else float("nan")


def _pairs(score_K: Floats, right_K: Floats) -> Iterator[tuple[int, int]]:
    """Places of a right and a wrong completion, both with a score."""
    known = np.flatnonzero(np.isfinite(score_K))
    return ((one, other) for one in known for other in known if right_K[one] > right_K[other])
