import pytest
import torch

from stablerank.errors import ModelError, RewardError
from stablerank.rewards.distillation import model_teacher
from stablerank.rewards.distillation.model_teacher import ModelTeacher, load_teacher
from stablerank.tasks.files import data_folder


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_one_sequence_at_a_time_in_fp64(zoo_teacher, sequences, plain_logprobs, temperature):
    prompts, completions, width = sequences
    found_NT = ModelTeacher(zoo_teacher, "teacher", temperature).logprobs(prompts, completions, width + 3)
    assert found_NT.shape == (4, width + 3) and found_NT.dtype == torch.float32
    for found_T, prompt, completion in zip(found_NT, prompts, completions, strict=True):
        expected = plain_logprobs(zoo_teacher, prompt, completion, temperature)
        torch.testing.assert_close(found_T[: len(completion)].double(), expected, atol=1e-5, rtol=0)
        assert found_T[len(completion) :].eq(0).all()


def test_neither_batch_nor_order_nor_padding_matters(zoo_teacher, sequences, monkeypatch):
    prompts, completions, width = sequences
    teacher = ModelTeacher(zoo_teacher, "teacher")
    together = teacher.logprobs(prompts, completions, width)
    backwards = teacher.logprobs(prompts[::-1], completions[::-1], width).flip(0)
    with_a_long_one = teacher.logprobs([*prompts, prompts[0] * 8], [*completions, completions[0] * 3], width * 3)
    monkeypatch.setattr(model_teacher, "BATCH_TOKENS", 1)
    alone = teacher.logprobs(prompts, completions, width)
    for other in (backwards, with_a_long_one[:4, :width], alone):
        torch.testing.assert_close(other, together, atol=5e-6, rtol=0)


def test_a_batch_never_exceeds_its_tokens(monkeypatch):
    monkeypatch.setattr(model_teacher, "BATCH_TOKENS", 30)
    lengths = [3, 10, 31, 9, 1, 10, 10, 2]
    batches = list(model_teacher._batches(lengths))
    assert sorted(row for batch in batches for row in batch) == list(range(8))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 30 for batch in batches)
    assert len(batches) == 4


def test_it_is_frozen_and_leaves_no_trace(zoo_teacher, sequences):
    zoo_teacher.train()
    before = {name: value.clone() for name, value in zoo_teacher.state_dict().items()}
    state = torch.get_rng_state()
    found = ModelTeacher(zoo_teacher, "teacher").logprobs(*sequences)
    assert not found.requires_grad and not zoo_teacher.training
    assert not any(parameter.requires_grad for parameter in zoo_teacher.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in zoo_teacher.state_dict().items())


def test_bf16_agrees_as_far_as_bf16_can(zoo_tokenizer, zoo_teacher, sequences):
    half = load_teacher("zoo:arith-teacher", "bfloat16", "cpu", 1.0, zoo_tokenizer)
    assert "bfloat16, cpu" in half.cost
    difference = half.logprobs(*sequences) - ModelTeacher(zoo_teacher, "teacher").logprobs(*sequences)
    assert 0 < difference.abs().mean() < 0.05


def test_padded_rows_of_the_embedding_are_no_difference(zoo_tokenizer, zoo_teacher, sequences, tmp_path):
    expected = ModelTeacher(zoo_teacher, "teacher").logprobs(*sequences)
    rows = zoo_teacher.get_input_embeddings().weight
    wider = torch.cat([rows.data, torch.full((27, rows.shape[1]), -1e-3)])
    zoo_teacher.resize_token_embeddings(128)
    zoo_teacher.get_input_embeddings().weight.data.copy_(wider)
    zoo_teacher.save_pretrained(tmp_path)
    zoo_tokenizer.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), "float32", "cpu", 1.0, zoo_tokenizer)
    # The 27 rows take a share of the probability: a little, and never give any.
    taken = expected - teacher.logprobs(*sequences)
    assert taken.min() > -1e-5 and taken.max() < 0.5
    teacher.logprobs([[5, 6]], [[127]], 1)


def test_what_it_cannot_read_is_refused(zoo_teacher):
    teacher = ModelTeacher(zoo_teacher, "zoo:arith-teacher")
    with pytest.raises(RewardError, match=r"completion 1 with its prompt has 257 tokens, .*arith-teacher reads 256;"):
        teacher.logprobs([[5], [5]], [[6], [6] * 256], 256)
    ids = zoo_teacher.config.vocab_size
    with pytest.raises(RewardError, match=rf"completion 0 with its prompt has token id {ids}, .* has {ids} ids;"):
        teacher.logprobs([[5]], [[ids]], 1)


def test_a_teacher_that_cannot_be_loaded_is_one_sentence(zoo_tokenizer, tmp_path):
    with pytest.raises(ModelError, match=r"onto cuda:7 \(.*\); give zoo:NAME or .* a device that this machine has\.$"):
        load_teacher("zoo:arith-teacher", "float32", "cuda:7", 1.0, zoo_tokenizer)
    with pytest.raises(ModelError, match="does not exist"):
        load_teacher(str(tmp_path / "none"), "float32", None, 1.0, zoo_tokenizer)


@pytest.mark.data
def test_the_vocabulary_is_checked_at_load(zoo_tokenizer):
    with pytest.raises(RewardError, match=r"stories260K reads token id 0 as '<unk>', but the policy as '<pad>'"):
        load_teacher(str(data_folder() / "stories260K"), "float32", "cpu", 1.0, zoo_tokenizer)
