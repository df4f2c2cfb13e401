import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stablerank.errors import RewardError
from stablerank.rewards.distillation.vocabulary import check_vocabulary
from stablerank.tasks.files import data_folder
from stablerank.zoo.resolve import resolve


@pytest.fixture
def edited(zoo_tokenizer):
    """The zoo's tokenizer with pieces renamed, ids kept: ``edited({"old": "new"})``."""

    def build(names):
        raw = json.loads(zoo_tokenizer.backend_tokenizer.to_str())
        vocabulary = raw["model"]["vocab"]
        raw["model"]["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
        for token in raw["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        raw["model"]["unk_token"] = names.get("<unk>", "<unk>")
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)))

    return build


def test_student_and_teacher_of_the_zoo_share_one(zoo_tokenizer):
    check_vocabulary(zoo_tokenizer, AutoTokenizer.from_pretrained(resolve("zoo:arith-teacher")), "zoo:arith-teacher")


@pytest.mark.data
def test_another_vocabulary_is_refused_with_its_first_difference(zoo_tokenizer):
    stories = AutoTokenizer.from_pretrained(data_folder() / "stories260K")
    with pytest.raises(RewardError) as refusal:
        check_vocabulary(zoo_tokenizer, stories, "stories")
    assert str(refusal.value) == (
        "the teacher stories reads token id 0 as '<unk>', but the policy as '<pad>' (101 of 101 ids differ); "
        "distil from a model with the policy's tokenizer"
    )
    with pytest.raises(RewardError, match=r"id 0 as '<pad>', but the policy as '<unk>' \(511 of 512"):
        check_vocabulary(stories, zoo_tokenizer, "zoo:arith-teacher")


def test_two_exchanged_pieces_are_enough_to_refuse(zoo_tokenizer, edited):
    with pytest.raises(RewardError, match=r"reads token id \d+ as 'b', but the policy as 'a' \(2 of 101"):
        check_vocabulary(zoo_tokenizer, edited({"a": "b", "b": "a"}), "t")


def test_a_renamed_piece_is_refused_and_a_renamed_special_token_is_not(zoo_tokenizer, edited):
    with pytest.raises(RewardError, match=r"as 'ä', but the policy as 'a' \(1 of 101"):
        check_vocabulary(zoo_tokenizer, edited({"a": "ä"}), "t")
    check_vocabulary(zoo_tokenizer, edited({"<unk>": "<|reserved_2|>"}), "t")


def test_a_renamed_end_token_must_still_be_an_end_token(zoo_tokenizer, edited):
    renamed = edited({"<eos>": "<|im_end|>"})
    with pytest.raises(RewardError, match=r"id 1 as '<\|im_end\|>', but the policy as '<eos>' \(1 of 101"):
        check_vocabulary(zoo_tokenizer, renamed, "t")
    renamed.eos_token = "<|im_end|>"
    check_vocabulary(zoo_tokenizer, renamed, "t")


def test_exchanged_special_tokens_are_refused(zoo_tokenizer, edited):
    with pytest.raises(RewardError, match=r"id 0 as '<eos>', but the policy as '<pad>' \(2 of 101"):
        check_vocabulary(zoo_tokenizer, edited({"<pad>": "<eos>", "<eos>": "<pad>"}), "t")


def test_a_teacher_may_know_more_but_not_less(zoo_tokenizer, edited):
    larger = edited({})
    larger.add_tokens(["<tool>", "<think>"])
    larger.chat_template = "{{ messages[0].content }}"
    check_vocabulary(zoo_tokenizer, larger, "t")
    with pytest.raises(RewardError, match=r"id 101 as no token, but the policy as '<tool>' \(2 of 103"):
        check_vocabulary(larger, zoo_tokenizer, "t")
