import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import StablerankError
from stablerank.evaluation.correlates.embedding import CONTEXT, MeanPooled, mean_pooled
from stablerank.zoo.resolve import resolve

TEXTS = ["3 + 4 = 7", "12 - 5 = 7 and then some", "x", "3 + 4 = 7", ""]


def test_a_vector_is_the_mean_of_the_text_states_alone(embed):
    place = resolve("zoo:arith-student")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[start, *tokenizer(TEXTS[1], add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, 1:].double().numpy()
    wanted = states.mean(0) / np.linalg.norm(states.mean(0))
    assert embed(TEXTS)[1] == pytest.approx(wanted, abs=1e-6)


def test_vectors_are_unit_in_order_and_hardly_moved_by_the_batch(embed):
    found = embed(TEXTS)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(5), abs=1e-12)
    assert np.array_equal(found[0], found[3]) and not np.allclose(found[0], found[1])
    alone = np.stack([embed([text])[0] for text in TEXTS])
    assert np.abs(found - alone).max() < 1e-5
    assert embed([]).shape == (0, found.shape[1])


def test_a_long_text_is_read_as_far_as_its_context(embed):
    longer = "3 + 4 = 7. " * 100
    ids = embed.tokenizer(longer, add_special_tokens=False)["input_ids"]
    assert len(ids) > CONTEXT
    cut = embed.tokenizer.decode(ids[:CONTEXT], skip_special_tokens=True)
    assert embed([longer])[0] == pytest.approx(embed([cut])[0], abs=1e-6)


def test_a_model_of_another_name_is_refused():
    with pytest.raises(StablerankError, match="does not exist"):
        mean_pooled("./nowhere/at all")


def test_padding_has_no_say(embed):
    """Not even where the model's states there are not finite."""

    class Broken(torch.nn.Module):
        device, config = torch.device("cpu"), embed.model.config

        def base_model(self, input_ids, attention_mask, use_cache):
            states = embed.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
            states.last_hidden_state[attention_mask == 0] = float("nan")
            return states

    assert np.array_equal(MeanPooled(Broken(), embed.tokenizer)(TEXTS), embed(TEXTS))
