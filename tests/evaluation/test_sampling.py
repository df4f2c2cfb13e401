"""Sampled completions: the distribution they claim, and draws that nothing but seed, problem and sample decides."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from stablerank.errors import ModelError, RecipeError
from stablerank.evaluation.generate import completions_of, fitting_ids, greedy_completions
from stablerank.evaluation.sampling import Inversion, Sampling

PROMPTS = ["1+1=?", "a", "12345+67890=?", "xyz" * 9, "?"]


@pytest.fixture
def sharp(model):
    """The random model with probabilities that differ: at its own scale they are all but equal."""
    with torch.no_grad():
        model.lm_head.weight.mul_(25)
    return model.eval()


def sampled(model, tokenizer, sampling, prompts=PROMPTS, numbers=None, tokens=6, batch_size=256):
    ids_of = fitting_ids(tokenizer, prompts, tokens, 128)
    numbers = range(len(prompts)) if numbers is None else numbers
    return completions_of(
        model, tokenizer, ids_of, sampling, numbers=numbers, max_new_tokens=tokens, batch_size=batch_size
    )


def exact(model, tokenizer, text_ids, temperature, top_p):
    """The oracle: fp64 probabilities of the next token, the nucleus collected token by token."""
    with torch.no_grad():
        logits = model(torch.tensor([text_ids])).logits[0, -1].double()
    probabilities = (logits / temperature).softmax(-1).tolist()
    kept, mass = {}, 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if mass >= top_p:
            break
        kept[token], mass = probabilities[token], mass + probabilities[token]
    return {token: probability / mass for token, probability in kept.items()}


def p_value(tokens, expected):
    """Of a chi-square test, tokens with an expectation below 5 taken together; 0 for a token that cannot be."""
    if not set(tokens) <= set(expected):
        return 0.0
    frequent = [token for token, share in expected.items() if share * len(tokens) >= 5]
    observed = [tokens.count(token) for token in frequent]
    wanted = [expected[token] * len(tokens) for token in frequent]
    if len(tokens) - sum(wanted) > 1e-6:
        observed, wanted = [*observed, len(tokens) - sum(observed)], [*wanted, len(tokens) - sum(wanted)]
    return chisquare(observed, wanted).pvalue


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.7)])
def test_frequencies_are_the_probabilities(sharp, tokenizer, temperature, top_p):
    sampling = Sampling(3000, temperature, top_p, seed=5)
    (answers,) = sampled(sharp, tokenizer, sampling, PROMPTS[:1], tokens=2)
    prompt = tokenizer(PROMPTS[0]).input_ids
    first = [answer.ids[0] for answer in answers]
    assert p_value(first, exact(sharp, tokenizer, prompt, temperature, top_p)) > 1e-3
    for other in [(temperature * 1.25, top_p), (temperature, 0.4)]:
        assert p_value(first, exact(sharp, tokenizer, prompt, *other)) < 1e-6
    commonest = max(set(first) - {tokenizer.eos_token_id}, key=first.count)
    second = [answer.ids[1] for answer in answers if answer.ids[0] == commonest]
    assert len(second) > 100
    assert p_value(second, exact(sharp, tokenizer, [*prompt, commonest], temperature, top_p)) > 1e-3


def test_the_samples_of_a_problem_depend_on_nothing_else(sharp, tokenizer):
    found = sampled(sharp, tokenizer, Sampling(5))
    assert len({answer.ids for answers in found for answer in answers}) == 25
    assert sampled(sharp, tokenizer, Sampling(5), batch_size=3) == found
    assert sampled(sharp, tokenizer, Sampling(2)) == [answers[:2] for answers in found]
    assert sampled(sharp, tokenizer, Sampling(5), PROMPTS[3:], [3, 4]) == found[3:]
    torch.manual_seed(99)
    assert sampled(sharp, tokenizer, Sampling(5)) == found
    assert sampled(sharp, tokenizer, Sampling(5, seed=1)) != found


def test_the_coldest_sample_is_greedy(sharp, tokenizer):
    greedy = greedy_completions(sharp, tokenizer, PROMPTS, max_new_tokens=6)
    assert sampled(sharp, tokenizer, Sampling(2, temperature=1e-4)) == [[answer] * 2 for answer in greedy]
    assert sampled(sharp, tokenizer, Sampling(2, top_p=1e-9)) == [[answer] * 2 for answer in greedy]
    assert sampled(sharp, tokenizer, None) == [[answer] for answer in greedy]


@given(
    logits=st.lists(st.one_of(st.just(-math.inf), st.floats(-60, 60)), min_size=1, max_size=12).filter(
        lambda logits: max(logits) > -math.inf
    ),
    number=st.one_of(st.just(0.0), st.just(1 - 2.0**-53), st.floats(0, 1, exclude_max=True)),
)
def test_inversion_picks_the_stretch_that_holds_the_number(logits, number):
    scores = torch.tensor([logits], dtype=torch.float32)
    picked = Inversion(torch.tensor([[number]], dtype=torch.float64), 3)(torch.zeros(1, 3, dtype=torch.long), scores)
    token = int(picked.argmax())
    assert picked[0, token] == 0 and torch.isneginf(picked).sum() == len(logits) - 1
    weights = [math.exp(float(score) - float(scores.max())) for score in scores[0]]
    below, total = math.fsum(weights[:token]), math.fsum(weights)
    assert weights[token] > 0
    assert below - 1e-12 * total <= number * total <= below + weights[token] + 1e-12 * total


def test_scores_that_are_not_finite_are_refused():
    scores = torch.tensor([[0.0, math.nan]])
    with pytest.raises(ModelError, match="not finite"):
        Inversion(torch.zeros(1, 1, dtype=torch.float64), 1)(torch.zeros(1, 1, dtype=torch.long), scores)


def test_uniforms_are_uniform_and_of_their_own():
    numbers = np.stack([Sampling(40, seed=2).uniforms(problem, 50) for problem in range(50)])
    assert len(np.unique(numbers)) == numbers.size
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_no_sampling_can_have(settings, words):
    with pytest.raises(RecipeError, match=words):
        Sampling(**{"samples": 1, **settings})
