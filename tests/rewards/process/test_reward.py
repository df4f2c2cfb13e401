import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import RewardError
from stablerank.rewards.process.reward import ProcessReward, question_text
from stablerank.rewards.process.segmentation import Segmenter
from stablerank.rewards.process.spec import ProcessSpec
from stablerank.rewards.rollout import Rollout, length_mask
from stablerank.tasks.arithmetic import check_steps, problems
from stablerank.zoo.resolve import resolve


class Judge:
    """A scorer by hand: a number from question and step, silence behind the first ``reach`` steps."""

    cost = "nothing"

    def __init__(self, reach=99, opinion=None):
        self.reach, self.asked = reach, []
        self.opinion = opinion or (lambda question, step: (sum(map(ord, question + step)) % 101) / 100)

    def score(self, questions, steps):
        self.asked.extend(zip(questions, steps, strict=True))
        return [
            [self.opinion(question, step) if at < self.reach else None for at, step in enumerate(parts)]
            for question, parts in zip(questions, steps, strict=True)
        ]


def rollout_of(ids, prompts=None, **columns):
    return Rollout(
        prompts=prompts or ["1+1=?\n"] * len(ids),
        completions=[""] * len(ids),
        completion_ids=ids,
        completion_mask_NT=length_mask([len(row) for row in ids]),
        columns=columns,
    )


@given(
    texts=st.lists(st.text(st.sampled_from("12+=\n \n"), max_size=24), min_size=1, max_size=5),
    ends=st.lists(st.booleans(), min_size=5, max_size=5),
    reach=st.integers(0, 4),
)
@settings(max_examples=80, deadline=None)
def test_deposits_are_those_of_loops_over_characters(characters, texts, ends, reach):
    eos = characters.eos_token_id
    ids = [characters(text).input_ids + [eos] * end for text, end in zip(texts, ends, strict=False)]
    judge = Judge(reach)
    made = ProcessReward(judge, Segmenter(characters))(rollout_of(ids))

    scored, cut, empty, silent = 0, 0, 0, []
    for row, tokens in enumerate(ids):
        expected, line, count = {}, "", 0  # a character is a token
        for at, token in enumerate(tokens):
            letter = "\n" if token == eos else characters.decode([token])
            if letter == "\n" and line.strip():
                count += 1
                if count <= reach:
                    expected[at] = judge.opinion("1+1=?", line.strip())
            line = "" if letter == "\n" else line + letter
        there = made.deposit_mask_NT[row].nonzero().flatten().tolist()
        assert there == sorted(expected)
        assert made.token_rewards_NT[row, there].tolist() == pytest.approx([expected[at] for at in there])
        mean = np.mean(list(expected.values())) if expected else math.nan if count or line.strip() else 0.0
        assert made.trajectory_rewards_N[row].item() == pytest.approx(mean, nan_ok=True)
        scored, cut, empty = scored + len(expected), cut + bool(line.strip()), empty + (not count and not line.strip())
        silent.append(max(0, count - reach))
    assert made.density == "step"
    assert made.notes == {
        "steps": scored,
        "truncated_steps": cut,
        "empty_completions": empty,
        "over_long_inputs": sum(map(bool, silent)),
        "unscored_steps": sum(silent),
    }


def test_the_model_sees_the_finished_steps_of_completions_that_have_some(characters):
    ids = [characters(text).input_ids for text in ["1+1=2\n\n2\n3", "", "\n", "7"]]
    judge = Judge()
    ProcessReward(judge, Segmenter(characters))(rollout_of(ids))
    assert judge.asked == [("1+1=?", ["1+1=2", "2"])]


CHAT = [
    {"role": "system", "content": "Think."},
    {"role": "user", "content": "2+2=?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "3+3?"}]},
]


def test_the_question_is_the_prompt_the_last_user_message_or_a_column(characters):
    assert question_text("a\n", 0) == "a\n"
    assert question_text(CHAT, 0) == "And 3+3?" and question_text(CHAT[:3], 0) == "2+2=?"
    with pytest.raises(RewardError, match="prompt 7 has no user message among its 1"):
        question_text(CHAT[:1], 7)

    judge, ids = Judge(), [characters("1\n").input_ids] * 2
    reward = ProcessReward(judge, Segmenter(characters), question_column="bare")
    reward(rollout_of(ids, prompts=["x", CHAT[:1]], bare=["one?", " two? "]))
    assert [question for question, _ in judge.asked] == ["one?", "two?"]
    with pytest.raises(RewardError, match="reads the column 'bare', which the data lacks"):
        reward(rollout_of(ids))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1, 1.5])
def test_a_score_that_is_no_probability_names_its_step(characters, wrong):
    ids = [characters(text).input_ids for text in ["", "1\n2\n", "1\n2\n3\n"]]
    judge = Judge(opinion=lambda question, step: wrong if step == "3" else 0.5)
    with pytest.raises(RewardError, match=rf"gave {wrong} for step 2 of completion 2, which is no probability"):
        ProcessReward(judge, Segmenter(characters))(rollout_of(ids))


@pytest.mark.parametrize("change", [lambda found: found[:-1], lambda found: [*found, 0.5]])
def test_another_number_of_scores_than_steps_is_an_error(characters, change):
    class Careless(Judge):
        def score(self, questions, steps):
            return [change(found) for found in super().score(questions, steps)]

    ids = [characters("1\n2\n").input_ids]
    with pytest.raises(RewardError, match=r"gave [13] scores for the 2 steps of completion 0"):
        ProcessReward(Careless(), Segmenter(characters))(rollout_of(ids))


# --- the embedded model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(characters):
    return ProcessSpec(model="zoo:arith-prm", batch_size=64).build(characters)


def test_it_says_what_it_runs(embedded):
    assert embedded.own_forward.endswith("one more forward a batch, of 800,768 parameters over question and steps")
    assert not (embedded.needs.any_frozen or embedded.needs.any_policy)


def test_not_a_number_from_the_model_names_its_step(characters):
    reward = ProcessSpec(model="zoo:arith-prm").build(characters)
    reward._scorer._model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(RewardError, match="gave nan for step 0 of completion 0"):
        reward(rollout_of([characters("1+1=2\n2").input_ids]))


def test_over_long_inputs_are_counted_and_leave_no_deposit(embedded, characters):
    ids = characters("1+1=2\n" * 60).input_ids
    made = embedded(rollout_of([ids]))
    # Of 256 tokens the question and its space take 6, and a step 8: itself, space, tag and line break.
    scored = 1 + (256 - 6 - 7) // 8
    assert made.notes["steps"] == scored and made.notes["unscored_steps"] == 60 - scored
    assert made.notes["over_long_inputs"] == 1
    assert made.deposit_mask_NT[0].nonzero().flatten().tolist() == [6 * at + 5 for at in range(scored)]


@pytest.fixture(scope="module")
def student_rollout():
    """200 problems of the validation split, one completion each at temperature 1."""
    place = resolve("zoo:arith-student")
    student, tokenizer = AutoModelForCausalLM.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    asked = problems("validation", 200, seed=11)
    prompts = [problem.prompt for problem in asked]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    torch.manual_seed(0)
    sampled = student.generate(**inputs, max_new_tokens=112, do_sample=True, temperature=1.0, top_k=0)
    rows = [row[inputs.input_ids.shape[1] :].tolist() for row in sampled]
    ids = [[*row[: row.index(1)], 1] if 1 in row else row for row in rows]
    return asked, rollout_of(ids, prompts)


def test_step_auc_on_sampled_rollouts_is_near_that_of_the_card(embedded, characters, student_rollout):
    asked, rollout = student_rollout
    made = embedded(rollout)
    found, labels = [], []
    for row, (problem, ids) in enumerate(zip(asked, rollout.completion_ids, strict=True)):
        verdicts = check_steps(problem, characters.decode(ids, skip_special_tokens=True))
        scores = made.token_rewards_NT[row][made.deposit_mask_NT[row]].tolist()
        if len(verdicts) == len(scores):  # cut or with blank lines, which the checker counts
            found, labels = found + scores, labels + verdicts
    found, labels = np.array(found), np.array(labels)
    assert len(found) > 300
    right, wrong = found[labels], found[~labels]
    auc = mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))
    assert auc > 0.9, "the card says 0.940 (0.924 to 0.954)"


def test_every_deposit_stands_on_a_line_break_or_the_end(embedded, characters, student_rollout):
    _, rollout = student_rollout
    made = embedded(rollout)
    closing = {characters.convert_tokens_to_ids("\n"), characters.eos_token_id}
    for row, at in made.deposit_mask_NT.nonzero().tolist():
        assert rollout.completion_ids[row][at] in closing
    assert made.notes["steps"] == int(made.deposit_mask_NT.sum())
