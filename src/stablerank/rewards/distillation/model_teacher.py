"""A teacher that runs in this process, on any device.

Contract: frozen, in evaluation mode, never sampled from. A prompt and its completion are joined and padded on the
right, so every token has its own position whatever else is in the batch, also where positions are absolute.

Numerics: see head.py. In fp32 the batch changes a log-probability by rounding alone (about 1e-6); in bf16 the hidden
states themselves depend on it by about 1e-2.

Cost: one forward pass over every prompt and completion; weights in the teacher's dtype, and memory for `BATCH_TOKENS`
tokens of it.

Left out on purpose: sharing a group's prompt between its completions, sharding a teacher over devices (serve it).

Legend: N completions, T tokens of the longest, B rows of a batch, L tokens of prompt and completion, M sampled tokens
of a batch, D hidden size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stablerank.errors import ModelError, RewardError
from stablerank.rewards.distillation.head import Head, check_head
from stablerank.rewards.distillation.vocabulary import check_vocabulary
from stablerank.zoo.resolve import resolve

BATCH_TOKENS = 2**14


class ModelTeacher:
    """A loaded causal language model as a teacher; it is frozen here. ``name`` is for messages."""

    def __init__(self, model: PreTrainedModel, name: str, temperature: float = 1.0) -> None:
        self.name, self.temperature = name, temperature
        self._model = model.eval().requires_grad_(False)
        self._head = Head.of(model)
        check_head(model, self._head, name)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        dtype = str(model.dtype).removeprefix("torch.")
        self.cost = (
            f"a forward pass of the teacher {name} ({millions:.1f}M parameters, {dtype}, {model.device}) over every "
            "prompt and completion"
        )

    @torch.no_grad()
    def logprobs(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], width: int
    ) -> Tensor:
        """``(N, width)`` fp32 on the CPU: log-probability of every completion token, 0 after the end of a completion.

        Raises:
            RewardError: a completion is too long for the teacher, or has an id that it lacks.
        """
        rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        self._refuse_unreadable(rows)
        found_NT = torch.zeros(len(rows), width)
        for batch in _batches([len(row) for row in rows]):
            starts_B, lengths_B = ([len(ids[row]) for row in batch] for ids in (prompt_ids, completion_ids))
            here_BT = torch.arange(width) < torch.tensor(lengths_B)[:, None]
            logprobs_M = self._score([rows[row] for row in batch], starts_B)
            found_NT[batch] = found_NT[batch].masked_scatter(here_BT, logprobs_M)
        return found_NT

    def _score(self, rows: Sequence[Sequence[int]], starts_B: Sequence[int]) -> Tensor:
        """``(M,)``: the sampled tokens of all rows, row by row."""
        device = self._model.device
        lengths_B1 = torch.tensor([len(row) for row in rows])[:, None]
        ids_BL = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        position_L = torch.arange(ids_BL.shape[1])
        mask_BL = (position_L < lengths_B1).to(device)
        hidden_BLD = self._model.base_model(
            input_ids=ids_BL, attention_mask=mask_BL.long(), use_cache=False
        ).last_hidden_state
        # The state that predicts a token stands one place before it.
        sampled_BL = mask_BL & (position_L >= torch.tensor(starts_B)[:, None]).to(device)
        hidden_MD, tokens_M = hidden_BLD[:, :-1][sampled_BL[:, 1:]], ids_BL[:, 1:][sampled_BL[:, 1:]]
        return self._head.logprobs(hidden_MD, tokens_M, self.temperature).cpu()

    def _refuse_unreadable(self, rows: Sequence[Sequence[int]]) -> None:
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        vocabulary = len(self._head.weight_VD)
        for row, ids in enumerate(rows):
            if context is not None and len(ids) > context:
                raise RewardError(
                    f"completion {row} with its prompt has {len(ids)} tokens, but the teacher {self.name} reads "
                    f"{context}; lower trainer.max_completion_length or take a teacher with a longer context"
                )
            if max(ids) >= vocabulary:
                raise RewardError(
                    f"completion {row} with its prompt has token id {max(ids)}, but the teacher {self.name} has "
                    f"{vocabulary} ids; take a teacher whose embedding is as large as the policy's"
                )


def load_teacher(
    path: str, dtype: str, device: str | None, temperature: float, policy_tokenizer: PreTrainedTokenizerBase
) -> ModelTeacher:
    """The teacher at ``path`` (``zoo:NAME``, a folder or a hub id), its vocabulary checked before its weights are read.

    ``device``: as torch names it; None means the GPU if there is one.

    Raises:
        ModelError: it cannot be loaded, or not onto the device.
        RewardError: it has another vocabulary.
    """
    place = resolve(path)
    check_vocabulary(policy_tokenizer, load_tokenizer(place, path), path)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype)).to(target)
    except Exception as error:  # transformers and torch raise many unrelated types here
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The teacher {path!r} cannot be loaded onto {target} ({type(error).__name__}: {reason}); give zoo:NAME or "
            "a folder that save_pretrained wrote, and a device that this machine has."
        ) from error
    return ModelTeacher(model, path, temperature)


def load_tokenizer(place: str, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer at ``place``; ModelError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"The tokenizer of the teacher {name!r} cannot be loaded ({type(error).__name__}: {reason}); give a folder "
            "that `tokenizer.save_pretrained` wrote."
        ) from error


def _batches(lengths_N: Sequence[int]) -> Iterator[list[int]]:
    """Rows of similar length, as many as `BATCH_TOKENS` padded tokens allow and one at least; the longest first."""
    batch: list[int] = []
    for row in sorted(range(len(lengths_N)), key=lambda row: -lengths_N[row]):
        if batch and (len(batch) + 1) * lengths_N[batch[0]] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
