"""One training run from recipe to summary, and the same run taken up again after any interruption.

Stages, each leaving its result in the run folder before the next begins: held-out evaluation of the untouched policy,
training with checkpoints on whole generation cycles, held-out evaluation of the trained policy, model, summary. A
resume cuts the tables back to the newest whole checkpoint and repeats what came after it, with the same random state,
so the tables end equal to those of a run that was never interrupted (same seed, machine and thread count).
"""

import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub.constants
import torch
from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from stablerank.adapters.counts import parameter_counts
from stablerank.adapters.specs import AdapterSpec
from stablerank.dynamics.batch import ANSWER
from stablerank.evaluation.held_out import HeldOut, evaluate_policy
from stablerank.runs.folder import RunFolder, claim
from stablerank.runs.manifest import code_state, device_state, file_hashes, package_versions
from stablerank.training.alarms import AlarmCallback
from stablerank.training.callbacks import (
    CheckpointCallback,
    CurveCallback,
    MetricsCallback,
    ProgressCallback,
)
from stablerank.training.closing import save_model, write_summary
from stablerank.training.grpo import CreditGRPOTrainer, build_trainer, grpo_config
from stablerank.training.landing_callback import LandingCallback
from stablerank.training.policy import calibrated, check_rows, load_policy
from stablerank.training.recipe import Recipe, parse_recipe
from stablerank.training.rewards import build_rewards
from stablerank.training.telemetry import GeometryCallback, initial_weights
from stablerank.training.zero import explain_zero

Row = dict[str, Any]


class Progress(Protocol):
    """Where a run says how far it is; the command line draws bars from it."""

    def stage(self, name: str, total: int) -> None:
        """A new stage of ``total`` units begins."""

    def advance(self, done: int, note: str) -> None:
        """``done`` units of the stage are behind us."""


class Silence:
    """Progress for scripts and tests: none."""

    def stage(self, name: str, total: int) -> None:
        """Say nothing."""

    def advance(self, done: int, note: str) -> None:
        """Say nothing."""


def start(recipe: Recipe, progress: Progress | None = None, overrides: Sequence[str] = ()) -> RunFolder:
    """Run a recipe in a new folder.

    Raises:
        StablerankError: recipe, model, data or folder unusable; the folder is claimed only after all were checked.
    """
    return _Session(recipe, progress or Silence()).start(overrides)


def resume(path: str | Path, progress: Progress | None = None) -> RunFolder:
    """Take up an interrupted run where its newest whole checkpoint stands; a finished run is returned as it is."""
    folder = RunFolder(Path(path))
    manifest = folder.manifest()
    if folder.is_complete():
        return folder
    recipe = parse_recipe({**manifest["recipe"], "output": str(folder.path)}, str(folder.manifest_path))
    return _Session(recipe, progress or Silence()).go_on(folder)


class _Session:
    """The state that the stages of one run share."""

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        # For a program that imported TRL before us, and so before our environment variable.
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
        self.recipe, self.progress = recipe, progress
        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.config = grpo_config(recipe, str(Path(recipe.output) / "checkpoints"))
        set_seed(recipe.seed)
        self.model, self.tokenizer = load_policy(recipe)
        self.rewards = build_rewards(recipe, self.tokenizer)
        self.rows = recipe.data.train_rows()
        spec = recipe.evaluation
        self.judge = recipe.judge.build(self.tokenizer)
        self.held_out = recipe.data.held_out_rows(spec.split, spec.problems)
        self.curve = recipe.data.held_out_rows("validation", spec.curve_problems) if spec.every else []
        check_rows(recipe, self.model, self.tokenizer, [*self.rows, *self.held_out, *self.curve])

    def start(self, overrides: Sequence[str]) -> RunFolder:
        folder = RunFolder(Path(self.recipe.output))
        if self.state.is_main_process:
            claim(folder.path, self._manifest(overrides))
        self.state.wait_for_everyone()
        return self._run(folder, checkpoint=None)

    def go_on(self, folder: RunFolder) -> RunFolder:
        checkpoints = folder.complete_checkpoints()
        step, checkpoint = checkpoints[-1] if checkpoints else (0, None)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            folder.truncate(step)
            whole = {path for _, path in checkpoints}
            for debris in set(folder.checkpoints_path.glob("checkpoint-*")) - whole:
                shutil.rmtree(debris)
        self.state.wait_for_everyone()
        return self._run(folder, checkpoint)

    def _run(self, folder: RunFolder, checkpoint: Path | None) -> RunFolder:
        if self.state.is_main_process and not _has_phase(folder, "before"):
            self._evaluate(folder, self.model, "before", 0)
        self.state.wait_for_everyone()
        trainer = self._trainer(folder)
        last_step = self._train(trainer, folder, checkpoint)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            policy = trainer.accelerator.unwrap_model(trainer.model)
            if not _has_phase(folder, "after"):
                self._evaluate(folder, policy, "after", last_step)
            save_model(folder, self.recipe, policy, self.tokenizer)
            folder.geometry.compact()
            folder.rollouts.compact()
            write_summary(folder, self.recipe)
        self.state.wait_for_everyone()
        return folder

    def _train(self, trainer: CreditGRPOTrainer, folder: RunFolder, checkpoint: Path | None) -> int:
        """Train what is left to train; the last step that the policy then has behind it."""
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if checkpoint is not None and (step >= self.recipe.max_steps or _is_stopped(folder)):
            trainer._load_from_checkpoint(str(checkpoint))
            return step
        self.progress.stage("training", self.recipe.max_steps)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return int(trainer.state.global_step)

    def _trainer(self, folder: RunFolder) -> CreditGRPOTrainer:
        geometry = self._telemetry(folder)
        metrics = MetricsCallback(folder, geometry)
        curve = CurveCallback(
            self.recipe.evaluation.every, lambda model, step: self._evaluate(folder, model, "curve", step), metrics
        )
        callbacks: list[TrainerCallback] = [LandingCallback()] if _is_polar(self.recipe.adapter) else []
        callbacks += [*([geometry] if geometry else []), *([curve] if self.curve else [])]
        callbacks += [metrics, CheckpointCallback(), self._alarms(folder), ProgressCallback(self._advance)]
        # The adapter is drawn from this seed, whatever the evaluation before it consumed.
        set_seed(self.recipe.seed)
        trainer = build_trainer(
            self.recipe,
            self.config,
            calibrated(self.recipe, self.model, self.tokenizer, self.rows),
            self.tokenizer,
            self.rewards,
            self.rows,
            callbacks,
            folder.rollouts.write,
        )
        trainer.remove_callback(PrinterCallback)
        explain_zero(trainer, answer=ANSWER if self.recipe.judge.kind == "math_verify" else None)
        if geometry is not None:
            geometry.initial = initial_weights(trainer.model)
            geometry.log_scalar = trainer.log_scalar
        return trainer

    def _telemetry(self, folder: RunFolder) -> GeometryCallback | None:
        if not self.recipe.geometry.every:
            return None
        return GeometryCallback(
            lambda step, rows: folder.geometry.write(step, [asdict(row) for row in rows]),
            **self.recipe.geometry.model_dump(),
            run=folder.path.name,
            seed=self.recipe.seed,
        )

    def _alarms(self, folder: RunFolder) -> AlarmCallback:
        cap = self.recipe.loss_settings["max_completion_length"]
        return AlarmCallback(self.recipe.alarms, cap=cap, cycle=self.recipe.cycle, table=folder.alarms)

    def _advance(self, step: int, logs: dict[str, Any]) -> None:
        self.progress.advance(step, f"reward {logs.get('reward', float('nan')):.2f}")

    def _evaluate(self, folder: RunFolder, model: PreTrainedModel, phase: str, step: int) -> None:
        spec, rows = self.recipe.evaluation, self.curve if phase == "curve" else self.held_out
        if phase != "curve":
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
                progress=None if phase == "curve" else lambda done: self.progress.advance(done, ""),
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

    def _autocast(self) -> Any:
        """What trains in place in bfloat16 trains under autocast, so it is evaluated under it."""
        if self.recipe.adapter.in_place and self.recipe.model.dtype == "bfloat16":
            return torch.autocast(self.state.device.type, torch.bfloat16)
        return nullcontext()

    def _manifest(self, overrides: Sequence[str]) -> dict[str, Any]:
        # From the stored configuration: added biases have changed that of the model.
        stored = AutoConfig.from_pretrained(self.model.config._name_or_path)
        trainable, total = parameter_counts(self.recipe.adapter, stored)
        return {
            "recipe": self.recipe.resolved(),
            "arguments": sys.argv,
            "overrides": list(overrides),
            "commit": code_state(),
            "packages": package_versions(),
            "device": device_state(),
            "seeds": {"recipe": self.recipe.seed},
            "hashes": file_hashes(Path(self.model.config._name_or_path)),
            "trainer_config": self.config.to_dict(),
            "parameters": {"trainable": trainable, "total": total},
        }


def _is_polar(spec: AdapterSpec) -> bool:
    config = spec.peft_config()
    return config is not None and (config.spectral or {}).get("method") == "polar"


def _has_phase(folder: RunFolder, phase: str) -> bool:
    return any(row["phase"] == phase for row in folder.evaluations.rows())


def _is_stopped(folder: RunFolder) -> bool:
    """Whether an alarm has ended the run, at its newest checkpoint: alarms after that are cut off before."""
    return any(row["action"] == "stop" for row in folder.alarms.rows())


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


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return PartialState(cpu=not torch.cuda.is_available()).is_main_process
