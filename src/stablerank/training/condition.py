"""The spectral condition of every block, live: ``trainer.add_callback(ConditionCallback(sink))``.

Contract: every ``every`` optimiser steps the forward and backward passes of that one step are recorded, and
``sink(step, blocks)`` gets a verdict a block (probes/spectral_condition.py) before the optimiser steps. Which tokens
count is read from the model's own ``attention_mask``; a call without one counts all. Passes under ``no_grad``
(generation, the reference) do not count. Between measurements no hook is there.

Left out on purpose: several processes, whose gradients would have to be averaged; reentrant gradient checkpointing,
whose first forward pass has no gradient, so that it leaves the activations empty and the blocks undecided.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stablerank.probes.spectral_condition import BlockCondition, ConditionRecorder, record_condition
from stablerank.runs.geometry_rows import GeometryRow

ConditionSink = Callable[[int, list[BlockCondition]], None]


class ConditionCallback(TrainerCallback):
    """Measure the first step and every ``every`` from there."""

    def __init__(self, sink: ConditionSink, *, every: int = 50, run: str = "run", **options: Any) -> None:
        """``options`` are those of `record_condition`."""
        self.sink, self.every, self.run, self.options = sink, every, run, options
        self.seconds = 0.0
        """Spent on the spectra; what the hooks cost is inside the step."""
        self.rows: list[GeometryRow] = []
        """The rows behind the latest verdicts, before ``sink`` is called."""
        self._open = ExitStack()
        self._recorder: ConditionRecorder | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to record when due."""
        self._close()  # of a step that broke off
        if state.global_step % self.every == 0 and state.is_world_process_zero:
            model = getattr(kwargs["model"], "module", kwargs["model"])
            self._recorder = self._open.enter_context(record_condition(model, **self.options))
            hook = model.register_forward_pre_hook(self._mask, with_kwargs=True)
            self._open.callback(hook.remove)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand over the verdicts of the step that is about to be taken."""
        if self._recorder is not None:
            started = time.perf_counter()
            blocks = self._recorder.blocks(run=self.run, seed=args.seed, step=state.global_step)
            self.rows = self._recorder.rows
            self.sink(state.global_step, blocks)
            self.seconds += time.perf_counter() - started
            self._close()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave no hook behind."""
        self._close()

    def _mask(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._recorder is not None
        mask = kwargs.get("attention_mask")
        self._recorder.mask(mask if mask is not None and mask.ndim == 2 else None)

    def _close(self) -> None:
        self._open.close()
        self._recorder = None
