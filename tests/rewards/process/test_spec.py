import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForTokenClassification

from stablerank.errors import ModelError, RewardError
from stablerank.rewards.process.math_shepherd import MathShepherd
from stablerank.rewards.process.spec import ProcessSpec
from stablerank.rewards.process.token_classification import TokenClassification
from stablerank.zoo.resolve import resolve


@pytest.fixture
def classifier_folder(tmp_path, byte_bpe):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_labels": 2}
    torch.manual_seed(0)
    Qwen3ForTokenClassification(Qwen3Config(vocab_size=len(byte_bpe), **sizes, **heads)).save_pretrained(tmp_path)
    byte_bpe.save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_convention_chooses_the_scorer(classifier_folder, characters):
    assert isinstance(ProcessSpec(model="zoo:arith-prm").scorer(), MathShepherd)
    spec = ProcessSpec(model=classifier_folder, convention="token_classification", prm_separator="\n\n")
    assert isinstance(spec.scorer(), TokenClassification)
    reward = spec.build(characters)
    assert (reward.name, reward.density) == ("process", "step")


def test_the_model_is_frozen_and_in_the_chosen_dtype():
    model = ProcessSpec(model="zoo:arith-prm", dtype="bfloat16", device="cpu").scorer()._model
    assert model.dtype == torch.bfloat16 and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_bfloat16_scores_stay_near_those_of_float32():
    asked = (["(3+4)*2-5=?"], [["3+4=7", "7*2=15", "15-5=10", "\\boxed{10}"]])
    exact, rounded = (ProcessSpec(model="zoo:arith-prm", dtype=dtype).scorer().score(*asked)[0] for dtype in DTYPES)
    assert rounded == pytest.approx(exact, abs=0.05) and rounded != exact


DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"model": ""},
        {"model": "x", "separator": ""},
        {"model": "x", "convention": "shepherd"},
        {"model": "x", "device": "gpu"},
        {"model": "x", "batch_size": 0},
        {"model": "x", "max_tokens": 0},
        {"model": "x", "prm_separator": "\n\n"},
    ],
)
def test_what_means_nothing_is_refused(data):
    with pytest.raises(ValidationError):
        ProcessSpec(**data)


def test_a_model_without_the_head_of_its_convention_is_refused():
    with pytest.raises(ModelError, match=r"lacks \d weights of a token_classification model \(score\."):
        ProcessSpec(model="zoo:arith-prm", convention="token_classification").scorer()


def test_a_classifier_read_by_tags_is_refused(classifier_folder):
    with pytest.raises((ModelError, RewardError), match=r"reward\.convention"):
        ProcessSpec(model=classifier_folder).scorer()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    AutoModelForCausalLM.from_pretrained(resolve("zoo:arith-prm")).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds no tokenizer; write it beside the weights"):
        ProcessSpec(model=str(tmp_path)).scorer()


def test_a_missing_folder_is_refused():
    with pytest.raises(ModelError, match="does not exist"):
        ProcessSpec(model="./nowhere").scorer()
