import numpy as np
from scipy.stats import kstest

from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.trivial import LengthScorer, RandomScorer

TEXTS = ["a", "bb cc", "\\boxed{3}", "1+2=3\n3+3=6"]
ANSWERS = [Answer("p", text) for text in TEXTS]


def test_length_is_in_characters_without_a_tokenizer_and_in_tokens_with_one(student):
    assert LengthScorer("longer", 1).score(ANSWERS).values_NS[:, 0].tolist() == list(map(len, TEXTS))
    tokens = [len(student.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    assert tokens != list(map(len, TEXTS))
    scores = LengthScorer("shorter", -1, student.tokenizer).score(ANSWERS)
    assert scores.values_NS[:, 0].tolist() == [-n for n in tokens]
    assert scores.tokens_N.tolist() == tokens


def test_chance_is_the_texts_own():
    scores = RandomScorer(seed=1).score(ANSWERS)
    backwards = RandomScorer(seed=1).score(ANSWERS[::-1])
    assert np.array_equal(scores.values_NS, backwards.values_NS[::-1])
    assert len({*scores.values_NS[:, 0], *RandomScorer(seed=2).score(ANSWERS).values_NS[:, 0]}) == 2 * len(ANSWERS)
    other_prompt = RandomScorer(seed=1).score([Answer("q", TEXTS[0])])
    assert other_prompt.values_NS[0, 0] != scores.values_NS[0, 0]


def test_chance_is_uniform():
    values = RandomScorer().score([Answer("p", str(n)) for n in range(2000)]).values_NS[:, 0]
    assert kstest(values, "uniform").pvalue > 0.01


def test_messages_are_prompts_too():
    talk = [{"role": "user", "content": "p"}]
    assert RandomScorer().score([Answer(talk, "a")]).statuses == ("scored",)


def test_what_is_no_answer_is_named():
    answers = [Answer("p", ""), Answer("p", None), Answer(None, "a"), Answer("p", "a")]
    for scorer in (LengthScorer("longer", 1), RandomScorer()):
        scores = scorer.score(answers)
        assert scores.statuses == ("empty", "missing", "not_text", "scored")
        assert np.isnan(scores.values_NS[:, 0]).tolist() == [True, True, True, False]
