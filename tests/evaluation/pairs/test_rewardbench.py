"""RewardBench v1 on a fixture worked from the official constants, row by row as the data set has them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stablerank.evaluation.pairs.rewardbench import (
    CATEGORIES,
    PAIRS,
    SECTIONS,
    WEIGHTS,
    rewardbench_scores,
    section_scores,
    unknown_subsets,
)
from stablerank.tasks.preferences import read_pairs

WORKED = json.loads((Path(__file__).parent / "rewardbench_v1.json").read_text())
EXPECTED = WORKED["expected"]


def schema_rows():
    """Rows with RewardBench's columns; the chosen response is the longer one in the first ``right`` of a subset."""
    for subset in WORKED["subsets"]:
        for number in range(subset["pairs"]):
            texts = ["a longer answer", "short"] if number < subset["right"] else ["short", "a longer answer"]
            yield {
                "prompt": f"{subset['subset']} {number}",
                "chosen": texts[0],
                "chosen_model": "one",
                "rejected": texts[1],
                "rejected_model": "other",
                "subset": subset["subset"],
                "id": number,
            }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewardbench") / "filtered.parquet"
    pq.write_table(pa.Table.from_pylist(list(schema_rows())), path)
    found = read_pairs(str(path))
    assert found.refused == ()
    return found.items


@pytest.fixture(scope="module")
def scored(pairs):
    credits_P = np.array([float(len(pair.chosen) > len(pair.rejected)) for pair in pairs])
    return credits_P, [pair.subset for pair in pairs], [pair.group for pair in pairs]


def test_constants_are_the_official_ones():
    for subset in WORKED["subsets"]:
        name = subset["subset"]
        assert (PAIRS[name], WEIGHTS[name]) == (subset["pairs"], subset["example_count"]), name
        assert name in SECTIONS[subset["section"]] and name in CATEGORIES[subset["category"]]
    assert len(PAIRS) == len(WEIGHTS) == len(WORKED["subsets"]) == 23
    assert sum(map(len, SECTIONS.values())) == sum(map(len, CATEGORIES.values())) == 23


def test_counts_of_a_faithful_file(pairs):
    of_subset = {name: category for category, names in CATEGORIES.items() for name in names}
    counts = Counter(of_subset[pair.subset] for pair in pairs)
    assert counts == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Code": 984, "Math": 447} == EXPECTED["pairs"]
    assert len(pairs) == 2985


def test_sections_and_averages_are_the_worked_ones(scored):
    found = rewardbench_scores(*scored)
    assert {name: i.value for name, i in found.sections.items()} == pytest.approx(EXPECTED["sections"])
    assert {name: i.value for name, i in found.categories.items()} == pytest.approx(EXPECTED["categories"])
    assert found.official.value == pytest.approx(EXPECTED["official"])
    assert found.micro.value == pytest.approx(EXPECTED["micro"])
    assert found.category_mean.value == pytest.approx(EXPECTED["category_mean"])
    assert found.complete
    accuracies = {s["subset"]: s["right"] / s["pairs"] for s in WORKED["subsets"]}
    assert section_scores(accuracies) == pytest.approx(EXPECTED["sections"])


def test_an_interval_is_as_wide_as_independent_subsets_make_it(scored):
    """Every prompt is its own group here, so that the variance of a weighted mean of shares is known."""
    found = rewardbench_scores(*scored)
    rows = [subset for subset in WORKED["subsets"] if subset["section"] == "Safety"]
    shares = np.array([row["example_count"] for row in rows]) / sum(row["example_count"] for row in rows)
    rates, sizes = np.array([(row["right"] / row["pairs"], row["pairs"]) for row in rows]).T
    deviation = np.sqrt((shares**2 * rates * (1 - rates) / sizes).sum())
    interval = found.sections["Safety"]
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, rel=0.08)
    assert interval.problems == 740


def test_parts_that_are_missing_make_no_average(scored):
    credits_P, subsets, groups = (np.asarray(each) for each in scored)
    kept = np.isin(subsets, ["llmbar-natural", "llmbar-adver-manual"])
    found = rewardbench_scores(credits_P[kept], subsets[kept].tolist(), groups[kept].tolist())
    assert list(found.sections) == list(found.categories) == ["Chat Hard"]
    assert found.sections["Chat Hard"].value == pytest.approx((71 + 17) / 146)
    assert (found.official, found.category_mean, found.complete) == (None, None, False)


def test_undefined_pairs_are_left_out_and_unknown_subsets_named(scored):
    credits_P, subsets, groups = scored
    holes_P = credits_P.copy()
    holes_P[[name == "math-prm" and n % 2 for n, name in enumerate(subsets)]] = np.nan
    kept = [n for n, value in enumerate(holes_P) if subsets[n] == "math-prm" and not np.isnan(value)]
    found = rewardbench_scores(holes_P, subsets, groups)
    assert found.categories["Math"].value == pytest.approx(credits_P[kept].mean())
    assert found.complete, "the pairs are there, though some could not be scored"
    more = rewardbench_scores(np.append(credits_P, 1.0), [*subsets, "mine"], [*groups, "mine"])
    assert more.micro == rewardbench_scores(*scored).micro
    assert unknown_subsets([*subsets, "mine", "mine"]) == {"mine": 2}
    assert rewardbench_scores(np.ones(1), ["mine"], ["mine"]) is None
