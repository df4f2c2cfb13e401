"""PoLAR in any transformers or TRL trainer: ``trainer.add_callback(LandingCallback())`` keeps its factors orthonormal.

Contract: when training begins, fresh or resumed, the trained X and Y of every PoLAR adapter of the model get the
landing field of `attach_landing`, with the switches of the adapter's own configuration; when it ends the optimiser is
left as it was. A model without such factors is refused. Each log row of a loss holds ``polar_drift``, the largest
``|X^T X - I|_F`` of all trained factors after the step.

Left out on purpose: the drift in reporters that a trainer puts before the callbacks of its user (``report_to``): they
have written the row by then; it is in ``trainer.state.log_history``.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stablerank.adapters.variants.polar import stiefel_parameters
from stablerank.errors import ModelError
from stablerank.optimisers.landing import Landing, attach_landing, drift


class LandingCallback(TrainerCallback):
    """Attach the landing field while a trainer trains."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._factors: list[nn.Parameter] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach.

        Raises:
            ModelError: the model trains no PoLAR factor, or what `attach_landing` raises.
        """
        self._detach()  # of a run that broke off
        for settings, factors in _trained(kwargs["model"]):
            self._handles.append(attach_landing(kwargs["optimizer"], factors, settings))
            self._factors += factors
        if not self._factors:
            raise ModelError(
                f"{type(kwargs['model']).__name__} trains no factor of PoLAR, so there is nothing to keep orthonormal; "
                "leave LandingCallback out, or train an adapter of the method `polar`."
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the drift to the row, for the callbacks after this one, and to the trainer's history."""
        if logs is not None and "loss" in logs and self._factors:
            logs["polar_drift"] = float(torch.stack([drift(factor) for factor in self._factors]).max())
            state.log_history[-1]["polar_drift"] = logs["polar_drift"]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the optimiser as it was."""
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._factors = [], []


def _trained(model: Any) -> list[tuple[Landing, list[nn.Parameter]]]:
    """The trained factors of each PoLAR adapter, with its switches."""
    by_adapter: dict[str, list[nn.Parameter]] = {}
    for name, factor in stiefel_parameters(model).items():
        by_adapter.setdefault(name.split(".")[-2], []).append(factor)
    return [(_switches(model.peft_config[adapter].spectral), factors) for adapter, factors in by_adapter.items()]


def _switches(spectral: dict[str, Any]) -> Landing:
    return Landing(**{field.name: spectral[field.name] for field in fields(Landing) if field.name in spectral})
