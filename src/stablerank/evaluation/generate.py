"""Greedy completions of many prompts: deterministic, and without a trace in the model or the random state.

Prompts are tokenised as TRL does it (chat messages through the chat template with the generation prompt), sorted by
length so that a batch holds little padding, padded on the left, and returned in their own order. Every setting that
could bend greedy decoding is written out: transformers fills whatever is unset from the model's own
``generation_config``, where instruct models keep a temperature and a repetition penalty.

Numerics: the model's own dtype; in bf16 a completion may depend on its batch, in fp32 ties aside it does not.

Left out on purpose: sampling, beams, vLLM, several processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import DataError
from stablerank.evaluation.prompts import prompt_ids
from stablerank.rewards.rollout import Prompt

Progress = Callable[[int], None]
"""Called after each batch with the number of completions done so far."""


@dataclass(frozen=True)
class Completion:
    """``text`` without special tokens; ``ids`` as generated, the end token included.

    ``truncated``: the limit came before an end token.
    """

    text: str
    ids: tuple[int, ...]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Length, the end token included."""
        return len(self.ids)


def greedy_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[Completion]:
    """One greedy completion a prompt, in order; it ends at an end token of the tokenizer or of the model.

    Raises DataError for a prompt that is empty, too long for the model with ``max_new_tokens``, or made of messages
    where the tokenizer has no chat template.
    """
    ids_of = [prompt_ids(tokenizer, prompt, row) for row, prompt in enumerate(prompts)]
    _refuse_long(ids_of, max_new_tokens, getattr(model.config, "max_position_embeddings", None))
    config = _greedy_config(model, tokenizer, max_new_tokens)
    # The longest first: memory shows early.
    order = sorted(range(len(ids_of)), key=lambda row: -len(ids_of[row]))
    found: dict[int, Completion] = {}
    with _untouched(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            new_ids = _generate(model, config, [ids_of[row] for row in rows])
            found |= {row: _completion(tokenizer, ids, config) for row, ids in zip(rows, new_ids, strict=True)}
            if progress:
                progress(len(found))
    return [found[row] for row in range(len(order))]


def _refuse_long(ids_of: Sequence[Sequence[int]], max_new_tokens: int, context: int | None) -> None:
    for row, ids in enumerate(ids_of):
        if context is not None and len(ids) + max_new_tokens > context:
            raise DataError(
                f"prompt {row} has {len(ids)} tokens, which with {max_new_tokens} new ones exceeds the model's "
                f"context of {context}; shorten the prompt or lower max_new_tokens"
            )


def _greedy_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_length=0,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        typical_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=next((pad for pad in (tokenizer.pad_token_id, *sorted(ends)) if pad is not None), 0),
    )


def _generate(model: PreTrainedModel, config: GenerationConfig, prompt_ids: Sequence[list[int]]) -> list[list[int]]:
    """New token ids of one left-padded batch, still with what follows the end token."""
    width = max(map(len, prompt_ids))
    padded = [[config.pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    ids: Tensor = model.generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=config,
    )
    return ids[:, width:].tolist()


def _completion(tokenizer: PreTrainedTokenizerBase, ids: list[int], config: GenerationConfig) -> Completion:
    ends = config.eos_token_id or []
    length = next((at + 1 for at, token in enumerate(ids) if token in ends), None)
    kept = ids[:length]
    return Completion(tokenizer.decode(kept, skip_special_tokens=True), tuple(kept), truncated=length is None)


@contextmanager
def _untouched(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module's own mode and the random state are as they were."""
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
