"""The metrics against scipy, texts counted by hand, known properties, and real answers."""

import gzip
import json
import math
import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.stats import entropy

from stablerank.evaluation.correlates.markers import MARKERS
from stablerank.evaluation.correlates.published import PUBLISHED
from stablerank.evaluation.correlates.reading import Reading, readings
from stablerank.evaluation.correlates.registry import METRICS, metric_table
from stablerank.evaluation.correlates.structure import syllables

BY_NAME = {metric.name: metric for metric in METRICS}
TEXT = "However, the cat sat. The dog ran because it could! If the cat sat, then the dog ran. The end."


def read(text, vectors=None, prompt=None):
    count = len(Reading(text, None, None).sentences)
    vectors = np.eye(max(count, 1))[:count] if vectors is None else np.asarray(vectors)
    return Reading(text, np.eye(max(count, 1))[0] if prompt is None else np.asarray(prompt), vectors)


def value(name, text, vectors=None, prompt=None):
    return BY_NAME[name].value(read(text, vectors, prompt))


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_there_are_37_metrics_each_with_its_own_name_and_formula():
    assert len(METRICS) == len(BY_NAME) == 37
    assert {metric.family for metric in METRICS} == {"coherence", "density", "structure", "markers"}
    assert all(metric.value.__doc__ for metric in METRICS if metric.family != "markers")


def test_every_published_number_is_of_a_metric_here():
    assert {published.metric for published in PUBLISHED} <= set(BY_NAME)
    assert len({(p.metric, p.level, p.coefficient) for p in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize("name", [metric.name for metric in METRICS])
def test_an_empty_answer_is_counted_as_nothing_or_not_defined(name):
    found = value(name, "")
    assert found == 0 if name.endswith("count") else math.isnan(found)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        *(("coherence_mean", 2), ("coherence_min", 2), ("coherence_std", 3), ("progression", 2), ("redundancy", 2)),
        *(("qa_alignment_mean", 1), ("qa_alignment_consistency", 2)),
    ],
)
def test_coherence_is_not_defined_below_its_fewest_sentences(name, needs):
    for count in range(5):
        assert math.isfinite(value(name, "Aa. " * count, np.eye(4)[:count], np.eye(4)[0])) == (count >= needs)


def test_coherence_agrees_with_scipy(rng):
    vectors, prompt = unit(rng, 6, 8), unit(rng, 8)
    text = "A b. " * 6
    adjacent = [1 - cosine(a, b) for a, b in pairwise(vectors)]
    aligned = [1 - cosine(vector, prompt) for vector in vectors]
    before = [1 - cosine(vectors[i], vectors[:i].mean(0)) for i in range(1, 6)]
    wanted = {
        "coherence_mean": np.mean(adjacent),
        "coherence_std": np.std(adjacent),
        "coherence_min": np.min(adjacent),
        "progression": np.mean(before),
        "redundancy": np.mean([1 - cosine(a, b) for a, b in combinations(vectors, 2)]),
        "qa_alignment_mean": np.mean(aligned),
        "qa_alignment_consistency": 1 - np.std(aligned),
    }
    assert {name: value(name, text, vectors, prompt) for name in wanted} == pytest.approx(wanted, abs=1e-12)


def test_saying_one_thing_only_is_coherent_and_redundant():
    vectors = np.tile(np.eye(3)[0], (4, 1))
    found = {name: value(name, "Aa. Bb. Cc. Dd.", vectors, np.eye(3)[0]) for name in BY_NAME}
    assert found["coherence_mean"] == found["redundancy"] == found["progression"] == pytest.approx(1)
    assert found["coherence_std"] == pytest.approx(0) and found["qa_alignment_consistency"] == pytest.approx(1)


def test_density_of_known_texts():
    assert value("lexical_diversity", "a b a b") == 0.5 and value("distinct_bigrams", "a b a b") == pytest.approx(2 / 3)
    assert value("mean_word_length", "ab abcd") == 3
    assert value("token_entropy", TEXT) == pytest.approx(
        entropy(np.unique(read(TEXT).tokens, return_counts=True)[1], base=2), abs=1e-12
    )


def test_moving_diversity_does_not_fall_with_length_where_plain_diversity_does(rng):
    words = [f"w{number}" for number in rng.integers(0, 200, 2000)]
    short, long = " ".join(words[:100]), " ".join(words)
    assert value("moving_diversity", long) == pytest.approx(value("moving_diversity", short), abs=0.05)
    assert value("lexical_diversity", long) < value("lexical_diversity", short) - 0.3
    assert math.isnan(value("moving_diversity", "a " * 49)) and value("moving_diversity", "a " * 50) == 0.02


def test_repetition_compresses():
    assert value("compression_ratio", TEXT * 10) < 0.3 < value("compression_ratio", TEXT)
    assert value("compression_ratio", "x") > 1


@pytest.mark.parametrize(
    ("word", "count"),
    [
        *(("the", 1), ("table", 2), ("walked", 1), ("wanted", 2), ("make", 1), ("beautiful", 3), ("whole", 1)),
        *(("syllable", 3), ("rhythm", 1), ("people", 2), ("number", 2), ("calculate", 3), ("multiplication", 5)),
    ],
)
def test_syllables(word, count):
    assert syllables(word) == count


def test_readability_of_a_text_counted_by_hand():
    """10 words, 2 sentences, 14 syllables, 1 complex word."""
    text = "The beautiful cat sat on the table. We are happy."
    assert value("flesch_reading_ease", text) == pytest.approx(206.835 - 1.015 * 5 - 84.6 * 1.4)
    assert value("flesch_kincaid_grade", text) == pytest.approx(0.39 * 5 + 11.8 * 1.4 - 15.59)
    assert value("gunning_fog", text) == pytest.approx(0.4 * (5 + 10))


def test_markers_count_whatever_their_case():
    assert value("contrastive_count", TEXT) == value("causal_count", TEXT) == value("conditional_count", TEXT) == 1
    assert value("total_count", TEXT.upper()) == 4 and value("total_per_sentence", TEXT) == 1
    assert value("total_per_100_tokens", TEXT) == pytest.approx(400 / value("token_count", TEXT))


@given(st.sampled_from(list(MARKERS)), st.integers(0, 5))
def test_each_occurrence_of_any_marker_counts_once(kind, times):
    for marker in MARKERS[kind]:
        assert value(f"{kind}_count", f"x {marker} y " * times) == times


def test_markers_are_words_in_real_answers(data):
    """The source matches substrings: few of ours may lie inside of other words."""
    rows = [json.loads(line) for line in (data / "llmbar_pairs.jsonl").read_text().splitlines()]
    texts = [row[side].casefold() for row in rows for side in ("chosen", "rejected")]
    found = [
        (text[match.start() - 1 : match.start()], marker)
        for text in texts
        for markers in MARKERS.values()
        for marker in markers
        for match in re.finditer(re.escape(marker), text)
    ]
    inside = [marker for before, marker in found if before.isalpha()]
    assert len(found) > 500 and len(inside) < 0.02 * len(found)


def test_table_of_real_answers_is_finite_but_where_it_says(data, embed):
    with gzip.open(data / "gsm8k_example_model_solutions.jsonl.gz", "rt") as lines:
        rows = [json.loads(next(lines)) for _ in range(12)]
    prompts, texts = [row["question"] for row in rows], [row["175b_verification"]["solution"] for row in rows]
    table = metric_table(prompts, texts, embed)
    assert table.shape == (12, 37) and np.isfinite(table).mean() > 0.95
    assert table[:, list(BY_NAME).index("token_count")].tolist() == [len(read(text).tokens) for text in texts]
    assert np.isnan(metric_table(["p"], [""], embed)).any() and metric_table([], [], embed).shape == (0, 37)


def test_readings_give_each_answer_its_own_sentences(embed):
    first, empty, second = readings(["p", "p", "q"], ["One. Two.", "", "Three."], embed)
    assert (len(first.sentences_SD), len(empty.sentences_SD), len(second.sentences_SD)) == (2, 0, 1)
    assert first.sentences_SD == pytest.approx(embed(["One.", "Two."]), abs=1e-5)
    assert second.prompt_D == pytest.approx(embed(["q"])[0], abs=1e-5)
