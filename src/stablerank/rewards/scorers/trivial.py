"""Scores that know nothing of quality: the controls without which no other score means anything.

- ``shorter`` and ``longer``: minus and plus the response's length, in tokens of a tokenizer if one is given, else in
  characters; the whole response, whatever a window would keep.
- ``random``: a number in [0, 1) from a hash of seed, prompt and response, so that it is the same in any order, batch
  and process; equal answers tie.

What is empty or no text is so here too: pairs and pools must lose the same rows under every scorer.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from stablerank.rewards.scorers.answers import Answer, Scores, unscored
from stablerank.rewards.scorers.templates import readable


class LengthScorer:
    """The length of a response times ``sign``; a `Scorer`."""

    def __init__(self, name: str, sign: int, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.names: tuple[str, ...] = (name,)
        self._sign, self._tokenizer = sign, tokenizer

    def score(self, answers: Sequence[Answer]) -> Scores:
        """See `Scorer.score`."""
        table = _each(answers, self.names[0], lambda answer: self._sign * self._length(answer.response))
        if self._tokenizer is None:
            return table
        return replace(table, tokens_N=np.nan_to_num(np.abs(table.values_NS[:, 0])).astype(np.int64))

    def _length(self, response: str) -> int:
        if self._tokenizer is None:
            return len(response)
        return len(self._tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"])


class RandomScorer:
    """Chance, the same for the same text; a `Scorer`."""

    def __init__(self, name: str = "random", seed: int = 0) -> None:
        self.names: tuple[str, ...] = (name,)
        self._seed = seed

    def score(self, answers: Sequence[Answer]) -> Scores:
        """See `Scorer.score`."""
        return _each(answers, self.names[0], self._drawn)

    def _drawn(self, answer: Answer) -> float:
        prompt = answer.prompt if isinstance(answer.prompt, str) else [dict(turn) for turn in answer.prompt]
        text = json.dumps([self._seed, prompt, answer.response], default=str)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _each(answers: Sequence[Answer], name: str, number: Callable[[Answer], float]) -> Scores:
    table = replace(unscored(answers, (name,)), statuses=tuple(map(readable, answers)))
    for at, answer in enumerate(answers):
        if table.statuses[at] == "scored":
            table.values_NS[at, 0] = number(answer)
    return table
