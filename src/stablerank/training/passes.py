"""The no-gradient passes of a generation batch: TRL's own are listened to, missing ones are run once.

Contract: a pass over prompts and completions happens at most once a batch and model. TRL makes the frozen one for its
KL term (``beta`` above 0) and the policy one where it samples ahead of the update; then the readings come from these.
Otherwise, and always for a snapshot, the pass is run here, through the same method of TRL's, when a reward asks for it.
Hidden states live as
long as their chunk; a reading of logits costs a pass an fp32 copy of the head where the model has another dtype.

Seam: `GRPOTrainer._get_per_token_logps_and_entropies`, through which all of TRL's passes go, and a forward hook on the
backbone that its fused head calls.

Left out on purpose: images; models that scale or cap their logits, where a reading wants logits (refused by name).
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import use_adapter

from stablerank.errors import ModelError
from stablerank.rewards.forwards import Forward, Needs, Reading, States, Which

_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class Passes:
    """What the passes of one generation batch left; `forget` between batches."""

    def __init__(self, needs: Needs, temperature: float) -> None:
        self.needs, self._temperature = needs, temperature
        self.found: dict[Which, Forward] = {}

    def forget(self) -> None:
        """Drop what the last batch left."""
        self.found.clear()

    @contextmanager
    def listening(
        self, which: Which | None, model: nn.Module, ids_NL: Tensor, attention_mask_NL: Tensor, width: int
    ) -> Iterator[Any]:
        """Take the readings of a pass while it runs; call what is yielded with its log-probabilities."""
        if which is None or which in self.found:
            yield lambda logprobs_NT: None
            return
        readings, attention_mask_NL = self.needs.readings(which), attention_mask_NL.bool()
        listener = _Listener(readings, _causal_model(model), ids_NL, attention_mask_NL, width, self._temperature)
        # TRL may pad to a multiple; the rollout is as wide as its longest completion.
        longest = int(attention_mask_NL[:, attention_mask_NL.shape[1] - width :].sum(1).max())

        def keep(logprobs_NT: Tensor) -> None:
            kept = {name: tensor[:, :longest] if tensor.ndim == 2 else tensor for name, tensor in listener.whole()}
            self.found[which] = Forward(logprobs_NT[:, :longest].detach().float().cpu(), kept)

        with listener.hooked():
            yield keep


class _Listener:
    """Takes the readings of a pass chunk by chunk."""

    def __init__(
        self,
        readings: Mapping[str, Reading],
        model: PreTrainedModel,
        ids_NL: Tensor,
        attention_mask_NL: Tensor,
        width: int,
        temperature: float,
    ) -> None:
        self._readings, self._model = readings, model
        self._ids_NL, self._attention_mask_NL, self._width = ids_NL, attention_mask_NL, width
        self._temperature, self._done = temperature, 0
        self._found: dict[str, list[Tensor]] = {name: [] for name in readings}

    def hooked(self) -> AbstractContextManager[Any]:
        if not self._readings:
            return nullcontext()
        backbone: nn.Module = self._model.base_model
        return backbone.register_forward_hook(self._on_chunk)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """One tensor a reading, N rows."""
        return ((name, torch.cat(chunks).cpu()) for name, chunks in self._found.items())

    @cached_property
    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the head in fp32: it rounds logits to its own dtype."""
        head = self._model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return head.weight.detach().float(), None if bias is None else bias.detach().float()

    def _on_chunk(self, module: nn.Module, arguments: Any, output: Any) -> None:
        hidden_BLD = output.last_hidden_state.detach()
        rows = slice(self._done, self._done + len(hidden_BLD))
        attention_mask_BL, ids_BL = self._attention_mask_NL[rows], self._ids_NL[rows]
        self._done = rows.stop
        completion_mask_BL = attention_mask_BL.clone()
        completion_mask_BL[:, : completion_mask_BL.shape[1] - self._width] = False
        states = States(hidden_BLD, attention_mask_BL, completion_mask_BL, self._width, self._logits, ids_BL)
        for name, reading in self._readings.items():
            self._found[name].append(reading(states))

    def _logits(self, hidden: Tensor) -> Tensor:
        config = self._model.config.get_text_config()
        if scaled := [name for name in _SCALED_LOGITS if getattr(config, name, None) not in (None, 1.0)]:
            raise ModelError(
                f"{type(self._model).__name__} changes its logits by `{scaled[0]}`, which readings of logits do not "
                "know; use a reward that reads log-probabilities or hidden states."
            )
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), *self._head) / self._temperature


def _causal_model(model: nn.Module) -> PreTrainedModel:
    """The language model behind an adapter."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def is_reference_active(policy: nn.Module) -> bool:
    """Whether an adapted policy stands as its own reference: adapters off, or "ref" on."""
    if not isinstance(policy, PeftModel):
        return False
    layer = next(module for module in policy.modules() if isinstance(module, BaseTunerLayer))
    return bool(layer.disable_adapters) or "ref" in layer.active_adapters


def reference_of(policy: nn.Module, ref_model: nn.Module | None) -> tuple[nn.Module, AbstractContextManager[Any]]:
    """The model that answers as the reference inside the context.

    Raises:
        ModelError: the policy trains in place and no reference model was made.
    """
    if ref_model is not None:
        return ref_model, nullcontext()
    if not isinstance(policy, PeftModel):
        raise ModelError(
            "A reward reads the frozen reference, but the policy trains in place and has none; set trainer.beta above "
            "0, or train an adapter."
        )
    return policy, use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None)


def padded_batch(
    prompt_ids: list[list[int]], completion_ids: list[list[int]], pad_token: int, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Ids and mask ``(N, L)``, prompts padded on the left and completions on the right, and T."""
    longest, width = (max(map(len, rows)) for rows in (prompt_ids, completion_ids))
    ids_NL = torch.full((len(prompt_ids), longest + width), pad_token)
    mask_NL = torch.zeros(ids_NL.shape, dtype=torch.long)
    for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        here = slice(longest - len(prompt), longest + len(completion))
        ids_NL[row, here] = torch.tensor([*prompt, *completion])
        mask_NL[row, here] = 1
    return ids_NL.to(device), mask_NL.to(device), width
