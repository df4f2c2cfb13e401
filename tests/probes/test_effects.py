"""The change of a model's layers on fixed texts, against two separate models and numpy's SVD."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stablerank.errors import DataError
from stablerank.probes.effects import LONGEST, TEXTS, EffectPanel, equal_length
from stablerank.zoo.resolve import resolve

TEXT = [[index % 7 + text for index in range(12)] for text in range(3)]
WHEN = {"run": "run", "seed": 0, "step": 5}


@pytest.fixture
def student():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))


def states_of(model, ids_BT):
    with torch.no_grad():
        found = model.eval()(ids_BT, output_hidden_states=True).hidden_states[1:]
    return [states.flatten(0, 1).double().numpy() for states in found]


def by_metric(rows, metric):
    return [row for row in rows if row.metric == metric]


def test_rank_and_norm_are_those_of_the_difference_of_two_models(student):
    panel, ids_BT = EffectPanel(student, TEXT), torch.tensor(TEXT)
    before = states_of(student, ids_BT)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in student.model.layers.parameters():
            weight += 0.01 * torch.randn_like(weight)
    rows, after = panel.rows(student, **WHEN), states_of(student, ids_BT)
    assert len(rows) == 2 * len(before)
    for block, (old, new) in enumerate(zip(before, after, strict=True)):
        values = np.linalg.svd(new - old, compute_uv=False)
        (rank,) = [row for row in by_metric(rows, "stable_rank") if row.layer == block]
        assert rank.value == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-9)
        assert rank.lower <= rank.value <= rank.upper and rank.status == "exact"
        assert (rank.kind, rank.module, rank.tokens, rank.step) == ("effect", "output", 36, 5)
        assert rank.null_low < rank.null < rank.null_high
        (norm,) = [row for row in by_metric(rows, "relative_norm") if row.layer == block]
        assert norm.value == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-9)


def test_an_untouched_model_has_no_effect(student):
    rows = EffectPanel(student, TEXT).rows(student, **WHEN)
    assert {row.status for row in by_metric(rows, "stable_rank")} == {"zero"}
    assert {row.value for row in by_metric(rows, "relative_norm")} == {0.0}


def test_a_bias_that_all_tokens_share_has_rank_one(student):
    panel = EffectPanel(student, TEXT)
    student.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(torch.linspace(-1, 1, 128))
    first, second, third, _ = by_metric(panel.rows(student, **WHEN), "stable_rank")
    assert first.status == "zero"
    assert second.value == pytest.approx(1, abs=1e-5)
    assert third.value > 1.001, "the next block treats tokens differently"


def test_a_measurement_leaves_the_model_and_the_random_state_alone(student):
    student.train()
    panel, state = EffectPanel(student, TEXT), torch.get_rng_state()
    panel.rows(student, **WHEN)
    assert student.training and torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_texts_are_cut_to_one_length():
    few = [[1] * 5, [2] * 3, [3] * 9]
    assert equal_length(few).tolist() == [[1] * 3, [2] * 3, [3] * 3]
    many = [[at] * (at + 1) for at in range(TEXTS + 10)]
    assert equal_length(many).shape == (TEXTS, 11) and int(equal_length(many)[0, 0]) == 10
    assert equal_length([[1] * 1000]).shape == (1, LONGEST)


@pytest.mark.parametrize("texts", [[], [[1, 2], []]])
def test_texts_without_a_token_are_refused(texts):
    with pytest.raises(DataError, match="has a token to measure effects on"):
        equal_length(texts)
