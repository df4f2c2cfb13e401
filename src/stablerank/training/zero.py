"""Explain my zero: say once, during training, why a whole batch has no learning signal.

In TRL's `GRPOTrainer` it is one line before ``trainer.train()``::

    from stablerank.training.zero import explain_zero
    explain_zero(trainer)

The causes and what to change are those of dynamics/zero.py. Two more zeros are told apart from the log: a loss of 0
beside a gradient, which is normal on-policy, and a gradient of 0 beside advantages, which is a fault. Each cause is
said once, so that a run prints a handful of lines at most, and a last line counts the batches.

A message is a log record of level warning and no Python warning: it tells of an event of this run, there may be nothing
in the program to mend, and ``-W error`` must not end a training. Without any logging set up it is a line on stderr.

Left out on purpose: RLOO, whose KL term is part of the reward, so that equal rewards have an advantage; and guesses
from the log row alone, for every trainer that has groups has their completions.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

from stablerank.dynamics.zero import CAUSES, LABELS, Cause, Setting, causes_of_batch, widened, zero_of_batch
from stablerank.errors import ModelError
from stablerank.runs.record import TrainingCompletion, completion_text, weighted_sum

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

ROUNDING = 1e-6
"""Loss that fp32 leaves of a sum of advantages that is zero."""
NORMAL = (
    "Loss 0 beside grad_norm {norm:.2g} is normal: while the policy that learns is the one that sampled, the value of "
    "the loss is minus the mean advantage{kl}, and the advantages of a group sum to zero. The gradient does not; judge "
    "the run by its reward."
)
CUT_OFF = (
    "The gradient is zero in step {step} although the advantages are not: no trained parameter reaches the loss. Look "
    "at what is trainable (target modules, lora_alpha, frozen layers) and, with num_iterations above 1, at clip_ratio."
)


class ZeroCallback(TrainerCallback):
    """Says why batches teach nothing; `see` gets them, on the main process only.

    ``batches`` and ``groups`` count how many had which cause so far; None counts those with signal.
    """

    def __init__(self, answer: str | None = None, say: Callable[[str], None] = logger.warning) -> None:
        r"""``answer`` is the pattern of a readable answer, such as ``\\\\boxed``; None: unread is called wrong."""
        self.say = say
        self._setting = Setting(answer=answer)
        self._said: set[str] = set()
        self.batches: Counter[Cause | None] = Counter()
        self.groups: Counter[Cause | None] = Counter()
        self._has_signal = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the settings that a cause depends on."""
        self._setting = replace(
            self._setting,
            masks_truncated=getattr(args, "mask_truncated_completions", False),
            beta=getattr(args, "beta", None),
            longest=getattr(args, "max_completion_length", None),
        )

    def see(self, step: int, rows: Sequence[Row]) -> None:
        """Take the completions of one generation batch, all processes together.

        A row has ``group``, ``completion``, ``reward``, ``advantage``, ``tokens`` and ``truncated``.
        """
        completions = [_completion(step, row) for row in rows]
        zero = zero_of_batch(completions, self._setting)
        self.groups += causes_of_batch(completions, self._setting)
        self.batches[zero.cause if zero else None] += 1
        rewards = [one.reward for one in completions if math.isfinite(one.reward)]
        self._setting = replace(self._setting, seen=widened(self._setting.seen, rewards))
        self._has_signal = zero is None
        if zero is not None:
            self._say_once(zero.cause, zero.message)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the zeros that the loss and its gradient show."""
        if not (self._has_signal and state.is_world_process_zero and logs and {"loss", "grad_norm"} <= logs.keys()):
            return
        norm = logs["grad_norm"]
        if norm == 0:
            self._say_once("cut_off", CUT_OFF.format(step=state.global_step))
        elif norm > 0 and abs(logs["loss"]) < ROUNDING:
            kl = " plus the KL term" if self._setting.beta else ""
            self._say_once("normal", NORMAL.format(kl=kl, norm=norm))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the batches without signal, if there were any."""
        batches = self.batches.total()
        silent = batches - self.batches[None]
        if silent and state.is_world_process_zero:
            named = ", ".join(f"{self.batches[cause]} {LABELS[cause]}" for cause in CAUSES if self.batches[cause])
            groups = self.groups.total()
            self.say(
                f"Without learning signal: {silent} of {batches} generation batches ({named}), and "
                f"{groups - self.groups[None]} of {groups} groups."
            )

    def _say_once(self, key: str, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self.say(message)


def explain_zero(trainer: Trainer, *, answer: str | None = None) -> ZeroCallback:
    r"""Make a TRL trainer explain batches without signal; call it before ``trainer.train()``.

    ``answer`` is a pattern that every readable answer holds (``r"\\boxed"``); without it an answer that the reward
    function cannot read counts as a wrong one.

    Raises:
        ModelError: the trainer is no `GRPOTrainer`.
    """
    if not isinstance(trainer, GRPOTrainer):
        raise ModelError(f"The zeros of a {type(trainer).__name__} are not known here; give TRL's GRPOTrainer.")
    callback = ZeroCallback(answer)
    score = trainer._generate_and_score_completions

    # TRL calls back neither between sampling and loss nor with what it sampled, so its method is wrapped in place.
    def watched(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = score(inputs)
        if trainer.model.training:
            rows = _rows(trainer, batch)
            if trainer.accelerator.is_main_process:
                callback.see(trainer.state.global_step + 1, rows)
        return batch

    trainer._generate_and_score_completions = watched
    trainer.add_callback(callback)
    return callback


def _rows(trainer: Any, batch: Mapping[str, torch.Tensor]) -> list[Row]:
    """One row a completion of all processes, in the order of the groups."""
    ends = gather_object(_ends(trainer, batch))
    # TRL's logs are gathered already, and keep the latest batch last.
    texts = list(trainer._logs["completion"])[-len(ends) :]
    columns = [list(trainer._logs["rewards"][name])[-len(ends) :] for name in trainer.reward_func_names]
    weights = trainer.reward_weights.tolist()
    return [
        {
            "group": place // trainer.num_generations,
            "completion": completion_text(text),
            "reward": weighted_sum(parts, weights),
            **end,
        }
        for place, (text, parts, end) in enumerate(zip(texts, zip(*columns, strict=True), ends, strict=True))
    ]


def _ends(trainer: Any, batch: Mapping[str, torch.Tensor]) -> list[Row]:
    """Length, truncation as TRL judges it, and the largest advantage of a token, of this process's completions."""
    mask_NT, advantages = batch["completion_mask"].bool(), batch["advantages"]
    tokens_N = mask_NT.sum(1)
    stops = torch.tensor([*trainer.eos_token_ids, trainer._tokenizer.pad_token_id], device=mask_NT.device)
    last_N = batch["completion_ids"].gather(1, (tokens_N - 1).clamp(min=0)[:, None])[:, 0]
    # Of a truncated completion that is masked whole this is the first token, after which it went on.
    truncated_N = ~torch.isin(last_N, stops)
    largest_N = advantages.abs() if advantages.dim() == 1 else (advantages * mask_NT).abs().amax(1)
    return [
        {"tokens": tokens, "truncated": truncated, "advantage": advantage}
        for tokens, truncated, advantage in zip(
            tokens_N.tolist(), truncated_N.tolist(), largest_N.tolist(), strict=True
        )
    ]


def _completion(step: int, row: Row) -> TrainingCompletion:
    reward, advantage = (math.nan if row[key] is None else row[key] for key in ("reward", "advantage"))
    return TrainingCompletion(step, row["group"], row["completion"], reward, advantage, row["tokens"], row["truncated"])
