"""What a run of any objective goes through: `Session`.

Stages, each leaving its result in the run folder before the next begins: held-out evaluation of the untouched policy,
training with checkpoints, held-out evaluation of the trained policy, model, summary. A resume cuts the tables back to
the newest whole checkpoint and repeats what came after it, with the same random state, so the tables end equal to
those of a run that was never interrupted (same seed, machine and thread count).
"""

import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import huggingface_hub.constants
import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoConfig, PrinterCallback, Trainer, TrainerCallback, set_seed

from stablerank.adapters.counts import parameter_counts
from stablerank.adapters.specs import AdapterSpec
from stablerank.errors import RecipeError
from stablerank.probes.spectral_condition import BlockCondition
from stablerank.runs.folder import RunFolder, claim
from stablerank.runs.manifest import code_state, device_state, file_hashes, package_versions
from stablerank.training.callbacks import CheckpointCallback, CurveCallback, MetricsCallback, ProgressCallback
from stablerank.training.closing import save_model
from stablerank.training.condition import ConditionCallback
from stablerank.training.landing_callback import LandingCallback
from stablerank.training.policy import load_policy
from stablerank.training.routing import route_trainer
from stablerank.training.sections import GeometrySpec, RunRecipe
from stablerank.training.telemetry import GeometryCallback, initial_weights, scalar_logger

Row = dict[str, Any]
RecipeT = TypeVar("RecipeT", bound=RunRecipe)


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


class Session(ABC, Generic[RecipeT]):
    """The state that the stages of one run share, and their order. An objective fills in what it does at each."""

    judges_bare_policy: ClassVar[bool]
    """Whether the evaluation before training can do without the trainer."""
    progress_key: ClassVar[str]
    """The number of the log row that stands beside the progress bar."""

    def __init__(self, recipe: RecipeT, progress: Progress) -> None:
        # For a program that imported TRL before us, and so before our environment variable.
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
        self.recipe, self.progress = recipe, progress
        self.state = PartialState(cpu=not torch.cuda.is_available())
        if (every := recipe.geometry.blocks_every) and self.state.num_processes > 1:
            raise RecipeError(
                f"geometry.blocks_every={every} measures the gradient of one process, but {self.state.num_processes} "
                "train; set it to 0, or train with one process."
            )
        self.config = self._config(str(Path(recipe.output) / "checkpoints"))
        set_seed(recipe.seed)
        self.model, self.tokenizer = load_policy(recipe)
        self.trainer: Trainer | None = None
        self._prepare()

    @abstractmethod
    def _config(self, checkpoints: str) -> Any:
        """TRL's configuration."""

    @abstractmethod
    def _prepare(self) -> None:
        """Load data and whatever judges, and refuse what does not fit; nothing is written yet."""

    @abstractmethod
    def _build(self, folder: RunFolder, callbacks: list[TrainerCallback]) -> Trainer:
        """TRL's trainer with the adapter on it, its reference checked."""

    @abstractmethod
    def _evaluate(self, folder: RunFolder, model: nn.Module, phase: str, step: int) -> None:
        """Write a held-out evaluation of the policy."""

    @abstractmethod
    def _summarise(self, folder: RunFolder) -> None:
        """Write the summary, which marks a finished run."""

    def start(self, overrides: Sequence[str]) -> RunFolder:
        """Run in a new folder."""
        folder = RunFolder(Path(self.recipe.output))
        if self.state.is_main_process:
            claim(folder.path, self._manifest(overrides))
        self.state.wait_for_everyone()
        return self._run(folder, checkpoint=None)

    def go_on(self, folder: RunFolder) -> RunFolder:
        """Take the run up at its newest whole checkpoint."""
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
        is_new = self.state.is_main_process and not _has_phase(folder, "before")
        if is_new and self.judges_bare_policy:
            self._evaluate(folder, self.model, "before", 0)
        self.state.wait_for_everyone()
        self.trainer = trainer = self._trainer(folder)
        if is_new and not self.judges_bare_policy:
            self._evaluate(folder, self._policy(trainer), "before", 0)
        if not self.judges_bare_policy:
            # That evaluation drew from the generator that orders the examples, and a resumed run does without it.
            set_seed(self.recipe.seed)
        last_step = self._train(trainer, folder, checkpoint)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            if not _has_phase(folder, "after"):
                self._evaluate(folder, self._policy(trainer), "after", last_step)
            save_model(folder, self.recipe, self._policy(trainer), self.tokenizer)
            folder.geometry.compact()
            folder.rollouts.compact()
            self._summarise(folder)
        self.state.wait_for_everyone()
        return folder

    def _policy(self, trainer: Trainer) -> Any:
        return trainer.accelerator.unwrap_model(trainer.model)

    def _train(self, trainer: Trainer, folder: RunFolder, checkpoint: Path | None) -> int:
        """Train what is left to train; the last step that the policy then has behind it."""
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if checkpoint is not None and (step >= self.recipe.max_steps or _is_stopped(folder)):
            trainer._load_from_checkpoint(str(checkpoint))
            return step
        self.progress.stage("training", self.recipe.max_steps)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return int(trainer.state.global_step)

    def _trainer(self, folder: RunFolder) -> Trainer:
        geometry, blocks = self._telemetry(folder), self._blocks(folder)
        metrics = MetricsCallback(folder, geometry, blocks)
        callbacks: list[TrainerCallback] = [LandingCallback()] if _is_polar(self.recipe.adapter) else []
        callbacks += [*([geometry] if geometry else []), *([blocks] if blocks else [])]
        callbacks += [*self._curve(folder, metrics), metrics, CheckpointCallback()]
        callbacks += [*self._watchers(folder), ProgressCallback(self._advance)]
        # The adapter is drawn from this seed, whatever the evaluation before it consumed.
        set_seed(self.recipe.seed)
        trainer = self._build(folder, callbacks)
        trainer.remove_callback(PrinterCallback)
        self._look_before(trainer, geometry)
        route_trainer(trainer, self.recipe.optimiser, folder)
        return trainer

    def _look_before(self, trainer: Trainer, geometry: GeometryCallback | None) -> None:
        """Remember of the untouched policy what later readings are held against."""
        if geometry is not None:
            geometry.initial = initial_weights(trainer.model)
            geometry.log_scalar = scalar_logger(trainer)

    def _curve(self, folder: RunFolder, metrics: MetricsCallback) -> list[TrainerCallback]:
        every = self.recipe.evaluation.every
        if not every:
            return []
        return [CurveCallback(every, lambda model, step: self._evaluate(folder, model, "curve", step), metrics)]

    def _watchers(self, folder: RunFolder) -> list[TrainerCallback]:
        """What else an objective puts on its trainer, after the checkpoint is written."""
        return []

    def _telemetry(self, folder: RunFolder) -> GeometryCallback | None:
        if not self.recipe.geometry.every:
            return None
        return GeometryCallback(
            lambda step, rows: folder.geometry.write(step, [asdict(row) for row in rows]),
            **self.recipe.geometry.model_dump(include=set(GeometrySpec.model_fields) - {"blocks_every"}),
            run=folder.path.name,
            seed=self.recipe.seed,
        )

    def _blocks(self, folder: RunFolder) -> ConditionCallback | None:
        """Inputs and gradients of every block, in a part of the table of their own.

        Those of a step are measured before it is taken, and so after the checkpoint that a resume at that step starts
        from: it writes the same part again.
        """
        every = self.recipe.geometry.blocks_every
        if not every:
            return None

        def sink(step: int, blocks: list[BlockCondition]) -> None:
            folder.geometry.write(step, [asdict(row) for row in callback.rows], part="blocks")

        callback = ConditionCallback(sink, every=every, run=folder.path.name)
        return callback

    def _advance(self, step: int, logs: dict[str, Any]) -> None:
        self.progress.advance(step, f"{self.progress_key} {logs.get(self.progress_key, float('nan')):.2f}")

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


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return PartialState(cpu=not torch.cuda.is_available()).is_main_process
