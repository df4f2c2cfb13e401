"""What runs with a held-out loss share: `LossSession`, on which language modelling and preferences are built.

Before, after and on the way, the held-out examples and the first examples of training are read once each. Every
example's numbers go to ``examples/``, so that differences are paired by example; their summary is a row of
``evaluations.jsonl`` whose names end in ``_train`` for the training examples. A held-out loss that rises while the one
of training falls is overfitting, and both are read in the same way: no dropout, no augmentation, whole batches. Beside
them stand ``kl``, how far the policy has moved from the untouched one on held-out texts, and what it has forgotten of
others.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerState

from stablerank.dynamics.overfitting_signals import OF_EFFECTS, OF_UPDATES, Signals, signals_of
from stablerank.dynamics.stopping import rule_of
from stablerank.evaluation.drift import Drift
from stablerank.evaluation.statistics import Interval
from stablerank.evaluation.text_probe import TextProbe
from stablerank.probes.effects import EffectPanel
from stablerank.runs.folder import RunFolder
from stablerank.training.closing import write_loss_summary
from stablerank.training.language_model.recipe import LanguageModelRecipe
from stablerank.training.overfitting import OverfittingCallback
from stablerank.training.policy import calibrated
from stablerank.training.preference.recipe import PreferenceRecipe
from stablerank.training.sections import trl_arguments
from stablerank.training.session_base import Row, Session
from stablerank.training.telemetry import GeometryCallback

LossRecipeT = TypeVar("LossRecipeT", LanguageModelRecipe, PreferenceRecipe)
Batch = Mapping[str, Tensor]


class LossSession(Session[LossRecipeT], Generic[LossRecipeT]):
    """Held-out losses by example. An objective says what it measures of one, and which numbers that makes."""

    judges_bare_policy = False  # the trainer tokenises
    progress_key = "loss"
    sides: ClassVar[int] = 1
    """Texts of an example; those that come first in a batch are what the model should say."""

    @abstractmethod
    def _measured(self, model: nn.Module, batches: Iterator[Batch]) -> list[Row]:
        """One row of numbers an example."""

    @abstractmethod
    def _numbers(self, rows: Sequence[Row]) -> dict[str, Interval]:
        """What a part's rows come to; ``loss`` is among them."""

    @abstractmethod
    def _trainer_of(self, arguments: dict[str, Any]) -> Trainer:
        """The objective's TRL trainer."""

    def _prepare(self) -> None:
        data, spec = self.recipe.data, self.recipe.evaluation
        self.rows = data.train_rows()
        self.parts = {
            spec.split: data.held_out_rows(spec.split, spec.examples),
            "curve": data.held_out_rows("validation", spec.curve_examples),
            "train": self.rows[: spec.curve_examples],
        }
        self.forgetting = self._forgetting()

    def _forgetting(self) -> TextProbe | None:
        spec = self.recipe.evaluation
        if spec.forgetting is None:
            return None
        rows = spec.forgetting.held_out_rows(spec.split, spec.curve_examples)
        return TextProbe(self.tokenizer, rows, self.recipe.loss_settings["max_length"], spec.batch_size)

    def _build(self, folder: RunFolder, callbacks: list[TrainerCallback]) -> Trainer:
        parts = {name: Dataset.from_list(rows) for name, rows in self.parts.items()}
        model = calibrated(self.recipe.adapter, self.model, self.tokenizer, self.rows)
        return self._trainer_of(
            {
                "model": model,
                "args": self.config,
                "train_dataset": Dataset.from_list(self.rows),
                "eval_dataset": parts,
                "processing_class": self.tokenizer,
                "peft_config": None if isinstance(model, PeftModel) else self.recipe.adapter.peft_config(),
                "callbacks": callbacks,
            }
        )

    def _watchers(self, folder: RunFolder) -> list[TrainerCallback]:
        spec, every = self.recipe.overfitting, self.recipe.evaluation.every
        if spec.action == "none" or not every:
            return []
        rule = rule_of(self.recipe.objective, spec.signal)
        measured = spec.signal in (*OF_UPDATES, *OF_EFFECTS)

        def rows(state: TrainerState) -> list[Signals]:
            if state.global_step % every:
                return []
            geometry = folder.geometry.rows() if measured else ()
            return signals_of(folder.evaluations.rows(), geometry, folder.metrics.rows())

        return [OverfittingCallback(rule, spec.action, rows=rows, table=folder.alarms)]

    def _look_before(self, trainer: Trainer, geometry: GeometryCallback | None) -> None:
        super()._look_before(trainer, geometry)
        texts = list(self._texts(trainer))
        self.drift = Drift(trainer.model, texts)
        if geometry is not None and self.recipe.geometry.effects:
            geometry.panel = EffectPanel(trainer.model, texts)

    def _texts(self, trainer: Trainer) -> Iterator[list[int]]:
        """Token ids of the held-out texts of the curve."""
        for batch in self._batches(trainer, "curve"):
            count = len(batch["input_ids"]) // self.sides
            rows = zip(batch["input_ids"][:count], batch["attention_mask"][:count], strict=True)
            yield from (ids_L[mask_L.bool()].tolist() for ids_L, mask_L in rows)

    def _config(self, checkpoints: str) -> Any:
        return trl_arguments(self.recipe, checkpoints)

    def _train(self, trainer: Trainer, folder: RunFolder, checkpoint: Path | None) -> int:
        if rows := folder.metrics.rows():
            # TRL 1.16 counts tokens outside its checkpoints, and a resumed run would begin at zero.
            trainer._total_train_tokens = rows[-1]["num_tokens"]
        return super()._train(trainer, folder, checkpoint)

    def _evaluate(self, folder: RunFolder, model: nn.Module, phase: str, step: int) -> None:
        split = self.recipe.evaluation.split
        assert self.trainer is not None
        row: Row = {"step": step, "phase": phase, "split": "validation" if phase == "curve" else split}
        with self._autocast():
            for part, ending in (("curve" if phase == "curve" else split, ""), ("train", "_train")):
                found = self._measured(model, self._batches(self.trainer, part))
                named = [{"step": step, "phase": phase, "part": part, "row": at, **one} for at, one in enumerate(found)]
                folder.examples.write(step, named, part=f"{phase}-{part}")
                for name, value in self._numbers(found).items():
                    row |= _columns(f"{name}{ending}", value)
            row |= _columns("kl", self.drift.kl(model))
            row |= _columns("loss_forgetting", self.forgetting.loss(model)) if self.forgetting else {}
        folder.evaluations.append(row)

    def _batches(self, trainer: Trainer, part: str) -> Iterator[Batch]:
        rows: Any = trainer.eval_dataset[part]
        size = self.recipe.evaluation.batch_size
        yield from DataLoader(rows, batch_size=size, collate_fn=trainer.data_collator)

    def _summarise(self, folder: RunFolder) -> None:
        write_loss_summary(folder, self.recipe)


def _columns(name: str, found: Interval) -> Row:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
