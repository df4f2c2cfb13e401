"""A run of GRPO: `GRPOSession`. Held-out accuracy is that of greedy answers to problems nobody trained on."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from stablerank.dynamics.batch import ANSWER
from stablerank.evaluation.held_out import HeldOut, evaluate_policy
from stablerank.runs.folder import RunFolder
from stablerank.training.alarms import AlarmCallback
from stablerank.training.callbacks import MetricsCallback
from stablerank.training.closing import write_summary
from stablerank.training.grpo import build_trainer, grpo_config
from stablerank.training.policy import calibrated, check_rows
from stablerank.training.recipe import Recipe
from stablerank.training.rewards import build_rewards
from stablerank.training.session_base import Row, Session
from stablerank.training.zero import explain_zero

ON_THE_WAY = ("curve", "peak")
"""Phases that run inside training's own progress bar."""


class GRPOSession(Session[Recipe]):
    """Rewards, held-out problems and their judge beside what every session has."""

    judges_bare_policy = True
    progress_key = "reward"

    def _config(self, checkpoints: str) -> Any:
        return grpo_config(self.recipe, checkpoints)

    def _prepare(self) -> None:
        recipe, spec = self.recipe, self.recipe.evaluation
        self.rewards = build_rewards(recipe, self.tokenizer)
        self.rows = recipe.data.train_rows()
        self.judge = recipe.judge.build(self.tokenizer)
        self.held_out = recipe.data.held_out_rows(spec.split, spec.problems)
        self.curve = recipe.data.held_out_rows("validation", spec.curve_problems) if spec.every else []
        check_rows(recipe, self.model, self.tokenizer, self.rows, [*self.held_out, *self.curve])

    def _build(self, folder: RunFolder, callbacks: list[TrainerCallback]) -> Trainer:
        trainer = build_trainer(
            self.recipe,
            self.config,
            calibrated(self.recipe.adapter, self.model, self.tokenizer, self.rows),
            self.tokenizer,
            self.rewards,
            self.rows,
            callbacks,
            folder.rollouts.write,
        )
        explain_zero(trainer, answer=ANSWER if self.recipe.judge.kind == "math_verify" else None)
        return trainer

    def _curve(self, folder: RunFolder, metrics: MetricsCallback) -> list[TrainerCallback]:
        return super()._curve(folder, metrics) if self.curve else []

    def _watchers(self, folder: RunFolder) -> list[TrainerCallback]:
        cap = self.recipe.loss_settings["max_completion_length"]
        return [AlarmCallback(self.recipe.alarms, cap=cap, cycle=self.recipe.cycle, table=folder.alarms)]

    def _evaluate(self, folder: RunFolder, model: nn.Module, phase: str, step: int) -> None:
        spec, rows = self.recipe.evaluation, self.curve if phase == "curve" else self.held_out
        shown = phase not in ON_THE_WAY
        if shown:
            self.progress.stage(f"evaluation {phase}", len(rows))
        longest = spec.max_new_tokens or self.recipe.loss_settings["max_completion_length"]
        with self._autocast():
            result = evaluate_policy(
                model,
                self.tokenizer,
                rows,
                self.judge,
                max_new_tokens=longest,
                batch_size=spec.batch_size,
                pass_reward=spec.pass_reward,
                progress=(lambda done: self.progress.advance(done, "")) if shown else None,
            )
        if phase != "curve":
            folder.rollouts.write(step, _rollout_rows(rows, result, phase, step), part=phase)
        folder.evaluations.append(
            {
                "step": step,
                "phase": phase,
                "split": "validation" if phase == "curve" else spec.split,
                "pass_at_1": result.interval.value,
                "low": result.interval.low,
                "high": result.interval.high,
                "problems": result.interval.problems,
                "mean_length": result.mean_length,
                "truncated": result.truncated_share,
            }
        )
        if phase == "curve" and spec.peak and _is_new_high(folder):
            self._evaluate(folder, model, "peak", step)

    def _summarise(self, folder: RunFolder) -> None:
        write_summary(folder, self.recipe)


def _is_new_high(folder: RunFolder) -> bool:
    """Whether the newest point of the curve lies above all before it."""
    *before, newest = (row["pass_at_1"] for row in folder.evaluations.rows() if row["phase"] == "curve")
    return newest > max(before, default=-1.0)


def _rollout_rows(rows: Sequence[Row], result: HeldOut, phase: str, step: int) -> list[Row]:
    return [
        {
            "step": step,
            "phase": phase,
            "row": index,
            "group": index,
            "prompt": str(row["prompt"]),
            "completion": completion.text,
            "answer": None if row.get("answer") is None else str(row["answer"]),
            "reward": reward,
            "advantage": None,
            "tokens": completion.tokens,
            "truncated": completion.truncated,
        }
        for index, (row, completion, reward) in enumerate(zip(rows, result.completions, result.rewards, strict=True))
    ]
