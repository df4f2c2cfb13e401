"""The rules a plan may state: what must be true of the results, as data.

Contract: every rule reads one ``column`` of the result table and names the arms it needs (`arms_read`). A rule says
what would count; `stablerank.studies.inference` alone says how it is tested. A rule that cannot mean anything (an arm
held against itself, a rate without a bound) is refused where it is written.

Left out on purpose: free expressions over columns. A rule that is not one of these six has no proven error rate.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ArmName = Annotated[str, Field(min_length=1)]
ArmNames = tuple[ArmName, ...]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(min_length=1, description="the column of the result table that is judged")

    @property
    def arms_read(self) -> ArmNames:
        """Every arm whose cells the rule needs, in the rule's order."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _every_arm_is_named_once(self) -> "_Rule":
        for arm in self.arms_read:
            if self.arms_read.count(arm) > 1:
                raise ValueError(f"arm {arm!r} is named twice in one rule; hold it against another arm")
        return self


class _Contrast(_Rule):
    arm: ArmName
    against: ArmName | None = Field(default=None, description="the other arm, paired by seed and unit")
    constant: float = Field(default=0.0, allow_inf_nan=False, description="the number that stands for another arm")

    @property
    def arms_read(self) -> ArmNames:
        """The arm, then the one it is held against."""
        return (self.arm,) if self.against is None else (self.arm, self.against)

    @model_validator(mode="after")
    def _one_thing_is_held_against(self) -> "_Contrast":
        if self.against is not None and self.constant:
            raise ValueError(f"arm {self.arm!r} is held against {self.against!r} and {self.constant}; keep one of them")
        return self


class Difference(_Contrast):
    """The mean of ``arm - against`` (or ``- constant``) lies beyond ``margin``, in the units of the column."""

    kind: Literal["difference"] = "difference"
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    direction: Literal["greater", "less"] = "greater"


class Equivalence(_Contrast):
    """The mean of ``arm - against`` (or ``- constant``) lies within ``-margin .. margin``."""

    kind: Literal["equivalence"] = "equivalence"
    margin: float = Field(gt=0, allow_inf_nan=False)


class Trend(_Rule):
    """The column moves one way along ``arms``."""

    kind: Literal["trend"] = "trend"
    arms: ArmNames = Field(min_length=3)
    direction: Literal["increasing", "decreasing"] = "increasing"

    @property
    def arms_read(self) -> ArmNames:
        """The arms along the trend."""
        return self.arms


class Ordering(_Rule):
    """Each of ``arms`` (best first) lies above the next by more than ``margin``, in the units of the column."""

    kind: Literal["ordering"] = "ordering"
    arms: ArmNames = Field(min_length=2)
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def arms_read(self) -> ArmNames:
        """The arms, best first."""
        return self.arms


class Rate(_Rule):
    """The share of ones in a 0/1 column keeps the stated bounds."""

    kind: Literal["rate"] = "rate"
    arm: ArmName
    at_least: float | None = Field(default=None, gt=0, lt=1)
    at_most: float | None = Field(default=None, gt=0, lt=1)

    @property
    def arms_read(self) -> ArmNames:
        """The one arm."""
        return (self.arm,)

    @model_validator(mode="after")
    def _a_bound_is_stated(self) -> "Rate":
        if self.at_least is None and self.at_most is None:
            raise ValueError("a rate without at_least or at_most always holds; state a bound")
        if self.at_least is not None and self.at_most is not None and self.at_least >= self.at_most:
            raise ValueError(
                f"at_least={self.at_least} leaves no room below at_most={self.at_most}; swap or widen them"
            )
        return self


class Baseline(_Rule):
    """The arm beats the best value of all ``nulls`` by ``share`` of that value (hardening against lucky baselines)."""

    kind: Literal["baseline"] = "baseline"
    arm: ArmName
    nulls: ArmNames = Field(min_length=1)
    share: float = Field(default=0.10, ge=0, allow_inf_nan=False)

    @property
    def arms_read(self) -> ArmNames:
        """The arm, then its nulls."""
        return (self.arm, *self.nulls)


Rule = Annotated[Difference | Equivalence | Trend | Ordering | Rate | Baseline, Field(discriminator="kind")]
