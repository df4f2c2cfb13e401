"""A teacher behind a server that scores prompts: vLLM, or another with OpenAI's completions.

The sequence goes to ``/v1/completions`` as the token ids of prompt and completion, and the log-probabilities of these
very tokens come back. ``protocol`` says in which form: ``vllm`` asks for ``prompt_logprobs``, keyed by token id, so an
answer about other tokens is noticed; ``openai`` asks for ``echo`` with ``logprobs``, where only the number of tokens
can be checked. One new token is sampled and ignored, because servers insist on one.

Temperature: servers report log-probabilities at temperature 1 (vLLM unless started with ``--logprobs-mode
processed_logprobs``; the request says 1 either way), so this teacher has no other.

A question is repeated when the server is away, slow, or answers with anything but log-probabilities, with pauses that
double. Then one `RewardError` stops the run, which goes on from its last checkpoint when the server is back.

Cost: one request a completion, `PARALLEL` at a time; the answers are about 100 bytes a token.

Left out on purpose: keys (see exchange.py), starting a server, teachers behind several addresses.

Legend: N completions, T tokens.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from stablerank.errors import RewardError
from stablerank.rewards.distillation.exchange import Failure, one_line, post_json

ProtocolName = Literal["vllm", "openai"]
PARALLEL = 8
LONGEST_PAUSE = 30.0
MOST_NEGATIVE, ROUNDING = 1e30, 1e-3
"""A log-probability lies between minus the one and the other."""

_PLAIN: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
# A model's own generation_config may bend what a server reports; vLLM takes these from there unless they are said.
_UNBENT: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_ASK: dict[ProtocolName, dict[str, Any]] = {
    "vllm": {**_PLAIN, **_UNBENT, "prompt_logprobs": 1},
    "openai": {**_PLAIN, "echo": True, "logprobs": 1},
}
_FIELD: dict[ProtocolName, str] = {"vllm": "prompt_logprobs", "openai": "logprobs.token_logprobs"}


class ServerTeacher:
    """The model called ``model`` of the server at ``url`` (``http://host:port``, with or without ``/v1``).

    ``timeout`` seconds a try, ``retries`` tries after the first, the first pause ``pause`` seconds long.
    """

    temperature = 1.0

    def __init__(
        self,
        url: str,
        model: str,
        protocol: ProtocolName = "vllm",
        timeout: float = 60.0,
        retries: int = 5,
        pause: float = 1.0,
    ) -> None:
        self.url = f"{url.rstrip('/').removesuffix('/v1')}/v1/completions"
        self.model, self.protocol = model, protocol
        self.timeout, self.retries, self.pause = timeout, retries, pause
        self.cost = f"a request a completion to {url}, where the teacher {model} scores prompt and completion"

    def logprobs(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], width: int
    ) -> Tensor:
        """``(N, width)`` fp32 on the CPU: log-probability of every completion token, 0 after the end of a completion.

        Raises:
            RewardError: the server did not give them in the tries it had.
        """
        given_up = threading.Event()
        found_NT = torch.zeros(len(prompt_ids), width)

        def scored(prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
            return self._score(prompt, completion, given_up)

        pool = ThreadPoolExecutor(PARALLEL)
        try:
            for row, logprobs in enumerate(pool.map(scored, prompt_ids, completion_ids)):
                found_NT[row, : len(logprobs)] = torch.tensor(logprobs)
        finally:
            given_up.set()
            pool.shutdown(cancel_futures=True)
        return found_NT

    def check(self, highest_id: int) -> None:
        """Ask for one token, the policy's last: is the server there, with this model and as many ids?

        Raises:
            RewardError: no.
        """
        self.logprobs([[0]], [[highest_id]], 1)

    def _score(self, prompt: Sequence[int], completion: Sequence[int], given_up: threading.Event) -> list[float]:
        """Ask until there is an answer, the tries are used up, or another completion has given up."""
        if not completion:
            return []
        ids = [*prompt, *completion]
        question = {"model": self.model, "prompt": ids, **_ASK[self.protocol]}
        for attempt in range(self.retries + 1):
            try:
                return read_answer(self.protocol, post_json(self.url, question, self.timeout), ids, len(prompt))
            except Failure as failure:
                last = failure
            pause = min(self.pause * 2**attempt, LONGEST_PAUSE)
            if last.final or attempt == self.retries or given_up.wait(pause):
                break
        raise RewardError(
            f"the teacher {self.model} at {self.url} gave no log-probabilities in {attempt + 1} of {self.retries + 1} "
            f"tries ({last}); see to the server, then start again, a run that had begun with --resume"
        )


def read_answer(protocol: ProtocolName, answer: Any, ids: Sequence[int], start: int) -> list[float]:
    """Log-probabilities of ``ids[start:]`` from a server's answer. Raises Failure naming what is wrong with it."""
    try:
        found = answer["choices"][0]
        for name in _FIELD[protocol].split("."):
            found = found[name]
    except (LookupError, TypeError):
        raise Failure(f"an answer without choices[0].{_FIELD[protocol]}: {one_line(str(answer))}") from None
    count = len(found) if isinstance(found, list) else 0
    # An echo may end with the new token.
    if count != len(ids) and not (protocol == "openai" and count == len(ids) + 1):
        raise Failure(f"an answer about {count} tokens instead of {len(ids)}")
    return [_number(protocol, found[at], ids[at], at) for at in range(start, len(ids))]


def _number(protocol: ProtocolName, entry: Any, token: int, at: int) -> float:
    try:
        value = entry if protocol == "openai" else entry[str(token)]["logprob"]
    except (LookupError, TypeError):
        raise Failure(f"an answer without token id {token} at position {at}") from None
    if not isinstance(value, int | float) or not -MOST_NEGATIVE <= value <= ROUNDING:
        raise Failure(f"{one_line(repr(value))} instead of a log-probability at position {at}")
    return float(value)
