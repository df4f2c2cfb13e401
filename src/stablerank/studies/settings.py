"""What an arm may set on cells that read no recipe: ``KEY=VALUE`` over the defaults of its kind.

Contract: `settings_of` reads an arm's overrides into the model of its kind, whose defaults are those of the command it
stands for, and refuses an unknown key or a value of another type in one sentence. Values are YAML scalars.

Left out on purpose: settings of a recipe, which the recipe's own sections check.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stablerank.errors import RecipeError


class Settings(BaseModel):
    """Base of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Scoring(Settings):
    """What ``score`` and ``bestofn`` cells share; as `rewards.scorers.specs.build_scorers` takes them."""

    scorer: str = Field(min_length=1)
    model: str | None = None
    template: str = "chat"
    window: int = Field(512, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_tokens: int = Field(4096, ge=1)
    limit: int | None = Field(None, ge=2, description="pairs or problems, drawn by the cell's seed; None takes all")


class Pairs(Scoring):
    """A scorer on preference pairs."""

    ties: Literal["half", "lose"] = "half"


class Picks(Scoring):
    """A scorer's pick among ``n`` answers."""

    n: int = Field(4, ge=2)


class Compression(Settings):
    """As `compression.spec.CompressionSpec` takes them."""

    method: Literal["kmeans", "affine", "symmetric", "nf4", "fp16"] = "kmeans"
    bits: int | None = None
    group: Literal["tensor", "row"] | int = "tensor"
    rank: int | None = None
    energy: float | None = None
    entropy: bool = True
    sine: bool = False


class TwoLayerRelu(Settings):
    """As `testbeds.two_layer_relu.World` takes them."""

    slope: float = 0.1
    neurons: int = Field(100, ge=2)
    points: int = Field(10, ge=2)
    features: int = Field(3136, ge=2)
    init: float = Field(1e-4, gt=0)
    common: float = Field(0.0, ge=0, lt=1)
    step: float = Field(1.0, gt=0)
    normalised: bool = False
    steps: int = Field(100_000, ge=10)


class LowRankFactorisation(Settings):
    """As `testbeds.low_rank_factorisation.iterations` takes them."""

    method: Literal["lora", "polar"] = "lora"
    condition: float = Field(10.0, ge=1)
    rank: int = Field(4, ge=1)
    step: float = Field(1.0, gt=0)
    tolerance: float = Field(1e-6, gt=0)
    budget: int = Field(100_000, ge=1)


class RandomFeatures(Settings):
    """As `testbeds.random_features.descend` takes them."""

    activation: Literal["relu", "squared_relu", "swiglu"] = "relu"
    width: int = Field(128, ge=4)
    steps: int = Field(100, ge=1)


class SpikedFeatures(Settings):
    """As `testbeds.random_features.spiked_features` and `bulk_features` take them, and where descent is looked at."""

    width: int = Field(128, ge=8)
    spiked: bool = True
    at: Literal["first", "window_start", "window_end"] = "window_end"


class SparseRegression(Settings):
    """As `testbeds.sparse_regression.train` takes them."""

    rule: Literal["euclidean", "spectral", "middle", "ends", "condition", "against"] = "condition"
    gated: bool = False
    euclidean: float = Field(0.005, gt=0, description="multiplier of Euclidean steps")
    spectral: float = Field(0.15, gt=0, description="multiplier of spectral steps")
    inputs: int = Field(24, ge=3)
    samples: int = Field(512, ge=2)
    steps: int = Field(400, ge=1)


class Initialisation(Settings):
    """As `testbeds.initialisation.chain` takes them, with four samples a unit."""

    activation: Literal["relu", "squared_relu", "gelu", "silu", "tanh", "swiglu"] = "relu"
    width: int = Field(128, ge=2)
    layer: int = Field(1, ge=1)


TESTBEDS: Mapping[str, type[Settings]] = {
    "two_layer_relu": TwoLayerRelu,
    "low_rank_factorisation": LowRankFactorisation,
    "random_features": RandomFeatures,
    "spiked_features": SpikedFeatures,
    "sparse_regression": SparseRegression,
    "initialisation": Initialisation,
}
"""Small worlds by their name, which is the arm's ``spec``."""

_KINDS: Mapping[str, type[Settings]] = {
    "score": Pairs,
    "bestofn": Picks,
    "compress": Compression,
    "measure": Settings,
}


def settings_of(kind: str, spec: str, overrides: Sequence[str]) -> Settings:
    """The settings of an arm whose kind reads no recipe.

    Raises:
        RecipeError: an unknown testbed or key, or a value that is refused.
    """
    if kind == "testbed" and spec not in TESTBEDS:
        raise RecipeError(f"testbed {spec!r} is not known; choose one of {', '.join(TESTBEDS)}.")
    model = TESTBEDS[spec] if kind == "testbed" else _KINDS[kind]
    try:
        return model.model_validate(_parsed(overrides))
    except ValidationError as error:
        raise RecipeError(_sentence(kind, model, error)) from error


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    pairs = (override.partition("=") for override in overrides)
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def _sentence(kind: str, model: type[Settings], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0])
    known = ", ".join(model.model_fields) or "none"
    if first["type"] == "extra_forbidden":
        return f"a {kind} arm has no setting {key!r}; it has {known}."
    if first["type"] == "missing":
        return f"a {kind} arm needs {key}=VALUE among its overrides; it has {known}."
    return f"{key}={first['input']!r:.100} of a {kind} arm is refused, {first['msg'][0].lower()}{first['msg'][1:]}."
