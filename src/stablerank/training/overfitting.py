"""Told, or stopped, when a run begins to overfit: by a rule that was chosen on recorded runs and judged on others.

In any transformers or TRL trainer that evaluates (``eval_strategy``) it is two lines::

    from stablerank import watch_overfitting
    watch_overfitting(trainer, objective="dpo", action="stop")

At every evaluation the rule reads what the run has logged so far (dynamics/overfitting_signals.py), nothing else, so a
resumed run is told what an unbroken one would have been. It speaks once, at the first evaluation that it would stop at.

Which signal is worth listening to is a matter of measurement: docs/overfitting.md says what each rule lost on runs that
it was not chosen on.

Left out on purpose: going back to the best checkpoint, which is transformers' ``load_best_model_at_end``.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stablerank.dynamics.overfitting_signals import Signal, Signals, signals_of_history
from stablerank.dynamics.stopping import Reading, StopRule, readings, rule_of
from stablerank.errors import RecipeError
from stablerank.runs.tables import JsonlTable

Objective = Literal["clm", "dpo"]
OF_A_LOG: tuple[Signal, ...] = ("step", "held_out", "train", "grad_norm", "update_rank")
"""Signals that a trainer's own log has; the others need a run of `stablerank train`."""
OverfittingAction = Literal["none", "warn", "stop"]
SAYS: dict[Reading, str] = {
    "value": "`{signal}` is {reading:.3g}",
    "ratio": "`{signal}` is {reading:.3g} times what it was at first",
    "fall": "`{signal}` has fallen by a share {reading:.3g} of its largest",
    "rise": "`{signal}` has risen by a share {reading:.3g} of its smallest",
}
REMEDY = "Go back to the checkpoint of the lowest held-out loss; train on more examples, for less long, or more slowly."
logger = logging.getLogger(__name__)


class OverfittingSpec(BaseModel):
    """What a run does when its rule says that it begins to overfit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: OverfittingAction = Field(default="warn", description="`warn`, `stop`, or `none`: no rule")
    signal: Signal = Field(default="held_out", description="what the rule reads")


class OverfittingCallback(TrainerCallback):
    """Ask the rule at every evaluation, and act once."""

    def __init__(
        self,
        rule: StopRule,
        action: OverfittingAction,
        *,
        rows: Callable[[TrainerState], Sequence[Signals]],
        table: JsonlTable | None = None,
    ) -> None:
        """``rows`` gives the evaluations so far; ``table`` takes one row when the rule speaks."""
        self.rule, self.action, self.rows, self.table = rule, action, rows, table

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Ask, where the latest evaluation is of this step."""
        if self.action == "none" or not logs or not {"loss", "eval_loss"} & logs.keys():
            return
        rows = self.rows(state)
        place = self.rule.stops_at(rows)
        if place is None or rows[place]["step"] != state.global_step:
            return
        if state.is_world_process_zero:
            self._tell(state.global_step, readings(self.rule.signal, self.rule.reading, rows)[place])
        if self.action == "stop":
            control.should_save = control.should_training_stop = True

    def _tell(self, step: int, reading: float) -> None:
        sentence = (
            f"The run begins to overfit: {SAYS[self.rule.reading].format(signal=self.rule.signal, reading=reading)}, "
            f"{self.rule.direction} {self.rule.threshold:.3g} (evaluations in a row: {self.rule.patience})."
        )
        logger.warning("Step %d, alarm overfitting. %s %s", step, sentence, REMEDY)
        if self.table is not None:
            self.table.append(
                {
                    **{"step": step, "alarm": "overfitting", "signal": self.rule.signal, "value": reading},
                    **{"threshold": self.rule.threshold, "sentence": sentence, "remedy": REMEDY, "action": self.action},
                }
            )


def watch_overfitting(
    trainer: Trainer, *, objective: Objective, signal: Signal = "held_out", action: OverfittingAction = "warn"
) -> OverfittingCallback:
    """Add the rule to any trainer that evaluates; call it before ``trainer.train()``.

    Args:
        trainer: transformers' or TRL's.
        objective: ``clm`` for a loss a token, ``dpo`` for a loss a pair, on whose runs the rule was chosen.
        signal: one that a trainer logs; ``update_rank`` needs `watch_geometry` on the same trainer.
        action: ``warn``; ``stop`` also saves a checkpoint and ends training.

    Raises:
        RecipeError: no such objective, action or signal, or a trainer that never evaluates.
    """
    for name, given, known in (
        ("objective", objective, get_args(Objective)),
        ("signal", signal, OF_A_LOG),
        ("action", action, get_args(OverfittingAction)),
    ):
        if given not in known:
            raise RecipeError(f"watch_overfitting refuses {name}={given!r}; choose from {', '.join(known)}.")
    if trainer.args.eval_strategy == "no":
        raise RecipeError("watch_overfitting needs evaluations, but eval_strategy is 'no'; set it to 'steps'.")
    callback = OverfittingCallback(
        rule_of(objective, signal), action, rows=lambda state: signals_of_history(state.log_history)
    )
    trainer.add_callback(callback)
    return callback
