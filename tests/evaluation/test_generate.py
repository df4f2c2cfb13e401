import pytest
import torch

from stablerank.errors import DataError
from stablerank.evaluation.generate import greedy_completions

PROMPTS = ["1+1=?", "a", "12345+67890=?", "(3+4)*2-5=?", "xyz" * 9, "b" * 30, "?"]


def alone(model, tokenizer, prompt, length):
    """The oracle: argmax of a full forward pass, token by token, without padding, cache or `generate`."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(length):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, start:].tolist()


def test_batches_equal_one_by_one_in_the_order_given(model, tokenizer):
    model.eval()
    expected = [alone(model, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert not any(tokenizer.eos_token_id in ids for ids in expected)
    done = []
    found = greedy_completions(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=3, progress=done.append)
    assert [list(completion.ids) for completion in found] == expected
    assert [completion.text for completion in found] == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert all(completion.truncated and completion.tokens == 8 for completion in found)
    assert done == [3, 6, 7]


def test_an_end_token_of_the_model_ends_a_completion(model, tokenizer):
    model.eval()
    ids = alone(model, tokenizer, PROMPTS[0], 6)
    model.generation_config.eos_token_id = [ids[3]]
    (found,) = greedy_completions(model, tokenizer, PROMPTS[:1], max_new_tokens=6)
    assert list(found.ids) == ids[: ids.index(ids[3]) + 1]
    assert not found.truncated


def test_sampling_flags_of_the_model_do_not_leak_in(model, tokenizer):
    plain = greedy_completions(model, tokenizer, PROMPTS, max_new_tokens=8)
    model.generation_config.update(
        do_sample=True,
        temperature=9.0,
        repetition_penalty=7.0,
        no_repeat_ngram_size=1,
        num_beams=3,
        top_k=3,
        min_length=99,
    )
    assert greedy_completions(model, tokenizer, PROMPTS, max_new_tokens=8) == plain


def test_modes_and_random_state_are_left_alone(model, tokenizer):
    model.train()
    model.model.layers[0].eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    model.generation_config.do_sample = True
    greedy_completions(model, tokenizer, PROMPTS, max_new_tokens=2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError):
        greedy_completions(model, tokenizer, PROMPTS, max_new_tokens=2, progress=lambda done: 1 // 0)
    assert [module.training for module in model.modules()] == modes


def test_messages_go_through_the_chat_template(model, tokenizer):
    plain = greedy_completions(model, tokenizer, ["U:1+1\nA:"], max_new_tokens=5)
    messages = [{"role": "user", "content": "1+1"}]
    with pytest.raises(DataError, match="Prompt 0 holds chat messages, but the tokenizer has no chat template"):
        greedy_completions(model, tokenizer, [messages], max_new_tokens=5)
    tokenizer.chat_template = (
        "{% for m in messages %}U:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    try:
        assert greedy_completions(model, tokenizer, [messages], max_new_tokens=5) == plain
    finally:
        tokenizer.chat_template = None


def test_prompts_that_do_not_fit_are_named(model, tokenizer):
    with pytest.raises(
        DataError, match="prompt 1 has 120 tokens, which with 9 new ones exceeds the model's context of 128"
    ):
        greedy_completions(model, tokenizer, ["a", "b" * 120], max_new_tokens=9)
    with pytest.raises(DataError, match=r"Prompt 0 .* has no token"):
        greedy_completions(model, tokenizer, [""], max_new_tokens=1)


def test_nothing_asked_nothing_done(model, tokenizer):
    assert greedy_completions(model, tokenizer, [], max_new_tokens=1) == []
