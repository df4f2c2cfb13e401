"""The plan of a study: question, arms, seeds, hypotheses and the rules that will judge them, written before any result.

Contract: `load_plan` reads ``plan.yaml`` and refuses, in one sentence, whatever the plan alone can show to be wrong:
an unknown arm, a column that the kind of cell does not give, a key written twice. A ``matrix`` becomes arms on the way
(`stablerank.studies.matrix`). ``plan.model_dump(mode="json")`` is the canonical content that a lock hashes.
`Plan.cells` is the whole matrix, hardest arms first.

Left out on purpose: whether the files exist and what they hash to (`stablerank.studies.lock`), and how a rule is
tested (`stablerank.studies.inference`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from stablerank.errors import RecipeError
from stablerank.studies import courses
from stablerank.studies.matrix import expanded
from stablerank.studies.rules import Baseline, Difference, Equivalence, Rule
from stablerank.studies.settings import settings_of

Kind = Literal["train", "measure", "score", "bestofn", "compress", "testbed"]

VERDICTS: dict[str, tuple[float, float]] = {
    "pass_at_1_before": (0.0, 1.0),
    "pass_at_1_after": (0.0, 1.0),
    "pass_at_1_peak": (0.0, 1.0),
    "pass_at_1_gain": (-1.0, 1.0),
}
"""Columns whose units are right or wrong, or differences of two such: the least and the largest value."""

LOSSES = ("loss_before", "loss_after", "loss_change", "loss_train_before", "loss_train_after")
"""Columns of a run with a held-out loss, which has those of `courses` too; other runs have none of them."""

COLUMNS: dict[Kind, frozenset[str]] = {
    "train": frozenset(
        {*VERDICTS, "mean_stable_rank", "train_seconds", "peak_memory_bytes", *LOSSES, *courses.COLUMNS}
    ),
    "measure": frozenset({"stable_rank", "median_stable_rank", "matrices"}),
    "score": frozenset({"accuracy", "tie_rate", "matched_accuracy", "unscored"}),
    "bestofn": frozenset({"pick", "over_random", "random", "shortest", "longest", "oracle"}),
    "compress": frozenset({"bytes", "share_of_fp16", "update_error", "update_rank", "update_rank_change"}),
    "testbed": frozenset(
        {
            *("stable_rank", "stable_rank_half", "half_rise", "margin_ratio", "margin_rise"),
            *("nuclear_rank", "log2_nuclear_rank", "log2_stable_rank"),
            *("iterations", "log2_iterations", "log_loss", "spectral_share"),
        }
    ),
}
"""Every column that a kind of cell gives."""

OWNED_ELSEWHERE = {"seed": "the plan's seeds", "output": "the study folder"}
"""Recipe keys that an arm may not override, and what decides them."""

RESERVED = frozenset({"arm", "seed", "kind"})
"""What cells are selected by beside labels."""

_NAME = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
"""Names become file names; two dashes in a row part the arm from the seed."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Spec):
    """One condition of the study; it runs once a seed."""

    kind: Kind
    spec: str = Field(
        min_length=1,
        description="recipe, weights, pairs, pool, adapter or testbed by kind; zoo:NAME, or a path from either folder",
    )
    overrides: tuple[str, ...] = Field(default=(), description="KEY=VALUE over the recipe, or the kind's settings")
    difficulty: float = Field(default=0.0, allow_inf_nan=False, description="the most difficult arms run first")
    memory: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="GiB that a cell needs; 0: not counted")
    labels: dict[str, str] = Field(default={}, description="axis to label, for selecting and for tables")

    @model_validator(mode="after")
    def _overrides_leave_what_the_study_owns(self) -> "Arm":
        for axis in RESERVED & self.labels.keys():
            raise ValueError(f"labels.{axis} would hide what `--where {axis}=` selects; call the axis otherwise")
        for override in self.overrides:
            key, equals, _ = override.partition("=")
            if not key or not equals:
                raise ValueError(f"override {override!r} is not KEY=VALUE; write it like optimiser.learning_rate=1e-4")
            if owner := OWNED_ELSEWHERE.get(key):
                raise ValueError(f"override {override!r} sets what {owner} decides; remove it")
        if self.kind != "train":
            settings_of(self.kind, self.spec, self.overrides)
        return self


class Hypothesis(_Spec):
    """A claim, the rule that confirms it, and the rule that ends the search for it early."""

    claim: str = Field(min_length=1)
    rule: Rule
    kill: Rule | None = None

    @model_validator(mode="after")
    def _kill_is_another_rule(self) -> "Hypothesis":
        if self.kill == self.rule:
            raise ValueError("kill repeats rule, so that success would kill; state what would end the hope instead")
        return self


class Hardening(_Spec):
    """What every baseline rule of the plan owes: so many null values, and a lead of so great a share over the best."""

    baselines: int = Field(default=10, ge=1)
    share: float = Field(default=0.10, ge=0, allow_inf_nan=False)


class Spread(_Spec):
    """How far a column of one arm is expected to scatter, in its own units: standard deviations of normal effects.

    What both arms of a pair have in common, such as how hard a problem is, cancels and does not count.
    """

    between: float = Field(gt=0, allow_inf_nan=False, description="of a seed's true mean")
    within: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of one unit in one seed")
    shared: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="of a unit's mean over all seeds")
    units: int = Field(default=0, ge=0, description="units a cell; 0 for a column of whole cells")


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: what one process runs. ``id`` is ``ARM--SEED``."""

    id: str
    arm: str
    seed: int
    kind: Kind
    spec: str
    overrides: tuple[str, ...]


class Plan(_Spec):
    """One study, whole."""

    question: str = Field(min_length=1)
    mode: Literal["confirmatory", "exploratory"] = "confirmatory"
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    correction: Literal["holm", "none"] = "holm"
    hardening: Hardening | None = Hardening()
    arms: dict[str, Arm] = Field(min_length=1)
    hypotheses: dict[str, Hypothesis] = Field(min_length=1)
    traps: dict[str, Rule] = Field(default={}, description="rules that must not hold")
    controls: dict[str, Rule] = Field(default={}, description="rules that must hold")
    spread: dict[str, Spread] = Field(default={}, description="expected scatter by column, for the power estimate")
    data: tuple[str, ...] = Field(default=(), description="further files whose bytes are locked")

    @model_validator(mode="after")
    def _holds_together(self) -> "Plan":
        _check_names(self)
        for key, rule in self.rules():
            _check_arms(self, key, rule)
            if isinstance(rule, Baseline):
                _check_hardening(self, key, rule)
            if isinstance(rule, Difference | Equivalence):
                _check_constant(key, rule)
        _check_spread(self)
        return self

    def rules(self) -> Iterator[tuple[str, Rule]]:
        """Every rule with its key in the file, such as ``hypotheses.gain.kill``."""
        for name, hypothesis in self.hypotheses.items():
            yield f"hypotheses.{name}.rule", hypothesis.rule
            if hypothesis.kill is not None:
                yield f"hypotheses.{name}.kill", hypothesis.kill
        for section, rules in (("traps", self.traps), ("controls", self.controls)):
            yield from ((f"{section}.{name}", rule) for name, rule in rules.items())

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Every axis with its labels, both in the order in which the arms show them."""
        found: dict[str, dict[str, None]] = {}
        for arm in self.arms.values():
            for axis, label in arm.labels.items():
                found.setdefault(axis, {})[label] = None
        return {axis: tuple(labels) for axis, labels in found.items()}

    def cells(self) -> list[Cell]:
        """Every arm with every seed: the most difficult arm first, then in the plan's order, then by seed."""
        hardest_first = sorted(self.arms.items(), key=lambda item: -item[1].difficulty)
        return [
            Cell(f"{name}--{seed}", name, seed, arm.kind, arm.spec, arm.overrides)
            for name, arm in hardest_first
            for seed in sorted(self.seeds)
        ]


def load_plan(path: str | Path) -> Plan:
    """Read and check a plan.

    Raises:
        RecipeError: missing file, broken YAML, repeated or unknown key, wrong type or contradiction, in one sentence.
    """
    try:
        raw = yaml.load(Path(path).read_bytes(), _UniqueKeyLoader)
    except OSError as error:
        raise RecipeError(f"Plan {path} cannot be read ({error.strerror}); give the path of a plan.yaml.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"Plan {path} is not YAML ({' '.join(str(error).split())}); mend that line.") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"Plan {path} holds {type(raw).__name__}, not sections; `stablerank study new` writes one.")
    try:
        return Plan.model_validate(expanded(raw))
    except ValidationError as error:
        raise RecipeError(_sentence(error, str(path))) from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML takes the last of two equal keys; in a plan the first would be a hypothesis dropped without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _check_names(plan: Plan) -> None:
    for section in ("arms", "hypotheses", "traps", "controls"):
        for name in getattr(plan, section):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{section}.{name!r} cannot name a file; use letters, digits and single . _ or -")
    folded = [name.casefold() for name in plan.arms]
    for name in plan.arms:
        if folded.count(name.casefold()) > 1:
            raise ValueError(f"arms.{name} has a twin that differs only in case; rename one, their files would collide")
    for seed in plan.seeds:
        if plan.seeds.count(seed) > 1:
            raise ValueError(f"seeds holds {seed} twice, and a repeated seed is no new evidence; give another seed")


def _check_arms(plan: Plan, key: str, rule: Rule) -> None:
    for name in rule.arms_read:
        if name not in plan.arms:
            raise ValueError(f"{key} names arm {name!r}, which the plan lacks; it has {', '.join(plan.arms)}")
        given = COLUMNS[plan.arms[name].kind]
        if rule.column not in given:
            raise ValueError(
                f"{key} reads column {rule.column!r}, which cell {name} of kind {plan.arms[name].kind} lacks; "
                f"it gives {', '.join(sorted(given))}"
            )


def _check_spread(plan: Plan) -> None:
    read = dict.fromkeys(rule.column for _, rule in plan.rules())
    for column in plan.spread:
        if column not in read:
            raise ValueError(f"spread.{column} is of a column that no rule reads; the rules read {', '.join(read)}")


def _check_hardening(plan: Plan, key: str, rule: Baseline) -> None:
    if plan.hardening is None:
        return
    owed, given = plan.hardening.baselines, len(rule.nulls) * len(plan.seeds)
    if given < owed:
        raise ValueError(
            f"{key} has {given} null values ({len(rule.nulls)} arms x {len(plan.seeds)} seeds), "
            f"but hardening.baselines asks for {owed}; add null arms or seeds"
        )
    if rule.share < plan.hardening.share:
        raise ValueError(f"{key}.share={rule.share} is under hardening.share={plan.hardening.share}; raise it")


def _check_constant(key: str, rule: Difference | Equivalence) -> None:
    """The interval of right-or-wrong units is not the same at every share, and the power before the lock reckons so."""
    if rule.constant and rule.column in VERDICTS:
        raise ValueError(
            f"{key} holds {rule.column} against constant={rule.constant}; "
            "its units are right or wrong: use kind: rate, or a margin"
        )


def _sentence(error: ValidationError, place: str) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in _without_tag(first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key {where!r}; remove it or mend the spelling."
    if first["type"] == "union_tag_not_found":
        where = f"{where}.kind"
    if first["type"] in ("missing", "union_tag_not_found") or first["input"] is None:
        return f"{place}: {where!r} is missing; add it (`stablerank study new` writes a whole plan)."
    if first["type"] == "value_error":
        return f"{place}: {where}{': ' if where else ''}{first['ctx']['error']!s}."
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{place}: {where}={first['input']!r:.100} is refused, {message}; give such a value."


def _without_tag(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Pydantic puts the kind of a rule into the location after the rule's key; the file has no such level."""
    depth = {"hypotheses": 3, "traps": 2, "controls": 2}.get(str(loc[0]), len(loc)) if loc else 0
    return loc[:depth] + loc[depth + 1 :]
