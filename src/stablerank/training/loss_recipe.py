"""What the recipes of runs with a held-out loss share."""

from pydantic import model_validator

from stablerank.dynamics.overfitting_signals import OF_EFFECTS, OF_UPDATES
from stablerank.evaluation.specs import LossEvaluationSpec
from stablerank.training.overfitting import OverfittingSpec
from stablerank.training.sections import LossGeometrySpec, RunRecipe


class LossRecipe(RunRecipe):
    """A run of language modelling or preferences."""

    geometry: LossGeometrySpec = LossGeometrySpec()
    evaluation: LossEvaluationSpec = LossEvaluationSpec()
    overfitting: OverfittingSpec = OverfittingSpec()

    @model_validator(mode="after")
    def _overfitting_has_something_to_read(self) -> "LossRecipe":
        signal = self.overfitting.signal
        if self.overfitting.action == "none":
            return self
        if self.overfitting.action == "stop" and not self.evaluation.every:
            raise ValueError(
                "overfitting.action=stop asks at every point of the curve, but evaluation.every is 0; set it to some "
                "steps"
            )
        if signal in OF_UPDATES and not self.geometry.every:
            raise ValueError(f"overfitting.signal={signal} is measured with the geometry; set geometry.every above 0")
        if signal in OF_EFFECTS and not (self.geometry.every and self.geometry.effects):
            raise ValueError(f"overfitting.signal={signal} is measured with geometry.effects; turn it on")
        if signal in OF_UPDATES and self.adapter.kind == "bitfit":
            raise ValueError(
                f"overfitting.signal={signal} needs trained matrices, and bitfit trains vectors; choose held_out"
            )
        return self
