"""The divergence from the untouched policy, against torch's own of two separate models."""

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from stablerank.evaluation.drift import Drift
from stablerank.zoo.resolve import resolve

TEXT = [[index % 7 + text for index in range(12)] for text in range(4)]


@pytest.fixture
def student():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student"))


def shaken(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # the head too: it must not be read after training changed it
            weight += 0.02 * torch.randn_like(weight)
    return model


def logprobs_of(model, ids_BT):
    with torch.no_grad():
        return model.eval()(ids_BT).logits.double().log_softmax(-1)


def test_it_is_the_mean_divergence_of_the_next_token(student):
    ids_BT = torch.tensor(TEXT)
    drift, old_BTV = Drift(student, TEXT), logprobs_of(student, ids_BT)
    found = drift.kl(shaken(student))
    expected = kl_div(logprobs_of(student, ids_BT), old_BTV, reduction="sum", log_target=True) / ids_BT.numel()
    assert found.value == pytest.approx(float(expected), rel=1e-4)
    assert found.low < found.value < found.high


def test_an_untouched_policy_has_not_moved(student):
    assert Drift(student, TEXT).kl(student).value == pytest.approx(0, abs=1e-7)


def test_measuring_leaves_the_mode_alone(student):
    drift = Drift(student.train(), TEXT)
    drift.kl(student)
    assert student.training
