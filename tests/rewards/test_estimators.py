"""KL terms against the exact divergence of torch.distributions, by enumeration of a small vocabulary in fp64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from stablerank.rewards.estimators import TERMS, k1, k2, k3, s4


def pair(seed, distance, tokens=7):
    """Log-probabilities of a policy, a leaf that wants its gradient, and of a reference some distance away."""
    draw = torch.Generator().manual_seed(seed)
    reference = torch.randn(tokens, generator=draw, dtype=torch.float64)
    policy = reference + distance * torch.randn(tokens, generator=draw, dtype=torch.float64)
    return policy.requires_grad_(), Categorical(logits=reference)


def mean(term, logits, reference):
    """Expectation of a term over the policy, the sample held fixed for the gradient."""
    policy = Categorical(logits=logits)
    return (policy.probs.detach() * term(policy.logits, reference.logits)).sum()


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


@given(st.integers(0, 10_000), st.floats(0.01, 3))
def test_k1_and_k3_are_the_divergence_on_average(seed, distance):
    logits, reference = pair(seed, distance)
    exact = kl_divergence(Categorical(logits=logits), reference)
    for term in (k1, k3):
        torch.testing.assert_close(mean(term, logits, reference), exact, rtol=1e-10, atol=1e-14)


def test_the_bias_of_k2_is_of_third_order():
    """Halving the distance divides the divergence by 4 and k2's error by 8 or more."""
    ratios = []
    for distance in (0.02, 0.01):
        found = [pair(seed, distance) for seed in range(20)]
        errors = [mean(k2, p, q) - kl_divergence(Categorical(logits=p), q) for p, q in found]
        ratios.append(torch.stack(errors).abs().mean().item())
    assert ratios[1] > 0
    assert 7.5 < ratios[0] / ratios[1] < 8.5
    logits, reference = pair(0, 2.0)
    assert abs(mean(k2, logits, reference) / kl_divergence(Categorical(logits=logits), reference) - 1) > 0.1


@given(st.integers(0, 10_000), st.floats(0.01, 3))
def test_gradients_as_a_loss(seed, distance):
    """k2 pulls down KL(p || q), k3 pulls down KL(q || p), k1 pulls nowhere."""
    logits, reference = pair(seed, distance)
    reverse = gradient(kl_divergence(Categorical(logits=logits), reference), logits)
    forward = gradient(kl_divergence(reference, Categorical(logits=logits)), logits)
    wanted = {k1: torch.zeros_like(reverse), k2: reverse, k3: forward}
    for term, want in wanted.items():
        torch.testing.assert_close(gradient(mean(term, logits, reference), logits), want, rtol=1e-9, atol=1e-12)
    assert distance < 0.1 or not torch.allclose(reverse, forward, rtol=1e-3)


@given(st.integers(0, 10_000), st.floats(0.05, 3))
def test_the_mean_of_s4_is_no_divergence(seed, distance):
    """Two halves for every token: the divergence stays, S4's mean halves."""
    logits, reference = pair(seed, distance)
    halved = logits.repeat(2), Categorical(logits=reference.logits.repeat(2))
    torch.testing.assert_close(
        kl_divergence(Categorical(logits=halved[0]), halved[1]),
        kl_divergence(Categorical(logits=logits), reference),
        rtol=1e-8,
        atol=1e-12,
    )
    torch.testing.assert_close(mean(s4, *halved), mean(s4, logits, reference) / 2, rtol=1e-10, atol=0)


def test_s4_forgives_what_became_less_likely():
    policy = torch.tensor([0.2, 0.2, 0.2], dtype=torch.float64).log().requires_grad_()
    reference = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64).log()
    terms = s4(policy, reference)
    assert terms.tolist() == pytest.approx([0.2 * torch.tensor(2.0).log().item(), 0.0, 0.0], rel=1e-7)
    assert gradient(terms.sum(), policy)[2] == 0
    assert (k3(policy, reference) > 0).tolist() == [True, False, True]


@pytest.mark.parametrize("name", TERMS)
def test_each_token_by_itself_in_its_own_dtype(name):
    policy, reference = -torch.rand(2, 3, 4), -torch.rand(2, 3, 4)
    terms = TERMS[name](policy, reference)
    assert (terms.shape, terms.dtype) == ((2, 3, 4), torch.float32)
    assert terms[1, 2, 3] == TERMS[name](policy[1, 2, 3], reference[1, 2, 3])
    assert TERMS[name](policy, policy).eq(0).all()


def test_k3_keeps_its_digits_close_to_the_reference():
    """Without expm1, fp32 would give 0 or 6e-8 for a true value of 5e-9."""
    reference = torch.tensor(-1e-4)
    assert k3(torch.tensor(0.0), reference).item() == pytest.approx(5e-9, rel=1e-2)
