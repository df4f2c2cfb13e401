"""A run of a preference objective: TRL's `DPOTrainer` with our adapters, reference check, telemetry and run folder.

Held-out numbers are those of evaluation/losses.py. Before training the policy is its reference: the loss is ln 2.

Left out on purpose: log-probabilities of the reference computed ahead, which `guard_reference` could not check.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import tee
from typing import Any

from torch import nn
from transformers import Trainer
from trl import DPOTrainer

from stablerank.adapters.reference import guard_reference
from stablerank.evaluation.losses import SIDES, preference_loss
from stablerank.evaluation.statistics import Interval
from stablerank.evaluation.text_loss import ExampleLogprob, example_logprobs
from stablerank.training.loss_session import Batch, LossSession
from stablerank.training.passes import reference_of
from stablerank.training.preference.recipe import PreferenceRecipe
from stablerank.training.session_base import Row


class PreferenceSession(LossSession[PreferenceRecipe]):
    """Log-ratios of chosen and rejected responses against the policy that training began with."""

    sides = 2

    def _trainer_of(self, arguments: dict[str, Any]) -> Trainer:
        trainer = DPOTrainer(**arguments)
        guard_reference(trainer)
        return trainer

    def _measured(self, model: nn.Module, batches: Iterator[Batch]) -> list[Row]:
        ours, theirs = tee(batches)
        policy = example_logprobs(model, ours)
        assert isinstance(self.trainer, DPOTrainer)
        reference, as_reference = reference_of(model, self.trainer.ref_model)
        with as_reference:
            before = example_logprobs(reference, theirs)
        size = self.recipe.evaluation.batch_size
        return [_row(pair, old) for pair, old in zip(_pairs(policy, size), _pairs(before, size), strict=True)]

    def _numbers(self, rows: Sequence[Row]) -> dict[str, Interval]:
        return preference_loss(rows, self.recipe.loss_settings["beta"])


def _pairs(found: Sequence[ExampleLogprob], size: int) -> list[Mapping[str, ExampleLogprob]]:
    """TRL's collator puts the chosen responses of a batch before its rejected ones."""
    pairs: list[Mapping[str, ExampleLogprob]] = []
    for start in range(0, len(found), 2 * size):
        batch = found[start : start + 2 * size]
        half = len(batch) // 2
        pairs += [dict(zip(SIDES, pair, strict=True)) for pair in zip(batch[:half], batch[half:], strict=True)]
    return pairs


def _row(policy: Mapping[str, ExampleLogprob], reference: Mapping[str, ExampleLogprob]) -> Row:
    return {
        **{side: policy[side].logprob for side in SIDES},
        **{f"{side}_reference": reference[side].logprob for side in SIDES},
        **{f"{side}_tokens": policy[side].tokens for side in SIDES},
    }
