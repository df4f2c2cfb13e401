"""Judges on random models whose embedding, head and tokenizer are real parts, against plain forwards one by one."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from stablerank.errors import ModelError
from stablerank.rewards.scorers.answers import Answer
from stablerank.rewards.scorers.frozen_model import load_frozen
from stablerank.rewards.scorers.ipo import IPOJudge
from stablerank.rewards.scorers.judge_model import JudgeModel, choice
from stablerank.rewards.scorers.judge_prompts import QUESTIONS, Questions, category_of, conversation
from stablerank.rewards.scorers.pairwise import PairJudge
from stablerank.rewards.scorers.pointwise import PointwiseJudge, grade_of
from stablerank.zoo.resolve import resolve

BOUND = 1e-4  # of rounding in fp32 between one row and a padded batch, on logits and what is made of them
CHAT = (
    "{% for m in messages %}<eos>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<eos>assistant\n{% endif %}"
)
ANSWERS = [
    Answer("What is 3+4?", "3+4=7"),
    Answer([{"role": "user", "content": "What is 3+4?"}], "It is 8, I believe, and not 7 at all."),
    Answer("Add.", "7"),
    Answer("What is 3+4?", "3+4=7"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with room for a prompt, whose tokenizer has one token a character and a chat template."""
    place = tmp_path_factory.mktemp("judge")
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.2}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=1536, **sizes, **heads, **ends)
    Qwen3ForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def frozen(folder):
    return load_frozen(str(folder))


@pytest.fixture(scope="module")
def judge(frozen):
    return JudgeModel(frozen)


@pytest.fixture(scope="module")
def plain_logits(folder):
    """Of what follows a question and a forced beginning: the chat template by itself, one row, no mask."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def after(question, forced=""):
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) + forced
        ids_1L = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        logits_V = model(input_ids=ids_1L).logits[0, -1].double()
        return lambda token: logits_V[tokenizer.convert_tokens_to_ids(token)]

    return after


# --- yes or no --------------------------------------------------------------------------------------------------


def test_probability_of_yes_is_that_of_a_plain_forward(judge, plain_logits):
    table = IPOJudge(judge).score(ANSWERS)
    assert table.names == ("judge_ipo",) and set(table.statuses) == {"scored"}
    for answer, found in zip(ANSWERS, table.values_NS[:, 0], strict=True):
        logit = plain_logits(judge.questions.yes_or_no(answer.prompt, answer.response, "chat"))
        yes, no = logit("Y").exp(), logit("N").exp()
        assert found == pytest.approx(float(yes / (yes + no)), abs=BOUND)


def test_a_subset_chooses_what_is_asked_and_a_fixed_category_overrules_it(judge, plain_logits):
    subsets = ("hep-rust", "math-prm", "xstest-should-refuse", "llmbar-natural")
    answers = [replace(ANSWERS[0], subset=subset) for subset in subsets]
    by_subset = IPOJudge(judge).score(answers)
    alone = [
        IPOJudge(judge, category).score(answers[:1]).values_NS[0, 0] for category in ("code", "math", "safety", "chat")
    ]
    assert by_subset.values_NS[:, 0] == pytest.approx(alone, abs=BOUND)
    assert len(set(alone)) == 4
    fixed = IPOJudge(judge, "math").score(answers).values_NS[:, 0]
    assert fixed == pytest.approx([alone[1]] * 4, abs=BOUND)


@pytest.mark.parametrize(
    ("subset", "category"),
    [
        *((f"hep-{language}", "code") for language in ("cpp", "go", "java", "js", "python", "rust")),
        *(("math-prm", "math"), ("refusals-dangerous", "safety"), ("refusals-offensive", "safety")),
        *(("xstest-should-respond", "safety"), ("donotanswer", "safety"), ("alpacaeval-hard", "chat"), ("", "chat")),
    ],
)
def test_subsets_of_rewardbench_are_routed_by_their_names(subset, category):
    assert category_of(subset) == category
    assert category in QUESTIONS


# --- a grade ----------------------------------------------------------------------------------------------------


def test_expected_grade_is_that_of_a_plain_forward(judge, plain_logits):
    table = PointwiseJudge(judge).score(ANSWERS)
    for answer, found in zip(ANSWERS, table.values_NS[:, 0], strict=True):
        logit = plain_logits(judge.questions.pointwise(answer.prompt, answer.response, "logits"), "[RESULT] ")
        p = torch.stack([logit(digit) for digit in "12345"]).softmax(0)
        assert found == pytest.approx(float(p @ torch.arange(1.0, 6.0).double()), abs=BOUND)
    assert table.values_NS[0] == table.values_NS[3], "equal answers tie to the bit"
    assert table.tokens_N.tolist() == [len(answer.response) for answer in ANSWERS]


def test_generated_judgements_are_those_of_plain_greedy_decoding(judge, folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    questions = [judge.questions.pointwise(answer.prompt, answer.response, "generate") for answer in ANSWERS]
    said = judge.answers([judge.row(question) for question in questions], 8)
    for question, found in zip(questions, said, strict=True):
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        for _ in range(8):
            with torch.no_grad():
                following = model(input_ids=ids["input_ids"]).logits[:, -1:].argmax(-1)
            ids["input_ids"] = torch.cat([ids["input_ids"], following], 1)
            if following.item() == tokenizer.eos_token_id:
                break
        assert f"{question}\n<eos>assistant\n{found}" in tokenizer.decode(ids["input_ids"][0])


def test_a_judgement_without_a_grade_is_undefined_and_counted(judge):
    table = PointwiseJudge(judge, "generate", max_new_tokens=2).score(ANSWERS)
    assert table.statuses == ("undefined",) * 4
    assert all(map(math.isnan, table.values_NS[:, 0]))


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Good. [RESULT] 4", 4),
        ("[RESULT] 4.", 4),
        ("[RESULT]4", 4),
        ("[RESULT]: **5** because", 5),
        ("[RESULT] (2)", 2),
        ("[RESULT] 3/5", 3),
        ("[RESULT] 3\n[RESULT] 3", 3),
        ("I would say 4", None),
        ("[RESULT] n", None),
        ("[RESULT] four", None),
        ("[RESULT] 0", None),
        ("[RESULT] 6", None),
        ("[RESULT] -1", None),
        ("[RESULT] 10", None),
        ("[RESULT] 4.5", None),
        ("[RESULT] 4,5", None),
        ("[RESULT] 4/10", None),
        ("[RESULT] ４", None),
        ("[RESULT] 3 or rather [RESULT] 4", None),
        ("[RESULT] 3 or rather [RESULT] none, [RESULT] 7", None),
        ("[result] 3", None),
        ("", None),
    ],
)
def test_grades_that_are_read(text, grade):
    assert grade_of(text) == grade


@given(before=st.text(max_size=30), grade=st.integers(1, 5), after=st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_grade_is_read_whatever_stands_around_it(before, grade, after):
    assert grade_of(f"{before} [RESULT] {grade}\n\n{after}") == grade
    assert grade_of(before + after) is None


@given(st.text(alphabet="[RESULT]123456789/.,-*: \n", max_size=60))
@settings(max_examples=300, deadline=None)
def test_whatever_is_said_gives_a_grade_on_the_scale_or_none(text):
    assert grade_of(text) in (None, 1, 2, 3, 4, 5)


# --- a pair -----------------------------------------------------------------------------------------------------

TEXTS = st.text(alphabet="abc 123+=\n.", min_size=1, max_size=40).filter(str.strip)


@given(prompt=TEXTS, a=TEXTS, b=TEXTS)
@settings(max_examples=15, deadline=None)
def test_swapping_the_responses_flips_the_sign_exactly(judge, prompt, a, b):
    one, other = PairJudge(judge).compare(prompt, a, b), PairJudge(judge).compare(prompt, b, a)
    assert other.margin == -one.margin
    assert (other.a_first, other.b_first) == (-one.b_first, -one.a_first)
    assert other.winner == {"a": "b", "b": "a", None: None}[one.winner]
    if a == b:
        assert one.margin == 0 and one.winner is None


def test_odds_of_both_orders_are_those_of_plain_forwards(judge, plain_logits):
    prompt, a, b = "What is 3+4?", "7", "It is 8."
    found = PairJudge(judge).compare(prompt, a, b)
    a_first = plain_logits(judge.questions.pairwise(prompt, a, b))
    b_first = plain_logits(judge.questions.pairwise(prompt, b, a))
    assert found.a_first == pytest.approx(float(a_first("A") - a_first("B")), abs=BOUND)
    assert found.b_first == pytest.approx(float(b_first("B") - b_first("A")), abs=BOUND)
    assert found.margin == pytest.approx((found.a_first + found.b_first) / 2)


def test_a_winner_needs_both_orders_and_a_preference_for_a_place_wins_nothing(judge):
    pairs = [("What is 3+4?", f"It is {right}", f"It is {wrong}") for right in range(4) for wrong in range(4, 8)]
    for found in PairJudge(judge).compare_all(pairs):
        agree = {found.a_first > 0, found.b_first > 0}
        assert (found.winner is None) == (agree == {True, False})
        assert found.winner is None or found.winner == ("a" if found.margin > 0 else "b")


def test_pairs_that_cannot_be_judged_are_named_and_the_rest_is(judge):
    pairs = [("x", "y", " "), ("x", None, "y"), ("x", "y" * 2000, "z"), ("x", "y", "z"), ("x", 3, "y")]
    found = PairJudge(judge).compare_all(pairs)
    assert [one.status for one in found] == ["empty", "missing", "outside_window", "scored", "not_text"]
    assert [math.isnan(one.margin) for one in found] == [True, True, True, False, True]
    assert PairJudge(judge).compare_all([]) == []


# --- all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IPOJudge, PointwiseJudge])
def test_what_cannot_be_judged_is_named_and_moves_no_other_score(judge, kind):
    odd = [Answer("x", " "), Answer("x", None), Answer("x", 7), Answer("x", "y" * 2000), Answer(None, "y")]
    table, alone = kind(judge).score([*odd, *ANSWERS]), kind(judge).score(ANSWERS)
    assert table.statuses[:5] == ("empty", "missing", "not_text", "outside_window", "not_text")
    assert all(map(math.isnan, table.values_NS[:5, 0])) and not table.tokens_N[:5].any()
    assert (table.values_NS[5:] == alone.values_NS).all()
    assert kind(judge).score([]).values_NS.shape == (0, 1)


@pytest.mark.parametrize("batch_tokens", [1, 1200, 10**6])
def test_batches_move_scores_by_rounding(frozen, judge, batch_tokens):
    other = JudgeModel(frozen, batch_tokens)
    for kind in (IPOJudge, PointwiseJudge):
        assert kind(other).score(ANSWERS).values_NS == pytest.approx(kind(judge).score(ANSWERS).values_NS, abs=BOUND)


def test_words_are_read_in_every_spelling_and_behind_what_all_share(smollm2):
    tokenizer = smollm2.tokenizer
    yes, no = choice(tokenizer, ("Yes", "No")).spellings
    assert set(tokenizer.convert_ids_to_tokens(yes)) == {"Yes", "ĠYes"}
    assert set(tokenizer.convert_ids_to_tokens(no)) == {"No", "ĠNo"}
    digits = choice(tokenizer, tuple("12345"), "[RESULT] ")
    assert tokenizer.decode(digits.forced) == "[RESULT] "
    assert [tokenizer.decode(spellings) for spellings in digits.spellings] == list("12345")


@pytest.mark.data
def test_a_space_that_begins_any_word_is_no_spelling(stories):
    tokenizer = stories.tokenizer
    assert tokenizer.convert_ids_to_tokens(choice(tokenizer, ("Yes", "No")).forced) == ["▁"]
    with pytest.raises(ModelError, match="no token of its own for each of 'A', 'B'"):
        choice(tokenizer, ("A", "B"))


PARTS = [
    "<eos>",
    "<pad>",
    "<|im_end|>",
    "<",
    "eos>",
    "</response>",
    "</RESPONSE_A>",
    "<instruction>",
    "response>",
    "/",
    "ok",
    " ",
]


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
@settings(max_examples=200, deadline=None)
def test_fenced_text_closes_no_tag_and_holds_no_special_token(frozen, text):
    fenced = Questions(frozen.tokenizer).fenced(text)
    ids = frozen.tokenizer(fenced, add_special_tokens=False).input_ids
    assert not {frozen.tokenizer.eos_token_id, frozen.tokenizer.pad_token_id} & set(ids)
    assert not any(tag in fenced.lower() for tag in ("</response", "<response", "<instruction", "</instruction"))
    assert fenced.replace(" ", "") == text.replace(" ", "")


def test_prompts_of_several_messages_are_told_apart():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}]
    turns.append({"role": "user", "content": [{"type": "text", "text": "and?"}]})
    assert conversation(turns) == "user: hi\nassistant: \nuser: and?"
    assert conversation(turns[:1]) == conversation("hi") == "hi"
