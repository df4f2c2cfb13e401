import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from stablerank.errors import RewardError
from stablerank.rewards.process.math_shepherd import MathShepherd
from stablerank.rewards.process.scoring import Limits, limits
from stablerank.tasks.arithmetic import problems
from stablerank.zoo.resolve import resolve

BOUND = 1e-5  # of rounding in fp32 between one row and a padded batch


@pytest.fixture(scope="module")
def prm():
    return AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-prm"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def build(prm, characters):
    return lambda batch_size=8, max_tokens=None: MathShepherd(prm, characters, limits(prm, batch_size, max_tokens))


@pytest.fixture(scope="module")
def solutions():
    """Questions and steps of many lengths, some steps wrong."""
    asked = problems("validation", 12)
    steps = [
        [*problem.steps[: 1 + at % 5], f"\\boxed{{{problem.answer + at % 2}}}"] for at, problem in enumerate(asked)
    ]
    return [problem.question for problem in asked], steps


@torch.no_grad()
def plain_scores(model, tokenizer, question, steps):
    """The convention by its card: one solution, every position, tags by their id."""
    text = f"{question} " + "\n".join(f"{step} ки" for step in steps)
    ids = tokenizer(text, return_tensors="pt").input_ids
    tag, good, bad = tokenizer.convert_tokens_to_ids(["ки", "+", "-"])
    right = model(input_ids=ids).logits[0, :, [good, bad]].softmax(-1)[:, 0]
    return right[ids[0] == tag].tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_scores_are_those_of_a_plain_forward_a_solution(build, prm, characters, solutions, batch_size):
    scores = build(batch_size).score(*solutions)
    for question, steps, found in zip(*solutions, scores, strict=True):
        assert found == pytest.approx(plain_scores(prm, characters, question, steps), abs=BOUND)
        assert len(found) == len(steps)


def test_right_steps_score_above_wrong_ones(build):
    question, right = "(3+4)*2-5=?", ["3+4=7", "7*2=14", "14-5=9", "\\boxed{9}"]
    wrong = ["3+4=7", "7*2=15", "15-5=10", "\\boxed{10}"]
    scores = build().score([question, question], [right, wrong])
    assert min(scores[0]) > 0.8 and scores[1][0] > 0.8 and max(scores[1][1:]) < 0.1


def test_steps_beyond_the_limit_get_none_and_move_no_other_score(build, prm, characters):
    question, steps = "3+4=?", ["3+4=7", "7+0=7", "\\boxed{7}"]
    whole = build().layout(question, steps)
    for room, kept in [(256, 3), (whole.marks[2], 2), (whole.marks[1] + 1, 2), (whole.marks[0] + 1, 1), (3, 0)]:
        (scores,) = build(max_tokens=room).score([question], [steps])
        assert scores[:kept] == pytest.approx(plain_scores(prm, characters, question, steps)[:kept], abs=BOUND)
        assert scores[kept:] == [None] * (3 - kept)


def test_tags_that_the_policy_wrote_move_no_mark(build, characters):
    steps = ["ки", "3+4=7 ки\nки", "ки ки"]
    marked = build().layout("ки?", steps)
    spoken = [characters.decode(marked.ids[: mark + 1]) for mark in marked.marks]
    assert spoken == ["ки? " + "\n".join(f"{step} ки" for step in steps[:count]) for count in (1, 2, 3)]
    assert [len(row) for row in build().score(["ки?"], [steps])] == [3]


@pytest.fixture(scope="module")
def byte_prm(byte_bpe):
    """A random model that answers everything with a sign, under a tokenizer that splits the tag."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(byte_bpe), max_position_embeddings=512, **sizes)).eval()
    model.lm_head.bias.data[[byte_bpe(" +").input_ids[-1], byte_bpe(" -").input_ids[-1]]] = 20.0
    return MathShepherd(model, byte_bpe, limits(model, 4, None))


LETTERS = st.lists(st.sampled_from([*"a+- .\n", "ки", "é", "😀", "学"]), min_size=1, max_size=12).map("".join)


@given(question=LETTERS, steps=st.lists(LETTERS, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_marks_stand_on_the_last_token_of_each_tag(byte_prm, byte_bpe, question, steps):
    marked = byte_prm.layout(question, steps)
    said = [byte_bpe.decode(marked.ids[: mark + 1]) for mark in marked.marks]
    # A tokenizer may merge the tag's last byte with the line break behind it.
    assert [text.rstrip("\n") for text in said] == [
        f"{question} " + "\n".join(f"{step} ки" for step in steps[: count + 1]) for count in range(len(steps))
    ]
    (scores,) = byte_prm.score([question], [steps])
    assert all(0 < score < 1 for score in scores) and len(scores) == len(steps)


def test_a_special_end_token_behind_the_text_takes_no_mark(build, characters):
    from tokenizers.processors import TemplateProcessing

    ending = copy.deepcopy(characters)
    ending.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    model = build()._model
    marked = MathShepherd(model, ending, Limits(8, 256)).layout("1+1=?", ["1+1=2"])
    assert marked.ids[-1] == 1 and marked.marks == [len(marked.ids) - 2]


def test_a_tokenizer_without_the_tag_is_refused(tokenizer, model):
    with pytest.raises(RewardError, match=r"no token for the tag 'ки' or the signs '\+' and '-'.*; choose") as refused:
        MathShepherd(model, tokenizer, Limits(8, 128))
    assert "\n" not in str(refused.value)


def test_a_model_that_does_not_answer_the_tag_is_refused(characters):
    student = AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-student")).eval()
    with pytest.raises(RewardError, match=r"gives \d+\.\d% of its probability .* where 50% is the least"):
        MathShepherd(student, characters, Limits(8, 256))


def test_a_tokenizer_without_offsets_is_refused(prm):
    class Slow(type(AutoTokenizer.from_pretrained(resolve("zoo:arith-prm")))):
        is_fast = False

    with pytest.raises(RewardError, match="gives no character offsets"):
        MathShepherd(prm, Slow.from_pretrained(resolve("zoo:arith-prm")), Limits(8, 256))


def test_a_limit_beyond_the_context_is_refused(build):
    with pytest.raises(RewardError, match=r"max_tokens is 257, but the process reward model reads 256 tokens"):
        build(max_tokens=257)
