"""Alarms on a running training: warn, keep a checkpoint, or end the run in order, from a callback.

In any TRL trainer it is two lines::

    from stablerank import watch_collapse
    watch_collapse(trainer, "alarms", action="stop")

The callback reads the log rows of the trainer; a run that is resumed reads those of its past first, so that it raises
what an unbroken run would have raised. Rules and thresholds: dynamics/alarms.py.

``checkpoint`` and ``stop`` act at the end of the generation cycle in which an alarm is raised, and both leave a
checkpoint: what a stopped run has learnt is never lost. It is kept as ``alarm-STEP`` beside the others, which TRL
deletes as newer ones come. With several processes the main one decides for all.

Left out on purpose: going back to an earlier checkpoint by itself. Which one is good is for people to say.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, ValidationInfo, field_validator
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stablerank.dynamics.alarms import BASELINE, BY_NAME, rules
from stablerank.dynamics.batch import answered, reward_length_correlation
from stablerank.dynamics.signals import SIGNALS, signals_of_log
from stablerank.dynamics.watch import Raised, Watch
from stablerank.errors import RecipeError
from stablerank.runs.record import completion_text, weighted_sum
from stablerank.runs.tables import JsonlTable
from stablerank.training.cycle import generation_cycle

Action = Literal["none", "warn", "checkpoint", "stop"]
"""In order of weight; each does what those before it do."""
WEIGHTS: dict[str, int] = {"none": 0, "warn": 1, "checkpoint": 2, "stop": 3}

OF_THE_BATCH = ("answered", "reward_length", "advantage_scale")
"""Signals that TRL's own log row lacks."""
_NAMES = ", ".join(BY_NAME)
logger = logging.getLogger(__name__)


class AlarmsSpec(BaseModel):
    """What a run does when an alarm is raised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action = Field(default="warn", description="`warn`, `checkpoint`, `stop`, or `none`: no alarms")
    actions: dict[str, Action] = Field(default={}, description="other actions for some alarms, by name")
    thresholds: dict[str, FiniteFloat] = Field(default={}, description="other thresholds for some alarms, by name")

    @field_validator("actions", "thresholds")
    @classmethod
    def _alarms_exist(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for name in given:
            if name not in BY_NAME:
                raise ValueError(f"alarms.{info.field_name} names {name!r}, which is no alarm; choose from {_NAMES}")
        return given

    def action_of(self, alarm: str) -> Action:
        """What this alarm does."""
        return self.actions.get(alarm, self.action)

    def watch(self, cap: float | None) -> Watch:
        """Fresh rules for one run, without the alarms that do nothing; ``cap`` as for `Watch`."""
        chosen = [rule for rule in rules(self.thresholds) if self.action_of(rule.alarm.name) != "none"]
        return Watch(chosen, cap)


class AlarmCallback(TrainerCallback):
    """Feed every log row to the alarms, tell what they say, and act."""

    def __init__(self, spec: AlarmsSpec, *, cap: float | None, cycle: int, table: JsonlTable | None) -> None:
        """``cap`` tokens a completion, ``cycle`` optimiser steps a generation; ``table`` takes one row an alarm."""
        self.spec, self.cap, self.cycle, self.table = spec, cap, cycle, table
        self._watch, self._due, self._is_kept = spec.watch(cap), 0, True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See again what a resumed run has seen, and forget what it raised after its checkpoint."""
        self._watch, self._due, self._is_kept = self.spec.watch(self.cap), 0, True
        for row in state.log_history:
            if "loss" in row:
                self._watch.see(row["step"], signals_of_log(row))
        if self.table is not None and state.is_world_process_zero:
            self.table.truncate(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Read this step's row."""
        if logs is None or "loss" not in logs:
            return
        for raised in self._watch.see(state.global_step, signals_of_log(logs)):
            self._due = max(self._due, WEIGHTS[self.spec.action_of(raised.alarm)])
            if state.is_world_process_zero:
                self._tell(raised)
        if state.global_step % self.cycle == 0:
            self._act(control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the checkpoint of an alarm from being deleted."""
        if state.is_world_process_zero and not self._is_kept:
            assert args.output_dir is not None
            kept, place = (Path(args.output_dir) / f"{name}-{state.global_step}" for name in ("alarm", "checkpoint"))
            # A resumed run may come by again.
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(place, kept, copy_function=_link)
        self._is_kept = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the alarms that could not have been raised."""
        # A run shorter than a start could have raised next to nothing.
        if state.is_world_process_zero and state.global_step >= BASELINE and (off := self._watch.off()):
            logger.warning("Alarms that were off: %s.", "; ".join(f"{name} ({why})" for name, why in off.items()))

    def _tell(self, raised: Raised) -> None:
        logger.warning("Step %d, alarm %s. %s %s", raised.step, raised.alarm, raised.sentence, raised.remedy)
        if self.table is not None:
            self.table.append({**asdict(raised), "action": self.spec.action_of(raised.alarm)})

    def _act(self, control: TrainerControl) -> None:
        # Some columns of the log, such as the geometry, are on the main process alone.
        due = [self._due]
        broadcast_object_list(due)
        self._due, self._is_kept = 0, due[0] < WEIGHTS["checkpoint"]
        control.should_save |= due[0] >= WEIGHTS["checkpoint"]
        control.should_training_stop |= due[0] >= WEIGHTS["stop"]


def watch_collapse(
    trainer: Trainer,
    folder: str | Path | None = None,
    *,
    action: Action = "warn",
    thresholds: Mapping[str, float] | None = None,
) -> AlarmCallback:
    """Add the alarms to any trainer; call it before ``trainer.train()``.

    With ``folder`` alarms are also rows of ``alarms.jsonl`` there. ``thresholds`` replaces some, by the name of the
    alarm. A TRL trainer that samples (GRPO, RLOO) gets the signals of its completions added to its log, and so to its
    trackers.

    Raises:
        RecipeError: no such action or alarm, or a threshold that is no number.
    """
    spec, args, table = _spec(action=action, thresholds={**(thresholds or {})}), trainer.args, None
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        table = JsonlTable(Path(folder) / "alarms.jsonl")
    if hasattr(trainer, "_logs") and hasattr(trainer, "_metrics"):
        trainer.add_callback(_BatchSignals(trainer))
    steps, iterations = getattr(args, "steps_per_generation", None), getattr(args, "num_iterations", 1)
    cycle = generation_cycle(args.gradient_accumulation_steps, steps, iterations)
    callback = AlarmCallback(spec, cap=getattr(args, "max_completion_length", None), cycle=cycle, table=table)
    trainer.add_callback(callback)
    return callback


def _spec(**given: Any) -> AlarmsSpec:
    try:
        return AlarmsSpec(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"watch_collapse refuses {where} ({first['msg']}); give one it knows.") from error


def _link(source: str, target: str) -> None:
    """A second name for one file, which costs no space; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class _BatchSignals(TrainerCallback):
    """Adds to the log what TRL's own row lacks and its kept completions say."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._missing: list[str] | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Once a generation batch, as TRL does with its own."""
        metrics = self.trainer._metrics["train"]
        if self._missing is None:
            # A trainer that logs one of them itself knows better.
            self._missing = [name for name in OF_THE_BATCH if SIGNALS[name] not in metrics]
        batches = len(metrics.get("reward", ()))
        lacking = [name for name in self._missing if len(metrics.get(SIGNALS[name], ())) < batches]
        found = signals_of_trl(self.trainer) if lacking else {}
        for name in lacking:
            metrics[SIGNALS[name]].append(found[name])


def signals_of_trl(trainer: Trainer) -> dict[str, float]:
    """Of the completions that a TRL trainer keeps of its latest generation batch, all processes together.

    ``advantage_scale`` is over completions here, because TRL gives each one advantage; lengths are those of the text.
    """
    kept = trainer._logs
    texts = [completion_text(completion) for completion in kept["completion"]]
    return {
        "answered": answered(texts),
        "reward_length": reward_length_correlation(
            _weighted(trainer), _token_counts(trainer, texts), np.arange(len(texts)) // trainer.num_generations
        ),
        "advantage_scale": float(np.std(kept["advantages"])) if kept["advantages"] else float("nan"),
    }


def _token_counts(trainer: Trainer, texts: list[str]) -> list[int]:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def _weighted(trainer: Trainer) -> list[float]:
    weights = trainer.reward_weights.tolist()
    return [weighted_sum(parts, weights) for parts in zip(*trainer._logs["rewards"].values(), strict=True)]
