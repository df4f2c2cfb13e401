"""Where a matrix lies in the model, by its name, and what a row says about its interval."""

import math
from dataclasses import fields

import pytest

from stablerank.probes.rows import Moment, geometry_row, layer_and_module
from stablerank.runs.geometry_rows import GeometryRow
from stablerank.spectral.exact import Estimate, undefined
from stablerank.spectral.nulls import Null

NULL = Null(5.0, 4.0, 6.0, "gaussian_matrix")


def row(estimate, name="model.layers.3.mlp.up_proj", **known):
    return geometry_row(name, "weight", "stable_rank", estimate, NULL, Moment("run", 7, 11), **known)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.up_proj", (3, "mlp.up_proj")),
        ("model.layers.12.mlp.experts.7.gate_proj", (12, "mlp.experts.7.gate_proj")),
        ("transformer.h.0.attn.q_proj", (0, "attn.q_proj")),
        ("model.embed_tokens", (None, "model.embed_tokens")),
        ("classifier.0", (None, "classifier.0")),
        ("lm_head", (None, "lm_head")),
    ],
)
def test_layer_and_module(name, place):
    assert layer_and_module(name) == place


def test_every_column_arrives():
    found = row(Estimate(2.0, 1.5, 2.5, 4, "certified"), delta=1e-6, tokens=9)
    expected = ("run", 7, 11, 3, "mlp.up_proj", "weight", "stable_rank", 2.0, 1.5, 2.5, 1 - 1e-6, "certified", 4)
    assert [getattr(found, field.name) for field in fields(GeometryRow)] == [
        *expected,
        5.0,
        4.0,
        6.0,
        "gaussian_matrix",
        9,
    ]


@pytest.mark.parametrize(("status", "confidence"), [("exact", 1.0), ("certified", 0.99), ("open", 0.99)])
def test_delta_counts_against_iterative_bounds_alone(status, confidence):
    assert row(Estimate(2.0, 1.5, 2.5, 1, status), delta=0.01).confidence == confidence


def test_a_value_without_a_bound_has_no_confidence():
    assert math.isnan(row(Estimate(2.0, math.nan, math.nan, 1, "estimated"), delta=0.01).confidence)


def test_what_is_not_defined_says_so():
    found = row(undefined("zero"))
    assert found.status == "zero"
    assert all(math.isnan(value) for value in (found.value, found.lower, found.upper))
