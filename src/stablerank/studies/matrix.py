"""The matrix of a plan: arms written as axes instead of one by one.

Contract: `expanded` turns the section ``matrix`` of a raw plan into ordinary arms, one a combination of labels in the
order of the axes, less those excluded. An arm carries its labels, and its name is made of them: a label that starts
with a digit or a sign has its axis before it (``outcome-rank16``, ``outcome-full``). Its overrides are the matrix's
own, then each label's in the order of the axes, then those of every ``adjust`` that fits; of equal keys the last one
counts.

A lock holds the arms, not the matrix: what was locked does not depend on how this file names an arm.

Left out on purpose: several matrices in one plan (arms stand beside a matrix), and rules that select arms by label: a
rule names what it reads.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stablerank.errors import RecipeError

Labels = Mapping[str, str]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Level(_Spec):
    """What one label of an axis adds; a bare list is its overrides."""

    spec: str | None = None
    overrides: tuple[str, ...] = ()
    difficulty: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _list_is_overrides(cls, raw: Any) -> Any:
        return {"overrides": raw} if isinstance(raw, list | tuple) else {} if raw is None else raw


class Adjustment(_Spec):
    """Further overrides of the arms that have all labels of ``where``."""

    where: dict[str, str] = Field(min_length=1)
    overrides: tuple[str, ...] = Field(min_length=1)

    _plain = field_validator("where", mode="before")(lambda raw: _named(raw))


class Matrix(_Spec):
    """Axes of labels, and what all arms have in common."""

    kind: str
    spec: str | None = Field(default=None, description="unless a label brings its own")
    overrides: tuple[str, ...] = ()
    memory: float = 0.0
    axes: dict[str, dict[str, Level]] = Field(min_length=1)
    exclude: tuple[dict[str, str], ...] = ()
    adjust: tuple[Adjustment, ...] = ()

    @field_validator("axes", mode="before")
    @classmethod
    def _labels_are_text(cls, raw: Any) -> Any:
        return {axis: _named(labels) for axis, labels in raw.items()} if isinstance(raw, dict) else raw

    @field_validator("exclude", mode="before")
    @classmethod
    def _excluded_labels_are_text(cls, raw: Any) -> Any:
        return [_named(labels) for labels in raw] if isinstance(raw, list) else raw

    @model_validator(mode="after")
    def _every_label_is_known(self) -> "Matrix":
        for axis, levels in self.axes.items():
            if not levels:
                raise ValueError(f"axes.{axis} has no label; give one, or remove the axis")
        for section, wheres in (("exclude", self.exclude), ("adjust", [each.where for each in self.adjust])):
            for where in wheres:
                self._check(section, where)
        return self

    def _check(self, section: str, where: Labels) -> None:
        for axis, label in where.items():
            if axis not in self.axes:
                raise ValueError(f"{section} names axis {axis!r}, but the matrix has {', '.join(self.axes)}; mend it")
            if label not in self.axes[axis]:
                raise ValueError(
                    f"{section} names {axis}={label}, but the axis has {', '.join(self.axes[axis])}; mend it"
                )

    def arms(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and raw arm of every combination that is not excluded."""
        for combination in product(*self.axes.values()):
            labels = dict(zip(self.axes, combination, strict=True))
            if not any(_fits(labels, where) for where in self.exclude):
                yield "-".join(_part(axis, label) for axis, label in labels.items()), self._arm(labels)

    def _arm(self, labels: Labels) -> dict[str, Any]:
        levels = [self.axes[axis][label] for axis, label in labels.items()]
        adjusted = [each.overrides for each in self.adjust if _fits(labels, each.where)]
        specs = [self.spec, *(level.spec for level in levels if level.spec is not None)]
        return {
            "kind": self.kind,
            "spec": specs[-1],
            "overrides": [*self.overrides, *(one for level in levels for one in level.overrides), *sum(adjusted, ())],
            "difficulty": sum(level.difficulty for level in levels),
            "memory": self.memory,
            "labels": labels,
        }


class _Holder(BaseModel):
    """So that an error names its place from ``matrix`` down."""

    matrix: Matrix


def expanded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A raw plan whose matrix has become arms, after those that it names itself.

    Raises:
        RecipeError: two arms of one name.
        pydantic.ValidationError: a matrix that cannot mean what it says.
    """
    if "matrix" not in raw:
        return dict(raw)
    arms = dict(raw.get("arms") or {})
    for name, arm in _Holder.model_validate({"matrix": raw["matrix"]}).matrix.arms():
        if name in arms:
            raise RecipeError(f"two arms are called {name}, one of them by the matrix; rename the other, or a label.")
        arms[name] = arm
    return {**{key: value for key, value in raw.items() if key != "matrix"}, "arms": arms}


def _fits(labels: Labels, where: Labels) -> bool:
    return all(labels[axis] == label for axis, label in where.items())


def _part(axis: str, label: str) -> str:
    return label if label[:1].isalpha() else f"{axis}{label}"


def _named(raw: Any) -> Any:
    """YAML reads a rank as a number; a label is text."""
    if not isinstance(raw, dict):
        return raw
    return {str(key): str(value) if isinstance(value, str | int | float) else value for key, value in raw.items()}
