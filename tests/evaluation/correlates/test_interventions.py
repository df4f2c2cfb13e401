import gzip
import json
from dataclasses import astuple

import numpy as np
import pytest
import statsmodels.api as sm

from stablerank.errors import DataError
from stablerank.evaluation.correlates.effects import (
    ORIGINAL,
    Effect,
    Marks,
    effects,
    length_part,
    mechanisms,
)
from stablerank.evaluation.correlates.interventions import CONTROLS, INTERVENTIONS, Case, edited, with_others
from stablerank.evaluation.statistics import Interval

NAMES = [each.name for each in INTERVENTIONS]


def real_cases(data, count):
    with gzip.open(data / "processbench_gsm8k.json.gz", "rt") as file:
        rows = json.load(file)[:count]
    cases = []
    for row in rows:
        answer, first = "\n\n".join(row["steps"]), row["label"]
        start = sum(len(step) + 2 for step in row["steps"][: max(first, 0)])
        wrong = (start, start + len(row["steps"][first])) if first >= 0 else None
        cases.append(Case(row["id"], row["id"], row["problem"], answer, wrong=wrong))
    return with_others(cases)


def marks_of(cases, score):
    """Every version of every case, scored by a function of the edit's name and the tokens."""
    versions = [{ORIGINAL: case.answer, **edited(case)} for case in cases]
    names = sorted({name for version in versions for name in version})
    tokens = {name: np.array([len(v[name].split()) if name in v else np.nan for v in versions]) for name in names}
    return {name: Marks(score(name, tokens[name]), tokens[name]) for name in names}


def test_real_answers_take_every_edit_and_the_same_seed_gives_the_same(data):
    cases = real_cases(data, 40)
    versions = [edited(case, seed=3) for case in cases]
    assert {name for version in versions for name in version} == {*CONTROLS, *NAMES}
    assert versions == [edited(case, seed=3) for case in cases] != [edited(case, seed=4) for case in cases]
    for case, version in zip(cases, versions, strict=True):
        assert all(text != case.answer for text in version.values())
        assert ("corrupt_first_wrong_step" in version) <= (case.wrong is not None)
        if "corrupt_first_wrong_step" in version:
            start, end = case.wrong
            changed = version["corrupt_first_wrong_step"]
            assert changed[:start] == case.answer[:start] and changed[end:] == case.answer[end:]


def test_the_other_answer_is_the_nearest_in_length_of_another_group():
    cases = [Case("a", "1", "p", "x" * 10), Case("b", "1", "p", "x" * 11), Case("c", "2", "q", "x" * 30)]
    assert [case.other for case in with_others(cases)] == ["x" * 30, "x" * 30, "x" * 11]
    assert with_others(cases[:2])[0].other is None


def test_yardstick_is_a_line_between_controls_and_never_beyond():
    lengths, changes = np.array([0.2, 0.4, -0.5, np.nan]), np.array([1.0, 5.0, -2.0, 9.0])
    points = {0.0: 0.0, 0.1: 0.5, 0.3: 3.0, 0.4: 5.0, -0.25: -1.0, -0.5: -2.0}
    assert {at: length_part(at, lengths, changes) for at in points} == pytest.approx(points)
    assert np.isnan(length_part(0.41, lengths, changes)) and np.isnan(length_part(-0.51, lengths, changes))
    assert np.isnan(length_part(np.nan, lengths, changes))
    assert length_part(0.2, np.array([0.2, 0.2]), np.array([1.0, 3.0])) == 2.0


def test_a_score_that_is_length_moves_with_edits_but_not_beyond_length(data):
    cases = real_cases(data, 60)
    found = effects(marks_of(cases, lambda _, tokens: -3 * np.log(tokens)), [case.group for case in cases])
    assert [each.name for each in found] == NAMES
    for each in found:
        if each.name == "pad_filler":
            assert each.change.high < -0.3 and each.verdict == "confirmed"
        else:
            assert each.beyond.value == 0 and not each.p < 1
            assert each.length_part.value == pytest.approx(each.change.value)
            assert each.verdict == ("no claim" if each.claim == 0 else "not confirmed")


@pytest.mark.parametrize(("sign", "verdict"), [(1, "opposite"), (-1, "confirmed")])
def test_a_planted_effect_is_found_through_length_and_noise(data, sign, verdict):
    cases = real_cases(data, 100)
    rng = np.random.default_rng(0)

    def score(name, tokens):
        planted = 0.5 * sign * (name == "duplicate_sentence")
        return 10 * np.log(tokens) + planted + 0.3 * rng.normal(size=len(tokens))

    found = effects(marks_of(cases, score), [case.group for case in cases])
    by_name = {each.name: each for each in found}
    planted = by_name["duplicate_sentence"]
    assert planted.beyond.low < 0.5 * sign < planted.beyond.high and planted.verdict == verdict
    assert planted.change.low > 0, "the length of the sentence hides the planted sign"
    assert planted.change.value == pytest.approx(planted.length_part.value + planted.beyond.value)
    others = [each for each in found if each.name not in ("duplicate_sentence", "pad_filler")]
    assert not [each.name for each in others if each.verdict in ("confirmed", "opposite")]
    assert mechanisms(found)["density"] == verdict


def test_answers_that_no_control_matches_are_counted_and_left_out(data):
    cases = real_cases(data, 20)
    marks = marks_of(cases, lambda _, tokens: np.log(tokens))
    far = marks["swap_answer"].tokens_N.copy()
    far[:5] = 100_000
    marks["swap_answer"] = Marks(np.log(far), far)
    (swapped,) = [each for each in effects(marks, [case.group for case in cases]) if each.name == "swap_answer"]
    assert swapped.outside >= 5 and swapped.answers == 20 - swapped.outside


def test_answers_to_one_prompt_count_together(data):
    cases = real_cases(data, 24)
    rng = np.random.default_rng(1)
    marks = marks_of(cases, lambda _, tokens: rng.normal(size=len(tokens)))
    tripled = {name: Marks(np.repeat(m.score_N, 3), np.repeat(m.tokens_N, 3)) for name, m in marks.items()}
    once = effects(marks, [case.group for case in cases])
    thrice = effects(tripled, [case.group for case in cases for _ in range(3)])
    for one, three in zip(once, thrice, strict=True):
        assert astuple(three.beyond) == pytest.approx(astuple(one.beyond), abs=1e-9, nan_ok=True)
        assert three.answers == 3 * one.answers


def test_interval_and_p_are_those_of_a_regression_on_a_constant(data):
    cases = real_cases(data, 30)
    rng = np.random.default_rng(2)
    marks = marks_of(cases, lambda _, tokens: rng.normal(size=len(tokens)))
    found = {each.name: each for each in effects(marks, [case.group for case in cases])}["pad_filler"]
    fit = sm.OLS(marks["pad_filler"].score_N - marks[ORIGINAL].score_N, np.ones(30)).fit()
    assert astuple(found.beyond)[:3] == pytest.approx((fit.params[0], *fit.conf_int()[0]))
    assert found.p == pytest.approx(fit.pvalues[0])


def test_an_edit_that_never_applied_is_not_confirmed(data):
    cases = real_cases(data, 10)
    marks = marks_of(cases, lambda _, tokens: np.log(tokens))
    nothing = np.full(10, np.nan)
    marks["delete_causal"] = Marks(nothing, nothing)
    (deleted,) = [each for each in effects(marks, ["g"] * 10) if each.name == "delete_causal"]
    assert deleted.answers == 0 and np.isnan(deleted.p_holm) and deleted.verdict == "not confirmed"


@pytest.mark.parametrize(("prompts", "verdict"), [(9, "not confirmed"), (10, "confirmed")])
def test_few_prompts_confirm_nothing_however_many_answers(data, prompts, verdict):
    cases = real_cases(data, 40)
    rng = np.random.default_rng(0)
    marks = marks_of(cases, lambda name, tokens: 0.1 * rng.normal(size=len(tokens)) - (name == "shuffle_sentences"))
    found = effects(marks, [str(at % prompts) for at in range(len(cases))])
    assert {each.name: each.verdict for each in found}["shuffle_sentences"] == verdict


def test_missing_controls_are_named():
    with pytest.raises(DataError, match="scores of 'pad_5' are missing"):
        effects({ORIGINAL: Marks(np.ones(1), np.ones(1))}, ["g"])


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([(1, 0.3, 0.01), (1, 0.2, 0.01)], "confirmed"),
        ([(1, 0.3, 0.01), (1, 0.2, 0.2)], "not confirmed"),
        ([(1, 0.3, 0.01), (1, -0.2, 0.01)], "not confirmed"),
        ([(1, -0.3, 0.01), (1, 0.2, 0.2)], "opposite"),
        ([(0, 0.3, 0.01)], "no claim"),
    ],
)
def test_verdict_of_a_mechanism(verdicts, whole):
    made = [Effect("e", "m", claim, *[Interval(value, 0, 0, 1)] * 3, 0.0, 1, 0, p, p) for claim, value, p in verdicts]
    assert mechanisms(made) == {"m": whole}
