"""What watches a training run and writes its folder: metrics, checkpoints, the held-out curve, the progress bar.

Order matters within a step: the curve and the telemetry come first (``on_step_end``), then the log row (``on_log``),
then the checkpoint (``on_save``), so that a complete checkpoint implies complete tables up to its step.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stablerank.runs.atomic import write_json
from stablerank.runs.folder import COMPLETE, RunFolder
from stablerank.training.condition import ConditionCallback
from stablerank.training.telemetry import GeometryCallback

WALL_CLOCK = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second")
"""Log keys that no two runs share; they stay out of the metrics table."""


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, plus the peak allocation of its accelerator."""
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return resident + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


class MetricsCallback(TrainerCallback):
    """One metrics row and one timings row a step."""

    def __init__(self, folder: RunFolder, telemetry: GeometryCallback | None, blocks: ConditionCallback | None) -> None:
        self.folder, self.telemetry, self.blocks = folder, telemetry, blocks
        self.evaluation_seconds = 0.0
        self._mark = (0.0, 0.0, 0.0, 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._mark = self._clocks()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write this step's rows."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        kept = {key: value for key, value in logs.items() if key not in WALL_CLOCK}
        self.folder.metrics.append({"step": state.global_step, **kept})
        before, self._mark = self._mark, self._clocks()
        wall, telemetry, blocks, evaluation = (now - then for now, then in zip(self._mark, before, strict=True))
        self.folder.timings.append(
            {
                "step": state.global_step,
                "step_seconds": round(wall - evaluation, 6),
                "telemetry_seconds": round(telemetry, 6),
                "blocks_seconds": round(blocks, 6),
                "evaluation_seconds": round(evaluation, 6),
                "peak_memory_bytes": peak_memory_bytes(),
            }
        )

    def _clocks(self) -> tuple[float, float, float, float]:
        """Seconds so far: on the wall, in telemetry, in spectra of blocks, in held-out evaluation."""
        updates, blocks = (part.seconds if part else 0.0 for part in (self.telemetry, self.blocks))
        return time.perf_counter(), updates, blocks, self.evaluation_seconds


class CurveCallback(TrainerCallback):
    """Held-out pass rate on the validation split every ``every`` steps, outside the clock of training."""

    def __init__(self, every: int, evaluate: Callable[[torch.nn.Module, int], None], metrics: MetricsCallback) -> None:
        self.every, self.evaluate, self.metrics = every, evaluate, metrics

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate when due, on the main process only."""
        if state.global_step % self.every == 0 and state.is_world_process_zero:
            started = time.perf_counter()
            model = kwargs["model"]
            self.evaluate(getattr(model, "module", model), state.global_step)
            self.metrics.evaluation_seconds += time.perf_counter() - started


class CheckpointCallback(TrainerCallback):
    """Mark each checkpoint once it is whole, and ask for one at the last step."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint after the last step."""
        if state.global_step == state.max_steps:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the marker: everything of this checkpoint is on disk."""
        if state.is_world_process_zero:
            assert args.output_dir is not None
            place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(place / COMPLETE, {"step": state.global_step})


class ProgressCallback(TrainerCallback):
    """Tell a progress bar the step and the latest reward."""

    def __init__(self, advance: Callable[[int, dict[str, Any]], None]) -> None:
        self.advance = advance

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Advance by one logged step."""
        if state.is_world_process_zero and logs and "loss" in logs:
            self.advance(state.global_step, logs)
