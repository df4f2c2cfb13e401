"""Members that train the model's own parameters: what they refuse, and that TRL's reference is the untouched model."""

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from stablerank.adapters.selective.bitfit import train_biases
from stablerank.adapters.selective.in_place import train_all
from stablerank.adapters.selective.sparse import train_sparse
from stablerank.errors import ModelError

MEMBERS = {
    "full": train_all,
    "bitfit": train_biases,
    "bitfit-added": partial(train_biases, biases="added"),
    "sparse": partial(train_sparse, rank=4),
}
CELLS = [
    ("full", "llama"),
    ("bitfit", "gpt_neox"),
    ("bitfit-added", "llama"),
    ("bitfit-added", "qwen3"),
    ("sparse", "llama"),
    ("sparse", "gpt_neox"),
]


@pytest.fixture(scope="module")
def tokenizer():
    """One token a letter, within the vocabulary of the tiny models."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<pad>", "<bos>", "<eos>", *map(chr, range(ord("a"), ord("z") + 1))]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def grpo(model, tokenizer, folder: Path) -> GRPOTrainer:
    arguments = GRPOConfig(
        output_dir=str(folder),
        beta=0.1,
        learning_rate=1e-2,
        weight_decay=0.0,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
    )
    rows = Dataset.from_list([{"prompt": letter * 3} for letter in "abcd"])
    return GRPOTrainer(
        model,
        lambda completion_ids, **_: [float(sum(ids)) for ids in completion_ids],
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize(("member", "architecture"), CELLS)
def test_policy_and_reference_start_as_a_separately_loaded_model(
    load, base_folder, ids, tokenizer, tmp_path, member, architecture
):
    untouched = load(architecture)(ids).logits
    trainer = grpo(MEMBERS[member](load(architecture)), tokenizer, tmp_path)
    assert torch.equal(trainer.model.eval()(ids).logits, untouched)
    assert torch.equal(trainer.ref_model.eval()(ids).logits, untouched)
    trainer.train()
    divergences = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert divergences[0] == 0 and divergences[1] > 0
    assert torch.equal(trainer.ref_model.eval()(ids).logits, untouched)
    assert (trainer.model.eval()(ids).logits - untouched).abs().max() > 1e-3
    config = json.loads((base_folder(architecture) / "config.json").read_text())
    assert not config.get("mlp_bias")  # the folder that the reference came from is as it was


def test_full_trains_what_was_frozen(load):
    model = load("qwen3").requires_grad_(False)
    assert all(parameter.requires_grad for parameter in train_all(model).parameters())


@pytest.mark.parametrize("member", MEMBERS)
def test_low_precision_and_adapters_are_refused(load, member):
    with pytest.raises(ModelError, match=r"fp32 masters, but GPTNeoXForCausalLM holds torch.bfloat16"):
        MEMBERS[member](load("gpt_neox", torch.bfloat16))
    wrapped = get_peft_model(load("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match=r"this is a PeftModelForCausalLM"):
        MEMBERS[member](wrapped)


@pytest.mark.parametrize("member", ["bitfit-added", "sparse"])
def test_a_refusal_leaves_the_model_alone(load, member):
    model = load("gpt_neox", torch.bfloat16)
    before = copy.deepcopy(model.config.to_dict()), [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ModelError):
        MEMBERS[member](model)
    assert before == (model.config.to_dict(), [parameter.requires_grad for parameter in model.parameters()])


def test_the_saved_model_is_stock(load, ids, tmp_path):
    model = MEMBERS["sparse"](load("llama"))
    model.save_pretrained(tmp_path)
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(stock.eval()(ids).logits, load("llama")(ids).logits)
